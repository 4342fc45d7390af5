"""Models with trained weights as cases of the comparison: with a task that every tool's file is scored on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.peer_tools.cases import CASES, SENTENCE_TOKENS, Case, Kind, Split
from benchmarks.real_models import RealModel
from benchmarks.real_models.efficientnet import EFFICIENTNET_CROPS, EFFICIENTNET_VIEWS
from benchmarks.real_models.faces import FACE_NETWORKS
from benchmarks.real_models.fashion import FASHION
from benchmarks.real_models.model import Inputs, batches
from benchmarks.real_models.pitch import PITCH
from benchmarks.real_models.sentences import MINILM_SENTIMENT

Run = Callable[..., Sequence[Tensor]]


def real_case(model: RealModel, kind: Kind) -> Case:
    """Describe a real model; its calibration data is cut into samples, of which the last quarter is held out."""
    fixed = _fixed_length if model is MINILM_SENTIMENT else lambda item: item
    return Case(
        model.name,
        kind,
        model.build,
        functools.partial(_samples, model, fixed),
        evaluate=lambda run: model.evaluate(one_by_one(run, fixed)),
        metric=model.metric,
    )


def _samples(model: RealModel, fixed: Callable[[Inputs], Inputs], split: Split, count: int) -> Iterator[Inputs]:
    """Give samples of batch 1, from the start again when there are fewer."""
    every = [sample for item in model.calibration() for sample in singles(fixed(item))]
    cut = 3 * len(every) // 4
    part = every[:cut] if split == "calibration" else every[cut:]
    return (part[index % len(part)] for index in range(count))


def singles(item: Inputs) -> list[Inputs]:
    """Cut a batch into samples of batch 1."""
    if isinstance(item, Mapping):
        columns = zip(*(batches(tensor, 1) for tensor in item.values()), strict=True)
        return [dict(zip(item, row, strict=True)) for row in columns]
    return [tuple(row) for row in zip(*(batches(tensor, 1) for tensor in item), strict=True)]


def one_by_one(run: Run, fixed: Callable[[Inputs], Inputs]) -> Callable[..., Any]:
    """Make what is called like the model, with any batch, of what takes tensors of one sample."""

    def call(*args: Tensor, **kwargs: Tensor) -> tuple[Tensor, ...]:
        item: Inputs = kwargs or args
        rows = [run(*_tensors(sample)) for sample in singles(fixed(item))]
        outputs = [torch.cat(column) for column in zip(*rows, strict=True)]
        length = _tensors(item)[0].shape[1] if fixed is _fixed_length else None
        return tuple(_of_length(output, length) for output in outputs)

    return call


def _tensors(item: Inputs) -> tuple[Tensor, ...]:
    return tuple(item.values()) if isinstance(item, Mapping) else item


def _fixed_length(item: Inputs) -> Inputs:
    """Pad or cut token ids and masks to SENTENCE_TOKENS."""
    assert isinstance(item, Mapping)
    return {name: functional.pad(tensor, (0, SENTENCE_TOKENS - tensor.shape[1])) for name, tensor in item.items()}


def _of_length(output: Tensor, length: int | None) -> Tensor:
    """Give hidden states [n, t, width] the length that the caller's tokens had; what was cut off is zero."""
    return output if length is None else functional.pad(output, (0, 0, 0, length - output.shape[1]))


KINDS: Sequence[tuple[Kind, Sequence[RealModel]]] = (
    ("cnn", (EFFICIENTNET_VIEWS, EFFICIENTNET_CROPS, PITCH, *FACE_NETWORKS)),
    ("cnn", tuple(model for model in FASHION if "cnn" in model.name)),
    ("transformer", (MINILM_SENTIMENT, *(model for model in FASHION if "vit" in model.name))),
)
REAL_CASES: Mapping[str, Case] = {model.name: real_case(model, kind) for kind, models in KINDS for model in models}
ALL_CASES: Mapping[str, Case] = {**CASES, **REAL_CASES}
