"""fxopt.dynamic_lstm: onnxruntime's LSTM on integers, a com.microsoft op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import ExportError, where
from fxopt.export.builder import CONTRIB, OnnxGraph, Rule, Value
from fxopt.export.onnx_rules.recurrent import LSTM, join_directions, reorder_gates
from fxopt.graph.dynamic_lstm import dynamic_lstm as dynamic_lstm_op


def dynamic_lstm(
    g: OnnxGraph,
    input: fx.Node,
    hidden: fx.Node | None,
    cell: fx.Node | None,
    weight_ih: fx.Node,
    weight_hh: fx.Node,
    scale_ih: fx.Node,
    scale_hh: fx.Node,
    bias: fx.Node | None,
) -> Value:
    """fxopt::dynamic_lstm(Tensor input, Tensor? hidden, Tensor? cell, Tensor weight_ih, Tensor weight_hh, Tensor scale_ih, Tensor scale_hh, Tensor? bias) -> (Tensor, Tensor, Tensor)"""  # noqa: E501
    if not g.target.contrib_ops:
        raise ExportError(
            f"{where(g.node)} is an integer LSTM, which target '{g.target.name}' has not. Quantize for the target that "
            f"you export to: QuantizeDynamic(target='{g.target.name}')."
        )
    directions, _, units = (int(size) for size in g.val(weight_hh).shape)
    scales, zeros = [], []
    for node in (scale_ih, scale_hh):
        scales.append(_constant(g, node, _by_gate(g, node)))
        # One zero a scale: for the second direction the kernel moves on in both by as many.
        zeros.append(g.constant(torch.zeros(g.val(node).shape, dtype=torch.int8)))
    weights = [_constant(g, node, _by_gate(g, node).mT.contiguous()) for node in (weight_ih, weight_hh)]
    weights.append("" if bias is None else _constant(g, bias, _with_zeros(_by_gate(g, bias))))
    y, last_hidden, last_cell = g.ops(
        "DynamicQuantizeLSTM", input, *weights, None, hidden, cell, None, scales[0], zeros[0], scales[1], zeros[1],
        outputs=3, domain=CONTRIB, hidden_size=units, direction="bidirectional" if directions == 2 else "forward",
    )  # fmt: skip
    g.nodes[-1].name = g.node.name  # what the census looks for
    return join_directions(g, y, units * directions, directions, swap_batch=False), last_hidden, last_cell


def _by_gate(g: OnnxGraph, node: fx.Node) -> Tensor:
    """Return a parameter [directions, 4·units, ...] with its gates in ONNX's order."""
    value = g.tensor(node)
    if value is None:
        raise ExportError(f"{where(g.node)} takes '{node.name}', which is computed; its kernel wants a constant.")
    return torch.stack([reorder_gates(of_direction, LSTM) for of_direction in value])


def _with_zeros(bias: Tensor) -> Tensor:
    """Append the second of ONNX's two biases, which are added."""
    return torch.cat([bias, torch.zeros_like(bias)], -1)


def _constant(g: OnnxGraph, node: fx.Node, value: Tensor) -> str:
    return g.constant(value, name=str(node.target))


RULES: dict[Any, Rule] = {dynamic_lstm_op: dynamic_lstm}
