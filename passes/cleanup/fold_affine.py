"""A scale or a shift of each channel moves into the layer or batch norm beside it.

(W * x + b) * s + t  = (s W) * x + (s b + t)
W * (x * s + t) + b  = (W s) * x + (W t + b)
bn(x) * s + t        = bn with gamma s and beta s + t
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument, constant, same_metadata
from fxopt.passes.cleanup.layers import (
    accepts_input_shift,
    layer_at,
    like,
    replace_tensor,
    scale_inputs,
    scale_outputs,
    set_arguments,
    write,
)
from fxopt.passes.cleanup.purity import is_training

aten = torch.ops.aten
Op = Callable[..., Any]


def _alpha(node: fx.Node) -> float:
    return float(argument(node, "alpha"))


# (the op, the position of x) -> scale and shift of x, given the call and its other operand c (float64).
AFFINE: dict[tuple[Op, int], Callable[[fx.Node, Tensor], tuple[Tensor, Tensor]]] = {
    (aten.mul.Tensor, 0): lambda node, c: (c, _zero()),
    (aten.mul.Tensor, 1): lambda node, c: (c, _zero()),
    (aten.mul.Scalar, 0): lambda node, c: (c, _zero()),
    (aten.div.Tensor, 0): lambda node, c: (1 / c, _zero()),
    (aten.div.Scalar, 0): lambda node, c: (1 / c, _zero()),
    (aten.add.Tensor, 0): lambda node, c: (_one(), c * _alpha(node)),
    (aten.add.Tensor, 1): lambda node, c: (_one() * _alpha(node), c),
    (aten.add.Scalar, 0): lambda node, c: (_one(), c * _alpha(node)),
    (aten.sub.Tensor, 0): lambda node, c: (_one(), -c * _alpha(node)),
    (aten.sub.Tensor, 1): lambda node, c: (-_one() * _alpha(node), c),
    (aten.sub.Scalar, 0): lambda node, c: (_one(), -c * _alpha(node)),
    (aten.rsub.Scalar, 0): lambda node, c: (-_one() * _alpha(node), c),
}
OPS = tuple({op: None for op, _ in AFFINE})


def _one() -> Tensor:
    return torch.ones((), dtype=torch.float64)


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True)
class FoldAffine:
    """Fold a multiplication or addition of a constant, per channel or one for all, into the layer beside it.

    Folded:
    1. layer -> mul, div, add, sub, rsub: into the outputs of conv, conv_transpose or linear (a layer scale too).
    2. batch norm in inference -> the same: into its weight and bias.
    3. mul, div -> layer: into the inputs.
    4. add, sub, rsub -> conv or linear without zero padding: into the inputs.
    Left alone:
    5. A value between the two that has another use.
    6. A shift before a layer with zero padding or a transposed one: the border would differ.
    7. A constant that varies along another dimension than the channels, or that changes the shape or the dtype.
    8. Operands that are computed in the graph, and results that are not finite (x / 0).

    Weights stay Parameters, keep their names and dtype; the arithmetic is float64.
    """

    def __call__(self, program: Program) -> Program:
        """Return the folded Program, or `program` itself if nothing can be folded."""
        if not any(_find(program.module, node) for node in program.graph.nodes if node.target in OPS):
            return program
        edit = Edit(program, by=self)
        while any([_fold(edit, node) for node in edit.calls(*OPS)]):
            pass  # a fold can bring another one next to a layer
        return edit.finish()


@dataclass(frozen=True)
class _Match:
    """A call that scales and shifts `source`, and the layer or batch norm `into` which it goes."""

    source: fx.Node
    into: fx.Node
    scale: Tensor
    shift: Tensor


def _find(module: nn.Module, node: fx.Node) -> _Match | None:
    for position in (0, 1):
        if (node.target, position) in AFFINE and len(node.args) > 1 and isinstance(node.args[position], fx.Node):
            match = _match(module, node, position)
            if match is not None:
                return match
    return None


def _match(module: nn.Module, node: fx.Node, position: int) -> _Match | None:
    source, operand = node.args[position], node.args[1 - position]
    assert isinstance(source, fx.Node)
    if constant(module, source) is not None or not same_metadata(source.meta["val"], node.meta["val"]):
        return None
    if len(source.users) == 1 and (dim := _output_channel_dim(module, source)) is not None:
        affine = _affine(module, node, position, operand, dim)
        if affine is not None:
            return _Match(source, source, *affine)
    user = next(iter(node.users), None)
    layer = layer_at(module, user) if len(node.users) == 1 else None
    if layer is None or layer.source is not node:
        return None
    affine = _affine(module, node, position, operand, layer.channel_dim)
    if affine is None or (bool(affine[1].any()) and not accepts_input_shift(layer)):
        return None
    return _Match(source, layer.node, *affine)


def _output_channel_dim(module: nn.Module, node: fx.Node) -> int | None:
    layer = layer_at(module, node)
    if layer is not None:
        return layer.channel_dim
    if node.target is not aten.batch_norm.default or is_training(node) or node.args[3] is None:
        return None
    tensors = [argument(node, name) for name in ("weight", "bias")]
    return 1 if all(tensor is None or constant(module, tensor) is not None for tensor in tensors) else None


def _affine(module: nn.Module, node: fx.Node, position: int, operand: Any, dim: int) -> tuple[Tensor, Tensor] | None:
    """Return the scale and shift a call applies along `dim`: float64, `[channels]` or 0-dimensional."""
    value = node.meta["val"]
    if isinstance(operand, fx.Node):
        tensor = constant(module, operand)
        vector = None if tensor is None or tensor.is_complex() else _along(tensor, value.ndim, dim)
    else:
        vector = torch.tensor(operand, dtype=torch.float64) if type(operand) in (int, float) else None
    if vector is None:
        return None
    scale, shift = AFFINE[node.target, position](node, vector)  # type: ignore[index]
    return (scale, shift) if bool(scale.isfinite().all() & shift.isfinite().all()) else None


def _along(tensor: Tensor, ndim: int, dim: int) -> Tensor | None:
    """Return a tensor of up to `ndim` dimensions as a vector along `dim`; None if it varies elsewhere."""
    vector = tensor.detach().double()
    if tensor.numel() == 1:
        return vector.reshape(())
    own = dim - (ndim - tensor.ndim)
    return vector.flatten() if own >= 0 and tensor.shape[own] == tensor.numel() else None


def _fold(edit: Edit, node: fx.Node) -> bool:
    match = None if node._erased else _find(edit.module, node)
    if match is None:
        return False
    layer = layer_at(edit.module, match.into)
    if layer is None:
        _scale_batch_norm(edit, match)
    elif match.into is match.source:
        write(edit, layer, *scale_outputs(layer, match.scale, match.shift))
    else:
        write(edit, layer, *scale_inputs(layer, match.scale, match.shift))
    edit.replace(node, match.source)
    return True


def _scale_batch_norm(edit: Edit, match: _Match) -> None:
    norm = match.into
    mean_node = argument(norm, "running_mean")
    channels = norm.meta["val"].shape[1]
    old = {name: argument(norm, name) for name in ("weight", "bias")}
    tensors = {name: edit.constant(node) for name, node in old.items()}
    model = next((tensor for tensor in tensors.values() if tensor is not None), edit.constant(mean_node))
    assert model is not None
    weight, bias = (None if tensor is None else tensor.detach().double() for tensor in tensors.values())
    new = {
        "weight": (_one() if weight is None else weight) * match.scale,
        "bias": (_zero() if bias is None else bias) * match.scale + match.shift,
    }
    path = str(mean_node.target).rpartition("running_mean")[0]
    for name, value in new.items():
        tensor = like(model, value.expand(channels))
        if old[name] is None:
            set_arguments(norm, **{name: edit.add_constant(f"{path}{name}", tensor, before=norm)})
        else:
            set_arguments(norm, **{name: replace_tensor(edit, norm, old[name], tensor)})
