"""Keyword inputs of the transformers models: text, images, sound, and pairs of them.

All values depend on (kind, batch, seed) only. Text is padded at the end in every second row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.zoo_models.images import structured_images

VOCABULARY = 120  # token ids; the first four are kept for padding, start, end and the like
IMAGE_SIZE = 64
MEL_BANDS = 16
SPECTROGRAM_FRAMES = 64
TEXT_LENGTHS = (16, 23)  # of the example inputs, and of the other inputs
SAMPLES = (4000, 5120)


@dataclass(frozen=True)
class InputKind:
    """A kind of keyword inputs.

    Attributes:
        make: (batch, other) -> inputs; `other` asks for other values, and other lengths where these are dynamic.
        dynamic: "batch", or the named dimensions of every input.
    """

    make: Callable[[int, bool], dict[str, Tensor]]
    dynamic: str | dict[str, dict[int, str]]


def _text(batch: int, other: bool) -> dict[str, Tensor]:
    length = TEXT_LENGTHS[other]
    ids = torch.randint(4, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(10 + other))
    mask = torch.ones_like(ids)
    for row in range(1, batch, 2):
        mask[row, length - 2 - row % 5 :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def _typed_text(batch: int, other: bool) -> dict[str, Tensor]:
    inputs = _text(batch, other)
    segments = torch.zeros_like(inputs["input_ids"])
    segments[:, segments.shape[1] // 2 :] = 1
    return {**inputs, "token_type_ids": segments}


def _text_pair(batch: int, other: bool) -> dict[str, Tensor]:
    return {**_text(batch, other), "decoder_input_ids": _targets(batch, other)}


def _targets(batch: int, other: bool) -> Tensor:
    generator = torch.Generator().manual_seed(20 + other)
    return torch.randint(4, VOCABULARY, (batch, 11 if other else 7), generator=generator)


def _page(batch: int, other: bool) -> dict[str, Tensor]:
    inputs = _text(batch, other)
    corners = torch.randint(0, 40, (*inputs["input_ids"].shape, 2), generator=torch.Generator().manual_seed(30 + other))
    return {**inputs, "bbox": torch.cat([corners, corners + 20], dim=-1)}


def _image(batch: int, other: bool) -> dict[str, Tensor]:
    return {"pixel_values": structured_images(batch, 3, IMAGE_SIZE, IMAGE_SIZE, seed=int(other))}


def _captioned_image(batch: int, other: bool) -> dict[str, Tensor]:
    return {**_text(batch, other), **_image(batch, other)}


def _sound(batch: int, other: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(40 + other)
    time = torch.arange(SAMPLES[other]) / 16000
    tones = 100 + 2000 * torch.rand(batch, 3, 1, generator=generator)
    wave = torch.sin(2 * torch.pi * tones * time).mean(1) + 0.1 * torch.randn(batch, len(time), generator=generator)
    return {"input_values": wave}


def _spectrogram(batch: int, other: bool) -> Tensor:
    """Draw (batch, MEL_BANDS, SPECTROGRAM_FRAMES) log-mel-like values in [-2, 2]."""
    return structured_images(batch, 1, MEL_BANDS, SPECTROGRAM_FRAMES, seed=50 + other)[:, 0]


def _transcribed_spectrogram(batch: int, other: bool) -> dict[str, Tensor]:
    return {"input_features": _spectrogram(batch, other), "decoder_input_ids": _targets(batch, other)}


def _spectrogram_image(batch: int, other: bool) -> dict[str, Tensor]:
    return {"input_values": _spectrogram(batch, other).transpose(1, 2)}


def _named(*inputs: str) -> dict[str, dict[int, str]]:
    return {name: {0: "batch", 1: "sequence"} for name in inputs}


TARGETS = {"decoder_input_ids": {0: "batch", 1: "decoder_sequence"}}
TEXT = InputKind(_text, _named("input_ids", "attention_mask"))
TYPED_TEXT = InputKind(_typed_text, _named("input_ids", "attention_mask", "token_type_ids"))
PAGE = InputKind(_page, _named("input_ids", "attention_mask", "bbox"))
TEXT_PAIR = InputKind(_text_pair, {**_named("input_ids", "attention_mask"), **TARGETS})
IMAGE = InputKind(_image, "batch")
CAPTIONED_IMAGE = InputKind(_captioned_image, {**_named("input_ids", "attention_mask"), "pixel_values": {0: "batch"}})
SOUND = InputKind(_sound, {"input_values": {0: "batch", 1: "samples"}})
TRANSCRIBED_SPECTROGRAM = InputKind(_transcribed_spectrogram, {"input_features": {0: "batch"}, **TARGETS})
SPECTROGRAM_IMAGE = InputKind(_spectrogram_image, "batch")
