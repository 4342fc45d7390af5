"""Two linear layers without a nonlinearity between them are one.

W2 (W1 x + b1) + b2 = (W2 W1) x + (W2 b1 + b2)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.cleanup.layers import CONVOLUTIONS, Layer, explicit_padding, layer_at, set_arguments, sizes, write

aten = torch.ops.aten
CONVOLUTION: dict[int, Callable[..., Any]] = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}


@dataclass(frozen=True)
class MergeLinear:
    """Merge a layer into the one before it, where that is exact and costs neither parameters nor operations.

    Merged:
    1. linear -> linear.
    2. conv -> conv with kernel 1, any stride.
    3. conv with kernel 1 and stride 1 -> conv; with zero padding only if the first has no bias.
    4. Three and more in a row, as long as each merge pays.
    Left alone:
    5. Merges that cost: a bottleneck (few channels between the two) is cheaper as it is.
    6. A first layer whose output has another use.
    7. Groups; a first layer with kernel 1 and padding; two kernels larger than 1.
    8. Zero padding between the two where the first has a bias: the border would differ.

    The merged layer has the names of the first. It is a Parameter if that was one; the arithmetic is float64.
    """

    def __call__(self, program: Program) -> Program:
        """Return the merged Program, or `program` itself if nothing can be merged."""
        if not any(_find(program.module, node) for node in program.graph.nodes):
            return program
        edit = Edit(program, by=self)
        while any([_merge(edit, node) for node in edit.calls(aten.linear.default, *CONVOLUTIONS)]):
            pass  # the merged layer may merge again
        return edit.finish()


def _find(module: nn.Module, node: fx.Node) -> tuple[Layer, Layer] | None:
    """Return the two layers to merge if `node` is the second of such a pair."""
    if node.op != "call_function" or not (node.target is aten.linear.default or node.target in CONVOLUTIONS):
        return None
    first = layer_at(module, node.args[0]) if node.args else None
    second = layer_at(module, node) if first is not None and len(first.node.users) == 1 else None
    if first is None or second is None or first.kind != second.kind or first.kind.transposed:
        return None
    if first.weight.dtype != second.weight.dtype or not _pays(first, second):
        return None
    return (first, second) if first.kind.spatial == 0 or _composes(first, second) else None


def _pays(first: Layer, second: Layer) -> bool:
    taps = max(_taps(first), _taps(second))
    merged = second.outputs * first.inputs * taps
    if _taps(second) > 1 and not _shrinks(second):
        return merged <= second.weight.numel()  # what the first costs is spent on fewer positions
    return merged <= first.weight.numel() + second.weight.numel()


def _taps(layer: Layer) -> int:
    return int(layer.weight[0, 0].numel())


def _shrinks(layer: Layer) -> bool:
    """Say whether a convolution has no more output positions than input positions."""
    spatial = layer.kind.spatial
    padding, dilation = explicit_padding(layer.node), sizes(argument(layer.node, "dilation"), spatial)
    if padding is None:
        return True  # padding="same"
    spans = [d * (int(k) - 1) for d, k in zip(dilation, layer.weight.shape[2:], strict=True)]
    return all(2 * p <= span for p, span in zip(padding, spans, strict=True))


def _composes(first: Layer, second: Layer) -> bool:
    if first.groups > 1 or second.groups > 1 or explicit_padding(first.node) is None:
        return False
    padding = explicit_padding(second.node)
    if padding is None:
        return False
    if _taps(second) == 1:
        return not any(padding)
    if _taps(first) > 1 or any(explicit_padding(first.node) or ()):
        return False
    if sizes(argument(first.node, "stride"), first.kind.spatial) != [1] * first.kind.spatial:
        return False
    return not any(padding) or first.bias is None or not bool(first.bias.any())


def _merge(edit: Edit, node: fx.Node) -> bool:
    pair = None if node._erased else _find(edit.module, node)
    if pair is None:
        return False
    first, second = pair
    changes = _geometry(first, second) if first.kind.spatial else {}
    write(edit, first, *_product(first, second))
    first.node.target = CONVOLUTION.get(first.kind.spatial, aten.linear.default)
    set_arguments(first.node, **changes)
    first.node.meta["val"] = node.meta["val"]
    edit.replace(node, first.node)
    return True


def _product(first: Layer, second: Layer) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias of the merged layer, float64: [outputs of the second, inputs of the first, ...]."""
    left, right = second.weight.detach().double(), first.weight.detach().double()
    if _taps(second) == 1:
        weight = torch.einsum("om,mi...->oi...", left.flatten(1), right)
    else:
        weight = torch.einsum("om...,mi->oi...", left, right.flatten(1))
    bias = None if second.bias is None else second.bias.detach().double()
    if first.bias is not None:
        added = left.flatten(2).sum(-1) @ first.bias.detach().double() if left.ndim > 2 else left @ first.bias.double()
        bias = added if bias is None else bias + added
    return weight, bias


def _geometry(first: Layer, second: Layer) -> dict[str, Any]:
    """Return stride, padding and dilation of the merged convolution."""
    spatial, wide = first.kind.spatial, first if _taps(second) == 1 else second
    strides = [sizes(argument(layer.node, "stride"), spatial) for layer in (first, second)]
    return {
        "stride": [a * b for a, b in zip(*strides, strict=True)],
        "padding": explicit_padding(wide.node),
        "dilation": sizes(argument(wide.node, "dilation"), spatial),
    }
