"""COST_RULES: multiply-accumulate operations of a Program, one row an op; and the bytes of its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import SymInt, Tensor, fx

from fxopt.graph.dynamic_lstm import dynamic_lstm
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument, constant

aten = torch.ops.aten


def _size(size: int | SymInt) -> int:
    """Return a size, or for a dynamic one that of the captured example."""
    return size if isinstance(size, int) else int(size.node.hint or 1)


def _count(value: Any) -> int:
    return math.prod(_size(size) for size in value.shape)


def _fake(node: Any) -> Any:
    return node.meta["val"]


def _convolution(node: fx.Node) -> int:
    """Each output element takes the inputs of one group under one kernel."""
    weight = _fake(argument(node, "weight"))
    return _count(_fake(node)) * math.prod(_size(size) for size in weight.shape[1:])


def _transposed_convolution(node: fx.Node) -> int:
    """Each input element meets the outputs of one group under one kernel."""
    weight = _fake(argument(node, "weight"))
    return _count(_fake(argument(node, "input"))) * math.prod(_size(size) for size in weight.shape[1:])


def _linear(node: fx.Node) -> int:
    return _count(_fake(node)) * _size(_fake(argument(node, "weight")).shape[1])


def _product(left: str) -> Callable[[fx.Node], int]:
    return lambda node: _count(_fake(node)) * _size(_fake(argument(node, left)).shape[-1])


def _attention(node: fx.Node) -> int:
    """Scores take query x key, the result scores x value."""
    query, key, value = (_fake(argument(node, name)) for name in ("query", "key", "value"))
    scores = _count(query) * _size(key.shape[-2])
    return scores + scores // max(_size(query.shape[-1]), 1) * _size(value.shape[-1])


def _recurrent(node: fx.Node) -> int:
    """Each step and sequence meets every weight matrix once."""
    steps = _count(_fake(argument(node, "input"))) // max(_size(_fake(argument(node, "input")).shape[-1]), 1)
    matrices = [_fake(weight) for weight in argument(node, "params") if _fake(weight).ndim == 2]
    return steps * sum(_count(matrix) for matrix in matrices)


def _dynamic_lstm(node: fx.Node) -> int:
    steps = math.prod(_size(size) for size in _fake(argument(node, "input")).shape[:2])
    return steps * sum(_count(_fake(argument(node, name))) for name in ("weight_ih", "weight_hh"))


COST_RULES: dict[Any, Callable[[fx.Node], int]] = {
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv3d.padding: _convolution,
    aten.conv_transpose1d.default: _transposed_convolution,
    aten.conv_transpose2d.input: _transposed_convolution,
    aten.conv_transpose3d.input: _transposed_convolution,
    aten.linear.default: _linear,
    aten.matmul.default: _product("self"),
    aten.mm.default: _product("self"),
    aten.bmm.default: _product("self"),
    aten.addmm.default: _product("mat1"),
    aten.baddbmm.default: _product("batch1"),
    aten.scaled_dot_product_attention.default: _attention,
    aten.lstm.input: _recurrent,
    aten.gru.input: _recurrent,
    aten.rnn_tanh.input: _recurrent,
    aten.rnn_relu.input: _recurrent,
    dynamic_lstm: _dynamic_lstm,
}


def macs_by_node(program: Program) -> dict[str, int]:
    """Count the multiply-accumulate operations of each node that has any, at the sizes of the captured example."""
    return {node.name: COST_RULES[node.target](node) for node in program.graph.nodes if node.target in COST_RULES}


def macs(program: Program) -> int:
    """Count the multiply-accumulate operations of one call, at the sizes of the captured example."""
    return sum(macs_by_node(program).values())


def macs_per_sample(program: Program) -> int:
    """Count the multiply-accumulate operations of one sample: those of one call where the batch is fixed."""
    return macs(program) // batch_of_example(program)


def batch_of_example(program: Program) -> int:
    """Return the samples of the captured example; 1 where the batch is fixed, so that a call is what counts."""
    shape = program.inputs[0].shape if program.inputs else ()
    if not shape or isinstance(shape[0], int):
        return 1
    return max(_size(program.placeholders[0].meta["val"].shape[0]), 1)


def tensors(program: Program) -> dict[str, Tensor]:
    """Return the tensors that the graph reads, by dotted name, each storage once."""
    found: dict[int, tuple[str, Tensor]] = {}
    for node in program.graph.find_nodes(op="get_attr"):
        tensor = constant(program.module, node)
        if tensor is not None:
            found.setdefault(id(tensor), (str(node.target), tensor))
    return dict(found.values())


def parameter_count(program: Program) -> int:
    """Count the elements of all weights and buffers that the graph reads."""
    return sum(tensor.numel() for tensor in tensors(program).values())


def parameter_bytes(program: Program) -> int:
    """Sum the bytes of all weights and buffers that the graph reads."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(program).values())
