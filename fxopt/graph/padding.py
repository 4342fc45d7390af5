"""Padding: the positions of a batch of sequences that an attention mask leaves out. Nobody reads what is made there.

So they do not count where outputs are compared: they can be most of a batch, and come out quite differently without
any harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fxopt.graph.interpret import run_together
from fxopt.graph.program import Program

MASK = "attention_mask"  # [batch, sequence], above 0 where there is a token; as the models of transformers name it


def real_positions(names: Sequence[str], inputs: Sequence[Tensor]) -> Tensor | None:
    """Return where inputs of these names hold no padding, bool [batch, sequence]; None if they have no such mask."""
    mask = next((value for name, value in zip(names, inputs, strict=True) if name == MASK), None)
    if mask is None or mask.ndim != 2:
        return None
    real = mask > 0
    return real if real.any() and not real.all() else None


def without_padding(value: Any, real: Tensor | None) -> Any:
    """Return the real positions [count, ...] of a value [batch, sequence, ...]; any other value as it is."""
    fits = real is not None and isinstance(value, Tensor) and value.shape[:2] == real.shape
    return value[real] if fits else value


def run_without_padding(program: Program, items: Sequence[Sequence[Tensor]]) -> list[Any]:
    """Run a Program on items side by side and return the real positions of their outputs, one item after the other."""
    names = [spec.name for spec in program.inputs]
    found = zip(items, run_together(program, items), strict=True)
    return [
        without_padding(value, real)
        for item, outputs in found
        for real in [real_positions(names, item)]
        for value in outputs
    ]
