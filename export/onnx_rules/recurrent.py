"""LSTM, GRU and RNN: each layer is one ONNX op, with the weights rearranged to ONNX's order of gates.

ONNX has no projected LSTM (h = R·h' of the cell's own output h'). It is an LSTM over h' whose recurrent weight is W·R,
with R applied to what comes out; an initial h becomes R⁺·h, which R maps back to h while R has full row rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import ExportError, where
from fxopt.export.builder import OnnxGraph, Rule, Value
from fxopt.export.delegate import delegate
from fxopt.graph.quantized import is_dequantized_weight

aten = torch.ops.aten


@dataclass(frozen=True)
class _Cell:
    """An ONNX op: where its gates are among torch's, and its attributes. ONNX: LSTM iofc, GRU zrh; torch: ifgo, rzn."""

    op: str
    gates: tuple[int, ...]
    activation: str | None = None

    def attributes(self, hidden: int, directions: int) -> dict[str, Any]:
        return {
            "hidden_size": hidden,
            "direction": "bidirectional" if directions == 2 else "forward",
            "activations": [self.activation] * directions if self.activation else None,
            "linear_before_reset": 1 if self.op == "GRU" else None,
        }


LSTM = _Cell("LSTM", (0, 3, 1, 2))
GRU = _Cell("GRU", (1, 0, 2))
RNN_TANH = _Cell("RNN", (0,), "Tanh")
RNN_RELU = _Cell("RNN", (0,), "Relu")


