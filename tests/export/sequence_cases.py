"""The cases of the rules for attention and recurrent layers, of delegated calls, and of what onnxruntime fuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tests.export.op_cases import Case, Input, Weight, case, mask, normal

aten = torch.ops.aten


def causal_padding(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Draw masks in which some rows attend to nothing."""
    rows = torch.rand([*shape[:-1], 1], generator=generator) < 0.7
    return mask(shape, generator) & rows


def additive(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return normal(shape, generator).masked_fill(~causal_padding(shape, generator), -torch.inf)


Q, K, V = Input(("B", 4, "T", 8)), Input(("B", 4, "W", 8)), Input(("B", 4, "W", 6))
FQ, FK = Input(("B", 4, 5, 8)), Input(("B", 4, 7, 8))
ATTENTION = [
    case(aten.scaled_dot_product_attention.default, *args, **options)
    for args, options in (
        ((Q, K, V), {}),
        ((Q, K, V), {"kwargs": {"scale": 0.3}}),
        ((FQ, FK, FK, None, 0.0, True), {}),
        ((Q, K, V, None, 0.0, True), {}),
        ((Q, K, V, Input(("B", 1, "T", "W"), causal_padding)), {}),
        ((Q, K, V, Input(("B", 1, 1, "W"), mask)), {}),
        ((Q, K, V, Input(("T", "W"), additive)), {}),
        ((Q, K, V, Input((4, "T", 1))), {}),
        ((Q, K, V, Input(("B", 4, "T", "W"))), {}),
        ((FQ, FK, FK, Weight((5, 7), causal_padding)), {}),
        ((FQ, FK, FK, Weight((4, 5, 7), additive)), {}),
        ((FQ, FK, FK, Weight((1, 7))), {}),
        ((Q, Input(("B", 2, "W", 8)), Input(("B", 2, "W", 6))), {"kwargs": {"enable_gqa": True}}),
        ((Input(("B", "T", 8)), Input(("B", "W", 8)), Input(("B", "W", 8))), {}),
        ((Input(("B", 5, 8)), Input(("B", 7, 8)), Input(("B", 7, 8)), Input(("B", 5, 7), mask)), {}),
        ((Input(("B", 3, 4, 5, 8)), Input(("B", 3, 4, 7, 8)), Input(("B", 3, 4, 7, 8))), {}),
        ((Input((2, 4, "T", 8)), Input((1, 4, 7, 8)), Input((1, 4, 7, 8))), {}),
    )
]


def recurrent_weights(
    gates: int, layers: int, directions: int, biases: bool, input: int = 5, hidden: int = 3
) -> list[Weight]:
    """List the parameters of a stacked recurrent op in torch's order."""
    rows, result = gates * hidden, []
    for layer in range(layers):
        columns = input if layer == 0 else hidden * directions
        for _ in range(directions):
            result += [Weight((rows, columns)), Weight((rows, hidden))]
            result += [Weight((rows,)), Weight((rows,))] if biases else []
    return result


def recurrent(op: Any, gates: int, layers: int, directions: int, biases: bool, batch_first: bool, state: Any) -> Case:
    sequence = Input(("B", "T", 5)) if batch_first else Input(("T", "B", 5))
    states: Any = [state, state] if gates == 4 else state
    weights = recurrent_weights(gates, layers, directions, biases)
    return case(op, sequence, states, weights, biases, layers, 0.0, False, directions == 2, batch_first)


RECURRENT = [
    *(
        recurrent(op, gates, *form)
        for op, gates in (
            (aten.lstm.input, 4),
            (aten.gru.input, 3),
            (aten.rnn_tanh.input, 1),
            (aten.rnn_relu.input, 1),
        )
        for form in (
            (1, 1, True, False, Input((1, "B", 3))),
            (2, 2, True, True, Input((4, "B", 3))),
            (2, 1, False, True, Input((2, "B", 3))),
            (1, 2, True, True, Input((2, "B", 3))),
        )
    ),
    case(  # projected: the hidden state has 2 of the cell's 3 dimensions
        aten.lstm.input,
        Input(("T", "B", 5)),
        [Input((4, "B", 2)), Input((4, "B", 3))],
        [Weight(shape) for columns in (5, 5, 4, 4) for shape in ((12, columns), (12, 2), (12,), (12,), (2, 3))],
        *(True, 2, 0.0, False, True, False),
    ),
    case(
        aten.lstm_cell.default, Input(("B", 5)), [Input(("B", 3)), Input(("B", 3))], *recurrent_weights(4, 1, 1, True)
    ),
    case(aten.gru_cell.default, Input(("B", 5)), Input(("B", 3)), *recurrent_weights(3, 1, 1, True)),
    case(aten.rnn_tanh_cell.default, Input(("B", 5)), Input(("B", 3)), *recurrent_weights(1, 1, 1, True)),
    case(aten.rnn_relu_cell.default, Input(("B", 5)), Input(("B", 3)), *recurrent_weights(1, 1, 1, True)),
]

# Calls that have a rule, but for which the rule turns to torch.onnx's exporter.
DELEGATED = [
    case(aten.pixel_shuffle.default, Input((2, 3, 8, 4, 5)), 2),
    case(aten.gru_cell.default, Input((2, 5)), Input((2, 3)), Input((9, 5)), Input((9, 3))),
    case(
        aten.gru.input,
        Input((4, 2, 5)),
        Input((1, 2, 3)),
        [Input((9, 5)), Input((9, 3))],
        False,
        1,
        0.0,
        False,
        False,
        False,
    ),
]

# What onnxruntime must make of a case: the opset, and an op of its optimized graph.
FUSED: list[tuple[Case, int, str]] = [
    (case(aten.gelu.default, Input(("B", 3, 5))), 18, "Gelu"),
    (case(aten.rms_norm.default, Input(("B", "T", 8)), [8], Weight((8,)), 1e-6), 21, "SimplifiedLayerNormalization"),
    (case(aten.scaled_dot_product_attention.default, Q, K, V), 21, "FusedMatMul"),
    (case(aten.scaled_dot_product_attention.default, Q, K, V), 23, "Attention"),
    (case(aten.linear.default, Input((2, 3, 5)), Weight((4, 5)), Weight((4,))), 21, "Gemm"),
]
