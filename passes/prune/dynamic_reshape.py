"""Reshapes that mix dynamic and static dimensions: a batch of heads, windows of a batch, batch and time in one.

A dynamic dimension may hold a static one inside: [batch * 12] is 12 heads for each sample. Its label has as many
positions as the captured example, and repeats: what it says of one sample it says of all. Whatever stands before the
dynamic part (or between two) stays whole; what stands behind it is divided like any static dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fxopt.passes.prune.factor import merge_all, split_all
from fxopt.passes.prune.rule import Call, size_of
from fxopt.passes.prune.symbols import Label, Symbols

BECAUSE = "it is reshaped together with a dynamic dimension"


def reshape_dynamic(
    call: Call, labels: Sequence[Label], before: Sequence[Any], after: Sequence[Any]
) -> list[Label] | None:
    """Return the labels of the sizes `after` that dimensions of the sizes `before` become; None if nothing is known.

    Both hold a dynamic size. The order of positions is (what is before the dynamic part, it, what is behind it).
    """
    if not any(_is_dynamic(size) for size in after):
        return None
    last_old, last_new = (max(i for i, size in enumerate(sizes) if _is_dynamic(size)) for sizes in (before, after))
    front = [i for i in range(last_old) if not _is_dynamic(before[i])]
    others = [i for i in range(last_old) if _is_dynamic(before[i])]
    tail, whole = list(after[last_new + 1 :]), size_of(after[last_new])
    for period in _periods(call.symbols, labels[last_old], before[last_old]):
        count = period * math.prod(before[last_old + 1 :])
        inside, rest = divmod(count, math.prod(tail))
        if rest or not inside or whole % inside:
            continue
        call.freeze(*(labels[i] for i in (*front, *others)), because=BECAUSE)
        behind = merge_all(call.symbols, [labels[last_old][:period], *labels[last_old + 1 :]])
        inner, *result = split_all(call.symbols, behind, [inside, *tail])
        front_new = [call.staying(size, because=BECAUSE) for size in after[:last_new]]
        return [*front_new, np.tile(inner, whole // inside), *result]
    return None


def _periods(symbols: Symbols, label: Label, size: Any) -> list[int]:
    """List after how many positions a label of a dynamic size may repeat: its known factor first."""
    factor, atoms = int(size.node.expr.as_coeff_Mul()[0]), symbols.leaves(label)
    smaller = [period for period in range(1, factor) if factor % period == 0]
    return [
        n
        for n in (factor, *smaller)
        if len(label) % n == 0 and bool((atoms == np.resize(atoms[:n], atoms.shape)).all())
    ]


def _is_dynamic(size: Any) -> bool:
    return not isinstance(size, int)