def lstm(
    g: OnnxGraph,
    input: fx.Node,
    hx: Sequence[fx.Node],
    params: Sequence[fx.Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Value:
    """aten::lstm.input(Tensor input, Tensor[] hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    return _layers(g, LSTM, input, hx, params, has_biases, num_layers, bidirectional, batch_first)


def gru(
    g: OnnxGraph,
    input: fx.Node,
    hx: fx.Node,
    params: Sequence[fx.Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Value:
    """aten::gru.input(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first) -> (Tensor, Tensor)"""  # noqa: E501
    return _layers(g, GRU, input, [hx], params, has_biases, num_layers, bidirectional, batch_first)


def rnn_tanh(
    g: OnnxGraph,
    input: fx.Node,
    hx: fx.Node,
    params: Sequence[fx.Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Value:
    """aten::rnn_tanh.input(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first) -> (Tensor, Tensor)"""  # noqa: E501
    return _layers(g, RNN_TANH, input, [hx], params, has_biases, num_layers, bidirectional, batch_first)


def rnn_relu(
    g: OnnxGraph,
    input: fx.Node,
    hx: fx.Node,
    params: Sequence[fx.Node],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Value:
    """aten::rnn_relu.input(Tensor input, Tensor hx, Tensor[] params, bool has_biases, int num_layers, float dropout, bool train, bool bidirectional, bool batch_first) -> (Tensor, Tensor)"""  # noqa: E501
    return _layers(g, RNN_RELU, input, [hx], params, has_biases, num_layers, bidirectional, batch_first)


def lstm_cell(
    g: OnnxGraph,
    input: fx.Node,
    hx: Sequence[fx.Node],
    w_ih: fx.Node,
    w_hh: fx.Node,
    b_ih: fx.Node | None,
    b_hh: fx.Node | None,
) -> Value:
    """aten::lstm_cell(Tensor input, Tensor[] hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, Tensor? b_hh=None) -> (Tensor, Tensor)"""  # noqa: E501
    return _step(g, LSTM, input, hx, w_ih, w_hh, b_ih, b_hh)


def gru_cell(
    g: OnnxGraph, input: fx.Node, hx: fx.Node, w_ih: fx.Node, w_hh: fx.Node, b_ih: fx.Node | None, b_hh: fx.Node | None
) -> Value:
    """aten::gru_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, Tensor? b_hh=None) -> Tensor"""  # noqa: E501
    return _step(g, GRU, input, [hx], w_ih, w_hh, b_ih, b_hh)


def rnn_tanh_cell(
    g: OnnxGraph, input: fx.Node, hx: fx.Node, w_ih: fx.Node, w_hh: fx.Node, b_ih: fx.Node | None, b_hh: fx.Node | None
) -> Value:
    """aten::rnn_tanh_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, Tensor? b_hh=None) -> Tensor"""  # noqa: E501
    return _step(g, RNN_TANH, input, [hx], w_ih, w_hh, b_ih, b_hh)


def rnn_relu_cell(
    g: OnnxGraph, input: fx.Node, hx: fx.Node, w_ih: fx.Node, w_hh: fx.Node, b_ih: fx.Node | None, b_hh: fx.Node | None
) -> Value:
    """aten::rnn_relu_cell(Tensor input, Tensor hx, Tensor w_ih, Tensor w_hh, Tensor? b_ih=None, Tensor? b_hh=None) -> Tensor"""  # noqa: E501
    return _step(g, RNN_RELU, input, [hx], w_ih, w_hh, b_ih, b_hh)


def _layers(
    g: OnnxGraph,
    cell: _Cell,
    input: fx.Node,
    states: Sequence[fx.Node],
    params: Sequence[fx.Node],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> Value:
    """Emit one op a layer; returns the sequence and the last states, as torch shapes them."""
    if any(g.tensor(parameter) is None and not is_dequantized_weight(parameter) for parameter in params):
        return delegate(g, g.node)
    directions = 2 if bidirectional else 1
    each = len(params) // (num_layers * directions)
    x = g.op("Transpose", input, perm=[1, 0, 2]) if batch_first else g.value(input)
    firsts = [None if _is_zero(g, state) else g.value(state) for state in states]
    lasts: list[tuple[str, ...]] = []
    for layer in range(num_layers):
        begin = layer * directions
        own = [params[each * (begin + d) : each * (begin + d + 1)] for d in range(directions)]
        initial = [_of_layer(g, first, begin, directions, num_layers) for first in firsts]
        y, *last = _layer(g, cell, x, own, initial)
        lasts.append(tuple(last))
        features = int(g.val(params[each * begin + 1]).shape[-1]) * directions
        x = join_directions(g, y, features, directions, batch_first and layer == num_layers - 1)
    finals = [g.op("Concat", *parts, axis=0) if num_layers > 1 else parts[0] for parts in zip(*lasts, strict=True)]
    return (x, *finals)


def _layer(
    g: OnnxGraph, cell: _Cell, x: str, directions: Sequence[Sequence[fx.Node | None]], initial: Sequence[str | None]
) -> tuple[str, ...]:
    """Emit the op of one layer, given its parameters by direction."""
    inputs, hiddens, *rest = zip(*directions, strict=True)
    projection = None
    if len(rest) % 2:  # [directions, hidden, projected]
        projection = torch.stack([_tensor(g, node).t() for node in rest[-1]])
        initial = [_unproject(g, initial[0], projection), *initial[1:]]
    weights = [_weight(g, cell, inputs), _weight(g, cell, hiddens, projection)]
    if len(rest) >= 2 and rest[0][0] is not None:
        weights.append(g.constant(_biases(g, cell, *rest[:2]), name=str(rest[0][0].target)))
    attributes = cell.attributes(int(g.val(inputs[0]).shape[0]) // len(cell.gates), len(directions))
    weights += [""] * (3 - len(weights))
    y, *lasts = g.ops(cell.op, x, *weights, None, *initial, outputs=1 + len(initial), **attributes)
    if projection is not None:
        factor = g.constant(projection)
        y, lasts[0] = g.op("MatMul", y, factor), g.op("MatMul", lasts[0], factor)
    return (y, *lasts)


def _weight(g: OnnxGraph, cell: _Cell, nodes: Sequence[fx.Node | None], projection: Tensor | None = None) -> str:
    """Return a weight [directions, gates·units, columns], given that of each direction."""
    first = nodes[0]
    if is_dequantized_weight(first):
        return _stored_weight(g, cell, nodes)
    weight = torch.stack([reorder_gates(_tensor(g, node), cell) for node in nodes])
    if projection is not None:
        weight = (weight.double() @ projection.double().mT).to(weight.dtype)
    return g.constant(weight, name=str(first.target) if first is not None else None)


def _stored_weight(g: OnnxGraph, cell: _Cell, nodes: Sequence[Any]) -> str:
    """Dequantize a weight that is stored as integers, with one scale a row."""
    integers, scales, zeros = (
        torch.cat([reorder_gates(_tensor(g, node.args[i]), cell) for node in nodes]) for i in range(3)
    )
    names = [str(value.target) for value in nodes[0].args[:3]]
    parts = [g.constant(tensor, name=name) for tensor, name in zip((integers, scales, zeros), names, strict=True)]
    rows, columns = integers.shape
    return g.op("Reshape", g.op("DequantizeLinear", *parts, axis=0), [len(nodes), rows // len(nodes), columns])


def _biases(g: OnnxGraph, cell: _Cell, inputs: Sequence[fx.Node | None], hiddens: Sequence[fx.Node | None]) -> Tensor:
    """Return both biases of each direction, one after the other."""
    pairs = zip(inputs, hiddens, strict=True)
    return torch.stack([torch.cat([reorder_gates(_tensor(g, node), cell) for node in pair]) for pair in pairs])


def _tensor(g: OnnxGraph, node: fx.Node | None) -> Tensor:
    value = g.tensor(node)
    assert value is not None
    return value


def _unproject(g: OnnxGraph, initial: str | None, projection: Tensor) -> str | None:
    """Return an initial state of the unprojected cell output that the projection maps to `initial`."""
    if initial is None:
        return None
    if int(torch.linalg.matrix_rank(projection).min()) < projection.shape[-1]:
        raise ExportError(f"{where(g.node)} has a projection without full rank; no initial state can be given to it.")
    return g.op("MatMul", initial, torch.linalg.pinv(projection.double()).to(projection.dtype))


def reorder_gates(parameter: Tensor, cell: _Cell) -> Tensor:
    """Return a parameter [gates·units, ...] with its gates in ONNX's order."""
    gates = parameter.chunk(len(cell.gates))
    return torch.cat([gates[gate] for gate in cell.gates])


