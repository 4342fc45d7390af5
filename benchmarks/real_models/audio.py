"""The half minute of labelled speech that the audio models share."""

import functools
import wave

import torch
from torch import Tensor

from benchmarks.real_models.packages import package_folder

SAMPLE_RATE = 16_000


@functools.cache
def speech() -> Tensor:
    """Return the sample conversation of pyannote.audio: 30 s of two speakers, [480000] in [-1, 1] at 16 kHz."""
    import numpy as np

    with wave.open(str(package_folder("pyannote.audio") / "sample" / "sample.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return torch.from_numpy(samples.astype(np.float32) / 32768)


@functools.cache
def is_speech() -> Tensor:
    """Return for each sample of `speech()` whether somebody was annotated as speaking, [480000]."""
    marks = torch.zeros(len(speech()), dtype=torch.bool)
    for line in (package_folder("pyannote.audio") / "sample" / "sample.rttm").read_text().splitlines():
        start, length = (float(field) for field in line.split()[3:5])
        marks[round(start * SAMPLE_RATE) : round((start + length) * SAMPLE_RATE)] = True
    return marks
