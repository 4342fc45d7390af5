"""What is done to tapped values so that they have one shape: selection of positions, and learned linear maps."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from fxopt.errors import PassError
from fxopt.graph.rewrite import Edit

aten = torch.ops.aten


def selected(edit: Edit, value: fx.Node, left: Mapping[int, Tensor]) -> fx.Node:
    """Take the positions of a teacher's value that the student still has."""
    output = edit.graph.output_node()
    for dim, positions in left.items():
        index = edit.add_constant(f"{value.name}_kept", nn.Parameter(positions, requires_grad=False), before=output)
        name = f"{value.name}_left"
        value = edit.call(aten.index_select.default, value, dim, index, before=output, like=value, name=name)
    return value


def projected(edit: Edit, value: fx.Node, target: fx.Node, name: str) -> fx.Node:
    """Map a student's value to the shape of a teacher's, with a trained linear map along the dimension that differs.

    Raises PassError if more than one differs, or one that is dynamic.
    """
    ours, theirs = value.meta["val"].shape, target.meta["val"].shape
    differ = [dim for dim, (a, b) in enumerate(zip(ours, theirs, strict=False)) if str(a) != str(b)]
    if not differ and len(ours) == len(theirs):
        return value
    if len(ours) != len(theirs) or len(differ) > 1 or not isinstance(ours[differ[0]], int):
        raise PassError(
            f"Tap {name}: the student's value is {list(ours)}, the teacher's {list(theirs)}. A learned map can take "
            "one fixed dimension to another size; tap two values that differ in one at most."
        )
    return _linear_along(edit, value, differ[0], ours[differ[0]], int(theirs[differ[0]]), name)


def _linear_along(edit: Edit, value: fx.Node, dim: int, size: int, target: int, name: str) -> fx.Node:
    output = edit.graph.output_node()
    weight = edit.add_constant(f"projections.{value.name}.weight", _first_weight(target, size, name), before=output)
    last = value.meta["val"].ndim - 1
    if dim != last:
        value = edit.call(aten.transpose.int, value, dim, last, before=output, like=value)
    value = edit.call(aten.linear.default, value, weight, before=output, like=value)
    return value if dim == last else edit.call(aten.transpose.int, value, dim, last, before=output, like=value)


def _first_weight(rows: int, columns: int, name: str) -> nn.Parameter:
    """Return random weights that keep the variance of what they are applied to; the same in every run."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return nn.Parameter(torch.randn(rows, columns, generator=generator) / math.sqrt(columns))