def _is_zero(g: OnnxGraph, state: fx.Node) -> bool:
    """Say whether an initial state is all zeros, which is what ONNX assumes where none is given."""
    tensor = g.tensor(state)
    if tensor is not None:
        return not bool(tensor.any())
    return state.target in (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)


def _of_layer(g: OnnxGraph, first: str | None, begin: int, directions: int, num_layers: int) -> str | None:
    if first is None or num_layers == 1:
        return first
    return g.op("Slice", first, [begin], [begin + directions], [0])


def join_directions(g: OnnxGraph, y: str, features: int, directions: int, swap_batch: bool) -> str:
    """Turn ONNX's (time, directions, batch, hidden) into (time, batch, features), or batch first."""
    if directions == 1 and not swap_batch:
        return g.op("Squeeze", y, [1])
    ordered = g.op("Transpose", y, perm=[2, 0, 1, 3] if swap_batch else [0, 2, 1, 3])
    return g.op("Reshape", ordered, [0, 0, features])


def _step(
    g: OnnxGraph,
    cell: _Cell,
    input: fx.Node,
    states: Sequence[fx.Node],
    *params: fx.Node | None,
) -> Value:
    """Emit a single time step; returns the new states, or the one new state."""
    if any(parameter is not None and g.tensor(parameter) is None for parameter in params):
        return delegate(g, g.node)
    x, *initial = (g.op("Unsqueeze", node, [0]) for node in (input, *states))
    _, *lasts = _layer(g, cell, x, [params], initial)
    news = tuple(g.op("Squeeze", last, [0]) for last in lasts)
    return news if len(news) > 1 else news[0]


RULES: dict[Any, Rule] = {
    aten.lstm.input: lstm,
    aten.gru.input: gru,
    aten.rnn_tanh.input: rnn_tanh,
    aten.rnn_relu.input: rnn_relu,
    aten.lstm_cell.default: lstm_cell,
    aten.gru_cell.default: gru_cell,
    aten.rnn_tanh_cell.default: rnn_tanh_cell,
    aten.rnn_relu_cell.default: rnn_relu_cell,
}
