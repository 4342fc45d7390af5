"""Taps: which extra outputs of a Program are compared with which in training, and by what loss.

A Program with taps is called like any other; its result is `(result of the student, (tapped values, ...))`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


class Loss(Protocol):
    """What compares a student's value with a teacher's: a number to minimise, its weight included.

    A loss with an attribute `any_width` that is true takes values whose widths differ.
    """

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        """Return the loss, a tensor of no dimensions.

        - `student`, `teacher`: the values, of one shape.
        - `labels`: the classes [batch, ...] of the item, or None where it has none; below 0 where there is no class.
        - `valid`: bool, of the leading dimensions of the values ([batch] or [batch, tokens]): what counts; None: all.
        """


@runtime_checkable
class StoredValues(Protocol):
    """A teacher's outputs that were computed before, by the ids of samples."""

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the values [batch, ...] of samples with these ids [batch]."""


@dataclass(frozen=True)
class Tap:
    """Two values to bring together.

    - `name`: for logs. `loss`: what compares the values.
    - `student`: the position of the student's value among the flat outputs of the Program.
    - `teacher`: the position of the teacher's, or where its values are stored.
    """

    name: str
    loss: Loss
    student: int
    teacher: int | StoredValues


def tap_losses(
    taps: Sequence[Tap], outputs: Sequence[Tensor], labels: Tensor | None, valid: Tensor | None, ids: Tensor | None
) -> dict[str, Tensor]:
    """Return the loss of each tap by its name, from the flat outputs of a Program.

    `ids`: of the samples, where a teacher's values are stored. See Loss for `labels` and `valid`.
    """
    found = {}
    for tap in taps:
        if isinstance(tap.teacher, int):
            teacher = outputs[tap.teacher]
        else:
            assert ids is not None
            teacher = tap.teacher(ids)
        found[tap.name] = tap.loss(outputs[tap.student], teacher, labels, valid)
    return found
