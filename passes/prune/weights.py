"""WEIGHT_RULES: the weights that products contract, one row an op, and where their inputs and outputs lie.

A weight is seen as matrices `[matrices, outputs, inputs]`: what one output sums over is a row. A convolution has one
matrix for each group and each position of its kernel. So the inputs that are neighbours in a row are those that lie
side by side in memory where hardware for sparse matrices wants channels last (output, kernel, input).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument, constant

aten = torch.ops.aten


@dataclass(frozen=True)
class Layout:
    """How a weight becomes matrices: its shape as (groups, first, second, taps), and which of the two are inputs."""

    shape: tuple[int, int, int, int]
    inputs_first: bool = False

    def matrices(self, weight: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as `[groups * taps, outputs, inputs]`."""
        parts = weight.reshape(self.shape)
        ordered = parts.permute(0, 3, 2, 1) if self.inputs_first else parts.permute(0, 3, 1, 2)
        return ordered.reshape(-1, *ordered.shape[2:])

    def restore(self, matrices: Tensor, weight: Tensor) -> Tensor:
        """Return matrices in the shape of the weight."""
        parts = self._by_group(matrices)
        ordered = parts.permute(0, 3, 2, 1) if self.inputs_first else parts.permute(0, 2, 3, 1)
        return ordered.reshape(weight.shape)

    def rows(self, weight: Tensor) -> Tensor:
        """Return a tensor of the weight's shape as `[all outputs, all that one output sums over]`."""
        return self._by_group(self.matrices(weight)).transpose(1, 2).flatten(2).flatten(0, 1)

    def restore_rows(self, rows: Tensor, weight: Tensor) -> Tensor:
        """Return rows in the shape of the weight."""
        groups, taps = self.shape[0], self.shape[3]
        return self.restore(rows.reshape(groups, -1, taps, rows.shape[1] // taps).transpose(1, 2).flatten(0, 1), weight)

    def _by_group(self, matrices: Tensor) -> Tensor:
        return matrices.reshape(self.shape[0], self.shape[3], *matrices.shape[1:])


Found = Iterable[tuple[Any, Layout]]  # nodes of weights
WeightRule = Callable[[fx.Node], Found]


@dataclass(frozen=True)
class Weight:
    """A weight of a Program: a tensor of the module that a product contracts, maybe through a mask.

    - `name`: of the tensor. `value`: the tensor. `mask`: what is left of it so far; bool, of its shape.
    - `node`: its `get_attr` node. `product`: the node of weight * mask, or None where there is no mask yet.
    - `reader`: the first product that reads it; `layout` is how that does.
    """

    name: str
    value: Tensor
    mask: Tensor
    layout: Layout
    node: fx.Node
    product: fx.Node | None
    reader: fx.Node


def weights_of(program: Program) -> tuple[Weight, ...]:
    """List the weights of a Program in the order of the graph, tied ones once."""
    found: dict[int, Weight] = {}
    for reader in program.graph.nodes:
        for source, layout in WEIGHT_RULES.get(reader.target, _nothing)(reader):
            weight = _weight(program, source, layout, reader)
            if weight is not None:
                found.setdefault(id(weight.value), weight)
    return tuple(found.values())


def masked(program: Program, node: Any) -> tuple[fx.Node, fx.Node] | None:
    """Return the `get_attr` nodes of a weight and its mask where `node` is their product, else None."""
    if not isinstance(node, fx.Node) or node.target is not aten.mul.Tensor:
        return None
    weight, mask = node.args[0], node.args[1]
    if not isinstance(weight, fx.Node) or not isinstance(mask, fx.Node):
        return None
    tensors = constant(program.module, weight), constant(program.module, mask)
    if tensors[0] is None or tensors[1] is None or tensors[1].dtype is not torch.bool:
        return None
    fits = tensors[0].is_floating_point() and tensors[0].shape == tensors[1].shape
    return (weight, mask) if fits else None


def _weight(program: Program, source: Any, layout: Layout, reader: fx.Node) -> Weight | None:
    pair = masked(program, source)
    node = source if pair is None else pair[0]
    value = constant(program.module, node)
    if value is None or not value.is_floating_point() or not value.numel():
        return None
    mask = None if pair is None else constant(program.module, pair[1])
    left = torch.ones_like(value, dtype=torch.bool) if mask is None else mask
    return Weight(str(node.target), value, left, layout, node, None if pair is None else source, reader)


def _nothing(node: fx.Node) -> Found:
    return ()


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a value of fixed size; () for any other."""
    shape = tuple[Any, ...](node.meta["val"].shape)
    return shape if all(isinstance(size, int) for size in shape) else ()


def _convolution(inputs_first: bool) -> WeightRule:
    def found(node: fx.Node) -> Iterator[tuple[Any, Layout]]:
        weight, groups = argument(node, "weight"), argument(node, "groups")
        shape = _shape(weight)
        if shape:
            yield weight, Layout((groups, shape[0] // groups, shape[1], math.prod(shape[2:])), inputs_first)

    return found


def _operand(name: str, inputs_first: bool) -> WeightRule:
    """An operand of a product of matrices: [..., outputs, inputs], or [..., inputs, outputs]."""

    def found(node: fx.Node) -> Iterator[tuple[Any, Layout]]:
        shape = _shape(argument(node, name))
        if len(shape) > 1:
            layout = Layout((math.prod(shape[:-2]), shape[-2], shape[-1], 1), inputs_first)
            yield argument(node, name), layout

    return found


def _operands(left: str, right: str) -> WeightRule:
    return lambda node: (*_operand(left, False)(node), *_operand(right, True)(node))


def _recurrent(node: fx.Node) -> Found:
    for weight in argument(node, "params"):
        shape = _shape(weight)
        if len(shape) == 2:
            yield weight, Layout((1, *shape, 1))


WEIGHT_RULES: dict[Any, WeightRule] = {
    aten.conv1d.default: _convolution(False),
    aten.conv1d.padding: _convolution(False),
    aten.conv2d.default: _convolution(False),
    aten.conv2d.padding: _convolution(False),
    aten.conv3d.default: _convolution(False),
    aten.conv3d.padding: _convolution(False),
    aten.conv_transpose1d.default: _convolution(True),
    aten.conv_transpose2d.input: _convolution(True),
    aten.conv_transpose3d.input: _convolution(True),
    aten.linear.default: _operand("weight", False),
    aten.matmul.default: _operands("self", "other"),
    aten.mm.default: _operands("self", "mat2"),
    aten.bmm.default: _operands("self", "mat2"),
    aten.addmm.default: _operands("mat1", "mat2"),
    aten.baddbmm.default: _operands("batch1", "batch2"),
    aten.lstm.input: _recurrent,
    aten.gru.input: _recurrent,
    aten.rnn_tanh.input: _recurrent,
    aten.rnn_relu.input: _recurrent,
}
