"""Which entries of a value count in a loss, and where its classes are.

Everything is computed in at least float32. What does not count is taken out before anything is computed, so whatever
padding holds, NaN included, changes neither a loss nor its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxopt.errors import PassError


def check_positive(by: object, **numbers: float) -> None:
    """Raise PassError for an option that is not a positive number."""
    for name, number in numbers.items():
        if not (number > 0 and math.isfinite(number)):
            raise PassError(f"{type(by).__name__}({name}={number!r}) must be a positive number.")


def check_parts(by: object, **weights: float) -> None:
    """Raise PassError unless the weights of a loss's parts are 0 or more, and one of them is more."""
    if not all(weight >= 0 and math.isfinite(weight) for weight in weights.values()) or not any(weights.values()):
        text = ", ".join(f"{name}={weight!r}" for name, weight in weights.items())
        raise PassError(f"{type(by).__name__}({text}): each must be 0 or more, and one of them positive.")


def of_one_shape(by: object, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both values in at least float32. Raises PassError for two shapes."""
    if student.shape != teacher.shape:
        raise PassError(
            f"{type(by).__name__}: the student's value is {list(student.shape)}, the teacher's {list(teacher.shape)}; "
            "compare values of one shape."
        )
    return at_least_float32(by, student), at_least_float32(by, teacher)


def at_least_float32(by: object, value: Tensor) -> Tensor:
    """Return a value in float32, or as it is in float64. Raises PassError for values that are no real numbers."""
    if not value.is_floating_point():
        raise PassError(f"{type(by).__name__} compares real numbers, got {value.dtype}; tap a value that is one.")
    return value if value.dtype is torch.float64 else value.float()


def fits(by: object, valid: Tensor | None, value: Tensor) -> bool:
    """Say whether `valid` tells positions of a value [batch, ...] apart: its dimensions lead those of the value.

    A mask of tokens says nothing of a value that has none, such as the [batch, classes] of a classifier. Raises
    PassError for another batch.
    """
    if valid is None:
        return False
    if not value.ndim or len(value) != len(valid):
        raise PassError(
            f"{type(by).__name__}: what is valid is {list(valid.shape)}, the value {list(value.shape)}; "
            "compare values whose first dimension is the batch."
        )
    return valid.ndim < value.ndim and value.shape[: valid.ndim] == valid.shape


def counted(by: object, value: Tensor, valid: Tensor | None) -> Tensor:
    """Return what counts of a value [batch, ...]: [count, ...] where `valid` fits, else the value as it is."""
    if not fits(by, valid, value):
        return value
    assert valid is not None
    return value[valid.bool()]


def samples_of(by: object, value: Tensor, valid: Tensor | None) -> Tensor:
    """Return the valid samples of a value [batch, ...], with zeros where a sample has positions that are not valid."""
    if not fits(by, valid, value):
        return value
    assert valid is not None
    if valid.ndim == 1:
        return value[valid.bool()]
    return value.masked_fill(~valid.bool().reshape(*valid.shape, *[1] * (value.ndim - valid.ndim)), 0)


def embeddings(by: object, student: Tensor, teacher: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return two values [batch, ...] as the embeddings [count, width] of the same valid samples.

    Raises PassError for values without samples in common.
    """
    if student.ndim < 2 or teacher.ndim < 2 or len(student) != len(teacher):
        raise PassError(
            f"{type(by).__name__}: values {list(student.shape)} and {list(teacher.shape)} are not embeddings "
            "[batch, ...] of one batch; tap values whose first dimension is the batch."
        )
    found, expected = (samples_of(by, at_least_float32(by, value), valid).flatten(1) for value in (student, teacher))
    return found, expected


def class_dimension(value: Tensor, labels: Tensor) -> int | None:
    """Return the dimension of a value that its labels lack: the last or the second; None if the shapes do not fit."""
    if value.ndim < 2 or labels.ndim != value.ndim - 1:
        return None
    if labels.shape == value.shape[:-1]:
        return -1
    return 1 if labels.shape == (value.shape[0], *value.shape[2:]) else None


def class_rows(
    by: object, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return what counts of two values as rows [count, classes].

    Classes are the last dimension, unless labels [batch, ...] of that very shape say that they are the second.
    """
    student, teacher = of_one_shape(by, student, teacher)
    if student.ndim < 2:
        raise PassError(f"{type(by).__name__} needs values [batch, ..., classes], got {list(student.shape)}.")
    dim = -1 if labels is None else class_dimension(student, labels) or -1
    values = [value.movedim(dim, -1) for value in (student, teacher)]
    found, expected = (counted(by, value, valid).reshape(-1, value.shape[-1]) for value in values)
    return found, expected


def class_entries(
    by: object, values: Sequence[Tensor], labels: Tensor | None, valid: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Return the rows [count, classes] of logits of one shape, and their classes [count] as int64.

    What counts has a label that is a class (0 or more), and is valid. Raises PassError for labels that are missing, no
    integers, of another shape, or not below the number of classes.
    """
    name, shape = type(by).__name__, list(values[0].shape)
    if labels is None:
        raise PassError(f"{name} needs labels, and the item has none; give items (inputs..., labels) or leave it out.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        raise PassError(f"{name}: the labels are {labels.dtype}; give the numbers of classes, as integers.")
    dim = class_dimension(values[0], labels)
    if dim is None:
        raise PassError(
            f"{name}: labels {list(labels.shape)} do not fit logits {shape}; they must have all dimensions of the "
            "logits but the last, or but the second."
        )
    chosen = labels >= 0
    if fits(by, valid, labels.unsqueeze(-1)):
        assert valid is not None
        chosen = chosen & valid.bool().reshape(*valid.shape, *[1] * (labels.ndim - valid.ndim))
    classes = labels[chosen].long()
    if len(classes) and int(classes.max()) >= values[0].shape[dim]:
        raise PassError(
            f"{name}: there is a label {int(classes.max())}, but logits {shape} of {values[0].shape[dim]} classes."
        )
    return [value.movedim(dim, -1)[chosen] for value in values], classes


def first_tensor(by: object, result: Any) -> Tensor:
    """Return the first tensor of a model's result, in at least float32. Raises PassError if there is none."""
    found = next((leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)), None)
    if found is None:
        raise PassError(f"{type(by).__name__}: the model's result, a {type(result).__name__}, holds no tensor.")
    return at_least_float32(by, found)


def mean_of(values: Tensor) -> Tensor:
    """Return the mean of values of any shape; 0 if there are none, so that an empty share of a batch adds nothing."""
    return values.sum() / max(values.numel(), 1)
