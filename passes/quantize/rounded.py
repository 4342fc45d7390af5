"""Weights rounded with error feedback, kept only where that takes noise out of the outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor

from fxopt.data import calibration_inputs, first_samples, split_items
from fxopt.graph.memory import release_memory
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.passes.quantize.correct_bias import AT_ONCE, WORTH_IT, WORTH_IT_FITTED, noise_left
from fxopt.passes.quantize.round_gptq import RoundGptq

SAMPLES, JUDGED = 32, 8  # half of the samples are for rounding, and up to so many of the others to judge it by
# The few layers of more inputs an output (the last 3x3 kernels of a ResNet, a VGG's linears) would take most of the
# time, and memory for matrices that are larger than the weights.
LARGEST = 1536

Items = list[tuple[Tensor, ...]]


def apart(data: Iterable[Any], program: Program) -> tuple[Items, Items]:
    """Return samples in two halves, one to fit to and one to judge by; both are the same if there is one.

    They are the last SAMPLES of the first two times as many: what is tried is judged by the first ones (choose.py,
    within_budget.py), and weights that were fitted to them would look better there than they are.
    """
    found = split_items(first_samples(calibration_inputs(data, program), 2 * SAMPLES), program, AT_ONCE)
    items = [item for item in found if all(tensor.numel() for tensor in item)]
    items = first_samples(reversed(items), SAMPLES)[::-1]
    half = (len(items) + 1) // 2
    return items[:half], items[half:] or items


def rounded_if_better(calibrated: Program, fitted: Items, others: Items) -> Program:
    """Round weights by RoundGptq, fitted to samples, if that brings the outputs of others nearer to the float ones."""
    if not fitted:
        return calibrated
    rounded = RoundGptq(fitted, largest=LARGEST)(calibrated)
    release_memory()
    if noise_left(calibrated, rounded, first_samples(others, JUDGED)) < worth_it(fitted, others):
        return replace(rounded, notes=calibrated.notes)  # which layers are too large for it is of no interest here
    edit = Edit(calibrated, by=None)
    edit.note("Rounding weights with feedback does not bring the outputs nearer to the float ones; it is left out.")
    return edit.finish()


def worth_it(fitted: Items, others: Items) -> float:
    """Return what may be left of the outputs' noise: less where what was fitted to also judges."""
    return WORTH_IT_FITTED if others[0] is fitted[0] else WORTH_IT
