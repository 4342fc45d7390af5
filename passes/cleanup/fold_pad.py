"""A pad before a convolution or a pooling becomes the padding of that op, where the two mean the same.

conv2d(pad(x, [1, 1, 1, 1])) -> conv2d(x, padding=[1, 1])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.cleanup.layers import CONVOLUTIONS, PADDED_BY_NAME, explicit_padding, set_arguments, sizes

aten = torch.ops.aten
Op = Callable[..., Any]

PADS = {aten.pad.default, aten.constant_pad_nd.default}
# The number of spatial dimensions.
MAX_POOLS: dict[Op, int] = {aten.max_pool1d.default: 1, aten.max_pool2d.default: 2, aten.max_pool3d.default: 3}
AVG_POOLS: dict[Op, int] = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}


@dataclass(frozen=True)
class FoldPad:
    """Fold a constant pad into the padding of the op that reads it; exactly the same result.

    Folded:
    1. A pad with zeros before conv1d, conv2d, conv3d; it adds to the padding that the convolution has.
    2. A pad with -inf before max_pool1d, 2d, 3d.
    3. A pad with zeros before avg_pool1d, 2d, 3d that counts its padding, or has none of its own.
    4. A pad with several readers: into each that can take it; it stays for the others.
    Left alone:
    5. A pad that is not the same on both sides of a dimension, that crops, or that changes batch or channels.
    6. Another mode or value, and amounts that are computed in the graph.
    7. A transposed convolution, whose padding crops.
    8. Pooling with ceil_mode, or whose padding would exceed half of its kernel (the op does not allow that).
    """

    def __call__(self, program: Program) -> Program:
        """Return the folded Program, or `program` itself if nothing can be folded."""
        if not any(_padding(node) is not None for node in program.graph.nodes):
            return program
        edit = Edit(program, by=self)
        for node in edit.calls(*CONVOLUTIONS, *MAX_POOLS, *AVG_POOLS):
            while (padding := _padding(node)) is not None:
                _fold(node, padding)
        return edit.finish()


def _fold(node: fx.Node, padding: list[int]) -> None:
    pad = node.args[0]
    assert isinstance(pad, fx.Node)
    node.target = PADDED_BY_NAME.get(node.target, node.target)
    node.args = (pad.args[0], *node.args[1:])
    set_arguments(node, padding=padding, **({"count_include_pad": True} if node.target in AVG_POOLS else {}))


def _padding(node: fx.Node) -> list[int] | None:
    """Return the padding with which a call can do without the pad before it; None if it cannot."""
    op: Any = node.target if node.op == "call_function" else None
    pad = node.args[0] if node.args else None
    if not isinstance(pad, fx.Node) or pad.target not in PADS or not pad.args:
        return None
    if op in CONVOLUTIONS:
        amounts = _symmetric(pad, CONVOLUTIONS[op].spatial, 0.0)
        own = explicit_padding(node)
        return None if amounts is None or own is None else [a + b for a, b in zip(amounts, own, strict=True)]
    if op in MAX_POOLS:
        return _pool_padding(node, pad, MAX_POOLS[op], -math.inf)
    if op in AVG_POOLS:
        counted = argument(node, "count_include_pad") or not any(sizes(argument(node, "padding"), AVG_POOLS[op]))
        return _pool_padding(node, pad, AVG_POOLS[op], 0.0) if counted else None
    return None


def _pool_padding(node: fx.Node, pad: fx.Node, spatial: int, value: float) -> list[int] | None:
    amounts = _symmetric(pad, spatial, value)
    if amounts is None or argument(node, "ceil_mode"):
        return None
    kernel = sizes(argument(node, "kernel_size"), spatial)
    padding = [a + b for a, b in zip(amounts, sizes(argument(node, "padding"), spatial), strict=True)]
    return padding if all(2 * p <= k for p, k in zip(padding, kernel, strict=True)) else None


def _symmetric(pad: fx.Node, spatial: int, value: float) -> list[int] | None:
    """Return the amounts of a pad, first dimension first; None if `spatial` amounts cannot express it."""
    amounts, fill = list(argument(pad, "pad")), argument(pad, "value")
    if pad.target is aten.pad.default and argument(pad, "mode") != "constant":
        return None
    if isinstance(fill, fx.Node) or float(fill or 0) != value or not all(isinstance(a, int) for a in amounts):
        return None
    pairs = [(amounts[i], amounts[i + 1]) for i in range(0, len(amounts), 2)]  # last dimension first
    pairs += [(0, 0)] * (spatial - len(pairs))
    if any(left != right or left < 0 for left, right in pairs) or any(left for left, _ in pairs[spatial:]):
        return None
    return [left for left, _ in pairs[:spatial]][::-1]
