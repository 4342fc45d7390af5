"""Silero's voice activity detector: a convolutional STFT, four convolutions and an LSTM cell, run as a stream."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.real_models.audio import is_speech, speech
from benchmarks.real_models.model import Inputs, RealModel, batches, output_tensors, take
from benchmarks.real_models.packages import package_folder

FRAME = 512  # samples that a call adds
CONTEXT = 64  # samples of the previous frame that a call sees again
HALF = 15 * 16_000 // FRAME  # frames in the scored first half of the recording


class VoiceActivity(nn.Module):
    """The 16 kHz network as a pure function: (frame, state) → (probability of speech, next state)."""

    def __init__(self) -> None:
        super().__init__()
        self.stft = nn.Conv1d(1, 258, 256, stride=128, bias=False)  # 129 real rows, then 129 imaginary rows
        channels, strides = (129, 128, 64, 64, 128), (1, 2, 2, 1)
        self.encoder = nn.ModuleList(
            nn.Conv1d(channels[i], channels[i + 1], 3, strides[i], padding=1) for i in range(len(strides))
        )
        self.cell = nn.LSTMCell(128, 128)
        self.head = nn.Conv1d(128, 1, 1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Score a frame. x: [n, 576] in [-1, 1]; state: [2, n, 128], zeros at the start → [n, 1], [2, n, 128]."""
        spectrum = self.stft(functional.pad(x.unsqueeze(1), (0, CONTEXT), mode="reflect"))
        real, imaginary = spectrum.chunk(2, dim=1)
        hidden = torch.sqrt(real * real + imaginary * imaginary)
        for convolution in self.encoder:
            hidden = torch.relu(convolution(hidden))
        output, cell = self.cell(hidden.squeeze(-1), (state[0], state[1]))
        logit = self.head(torch.relu(output).unsqueeze(-1))
        return torch.sigmoid(logit).squeeze(-1), torch.stack((output, cell))


def build() -> nn.Module:
    """Load the weights of the package's TorchScript file (its .safetensors file holds another checkpoint)."""
    path = package_folder("silero_vad") / "data" / "silero_vad.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package has no other file with these weights
        loaded = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    renamed = {"stft.weight": loaded["_model.stft.forward_basis_buffer"]}
    for name, module in {"cell": "decoder.rnn", "head": "decoder.decoder.2"}.items():
        prefix = f"_model.{module}."
        renamed |= {f"{name}.{key.removeprefix(prefix)}": loaded[key] for key in loaded if key.startswith(prefix)}
    for i in range(4):
        for kind in ("weight", "bias"):
            renamed[f"encoder.{i}.{kind}"] = loaded[f"_model.encoder.{i}.reparam_conv.{kind}"]
    model = VoiceActivity()
    model.load_state_dict(renamed)
    return model.eval()


@functools.cache
def frames() -> Tensor:
    """Cut the recording into the network's frames, each led by the end of the one before: [937, 576]."""
    padded = functional.pad(speech(), (CONTEXT, 0))
    return padded.unfold(0, CONTEXT + FRAME, FRAME).contiguous()


def stream(model: Callable[..., Any], samples: Tensor) -> tuple[Tensor, Tensor]:
    """Run frames [t, 576] one after another → probabilities [t] and the state before each frame [2, t, 128]."""
    state = torch.zeros(2, 1, 128)
    probabilities, states = [], []
    with torch.no_grad():
        for frame in batches(samples, 1):
            states.append(state)
            probability, state = output_tensors(model(frame, state))
            probabilities.append(probability.reshape(1))
    return torch.cat(probabilities), torch.cat(states, dim=1)


@functools.cache
def unscored() -> tuple[Tensor, Tensor]:
    """Return the second half's frames [469, 576] and the float network's state before each [2, 469, 128]."""
    rest = frames()[HALF:]
    return rest, stream(build(), rest)[1]


def inputs(batch: int) -> Inputs:
    """Return frames and states of the second half."""
    samples, states = unscored()
    return take(samples, batch), take(states.transpose(0, 1), batch).transpose(0, 1).contiguous()


def calibration() -> list[Inputs]:
    """Return the second half's frames and states, 16 at a time."""
    samples, states = unscored()
    return [
        (x, state.transpose(0, 1))
        for x, state in zip(batches(samples, 16), batches(states.transpose(0, 1), 16), strict=True)
    ]


def frame_f1(model: Callable[..., Any], count: int) -> float:
    """Return F1 of "speech" at probability 0.5 over the first `count` frames; truth is the annotated majority."""
    found = stream(model, frames()[:count])[0] > 0.5
    truth = is_speech()[: count * FRAME].reshape(count, FRAME).float().mean(1) > 0.5
    return (2 * (found & truth).sum() / (found.sum() + truth.sum())).item()


VOICE_ACTIVITY = RealModel(
    name="silero_vad",
    build=build,
    inputs=inputs,
    dynamic={"x": {0: "batch"}, "state": {1: "batch"}},
    calibration=calibration,
    evaluate=lambda model: frame_f1(model, HALF),
    metric="frame F1",
    data=f"the first 15 s ({HALF} frames of 32 ms) of pyannote.audio's sample; calibrated on the other 15 s",
)
