"""The cases of the rules for neural-network ops: at least one for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tests.export.op_cases import Case, Input, SizeOf, Weight, case, integers, mask, normal, positive

aten = torch.ops.aten

LINE, IMAGE, VOLUME = Input(("B", 4, 11)), Input(("B", 4, 9, 8)), Input(("B", 4, 7, 6, 5))
ANY_IMAGE = Input(("B", 4, "H", "W"))

CONVOLUTION = [
    case(aten.conv1d.default, LINE, Weight((6, 2, 3)), Weight((6,)), [2], [1], [2], 2),
    case(aten.conv1d.padding, LINE, Weight((6, 4, 4)), None, [1], "same", [2]),
    case(aten.conv2d.default, IMAGE, Weight((6, 4, 3, 2)), Weight((6,)), [2, 1], [1, 0]),
    case(aten.conv2d.default, Input((4, "H", 8)), Weight((6, 4, 3, 3)), None, [1, 1], [1, 1], [2, 2]),
    case(aten.conv2d.default, ANY_IMAGE, Weight((8, 1, 3, 3)), None, [1], [1], [1], 4),
    case(aten.conv2d.default, IMAGE, Input((6, 4, 3, 3)), Input((6,))),
    case(aten.conv2d.padding, IMAGE, Weight((6, 4, 4, 3)), Weight((6,)), [1], "same"),
    case(aten.conv2d.padding, IMAGE, Weight((6, 4, 4, 3)), Weight((6,)), [2], "valid", [2]),
    case(aten.conv3d.default, VOLUME, Weight((6, 4, 3, 2, 1)), Weight((6,)), [2, 1, 1], [1, 0, 0]),
    case(aten.conv3d.padding, VOLUME, Weight((6, 4, 2, 3, 1)), Weight((6,)), [1], "same"),
    case(aten.conv_transpose1d.default, LINE, Weight((4, 3, 3)), Weight((6,)), [2], [1], [1], 2),
    case(aten.conv_transpose2d.input, ANY_IMAGE, Weight((4, 5, 3, 2)), None, [2, 1], [1, 0], [1, 0], 1, [1, 2]),
    case(aten.conv_transpose2d.input, Input((4, "H", 8)), Weight((4, 5, 2, 2)), Weight((5,)), [2]),
    case(aten.conv_transpose3d.input, VOLUME, Weight((4, 5, 3, 2, 1)), Weight((5,)), [2]),
    case(aten.convolution.default, IMAGE, Weight((6, 4, 3, 3)), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    case(aten.convolution.default, IMAGE, Weight((4, 6, 3, 3)), None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1),
    case(aten.linear.default, Input(("B", 5)), Weight((3, 5)), Weight((3,)), emits=("Gemm",)),
    case(aten.linear.default, Input(("B", "T", 5)), Weight((3, 5)), Weight((3,)), emits=("MatMul", "Add")),
    case(aten.linear.default, Input(("B", 2, "T", 5)), Weight((3, 5))),
    case(aten.linear.default, Input((5,)), Weight((3, 5)), Weight((3,))),
    case(aten.linear.default, Input(("B", 5)), Weight((5,))),
    case(aten.linear.default, Input(("B", "T", 5)), Input((30, 5))),
    case(aten.bilinear.default, Input(("B", "T", 5)), Input(("B", "T", 4)), Weight((3, 5, 4)), Weight((3,))),
]

POOLING = [
    case(aten.max_pool1d.default, LINE, [3], [2], [1], [2]),
    case(aten.max_pool2d.default, IMAGE, [3, 2]),
    case(aten.max_pool2d.default, IMAGE, 3, 2, 1, 1, True),
    case(aten.max_pool2d.default, IMAGE, 2, 2, 1, 1, True),
    case(aten.max_pool2d.default, ANY_IMAGE, 3, 2, 1, 1, True),
    case(aten.max_pool2d.default, Input((4, "H", "W")), 2, 2, 0, 1, True),
    case(aten.max_pool3d.default, VOLUME, [2, 3, 1], [2, 2, 1], [1, 1, 0], 1, True),
    case(aten.max_pool1d_with_indices.default, LINE, [3], [2], [1]),
    case(aten.max_pool2d_with_indices.default, ANY_IMAGE, 3, 2, 1),
    case(aten.max_pool2d_with_indices.default, Input((4, "H", 8)), 3, 2, 1),
    case(aten.max_pool2d_with_indices.default, IMAGE, 3, 2, 1, result=0),
    case(aten.max_pool3d_with_indices.default, VOLUME, 2),
    case(aten.avg_pool1d.default, LINE, [3], [2], [1], True),
    case(aten.avg_pool2d.default, IMAGE, 3, 2, 1),
    case(aten.avg_pool2d.default, IMAGE, 3, 2, 1, False, False),
    case(aten.avg_pool2d.default, IMAGE, 3, 2, 1, True, True),
    case(aten.avg_pool2d.default, IMAGE, 2, 2, 1, True, False),
    case(aten.avg_pool2d.default, ANY_IMAGE, 3, 2, 1, True, True),
    case(aten.avg_pool2d.default, ANY_IMAGE, 2, 2, 0, True, False),
    case(aten.avg_pool2d.default, IMAGE, [3, 2], [2, 2], [1, 0], True, True, 5),
    case(aten.avg_pool2d.default, Input((4, "H", 8)), 2),
    case(aten.avg_pool3d.default, VOLUME, 3, 2, 1, True, False),
    case(aten.mean.dim, ANY_IMAGE, [2, 3], emits=("GlobalAveragePool",)),
    case(aten.mean.dim, IMAGE, [-1, -2], True, emits=("GlobalAveragePool",)),
    case(aten.mean.dim, IMAGE, [1], True),
    case(aten.mean.dim, VOLUME, [2, 3, 4]),
    case(aten.mean.dim, Input(("B", 3), integers), [-1], kwargs={"dtype": torch.float32}),
    case(aten.mean.dim, LINE, None),
    case(aten.mean.default, LINE),
]

ADAPTIVE_POOLING = [
    case(aten.adaptive_avg_pool1d.default, LINE, [4]),
    case(aten.adaptive_avg_pool1d.default, LINE, [1], emits=("GlobalAveragePool",)),
    case(aten.adaptive_avg_pool2d.default, ANY_IMAGE, [1, 1], emits=("GlobalAveragePool",)),
    case(aten.adaptive_avg_pool2d.default, IMAGE, [3, 4], emits=("AveragePool",)),
    case(aten.adaptive_avg_pool2d.default, IMAGE, [5, 3]),
    case(aten.adaptive_avg_pool2d.default, IMAGE, [12, 3]),
    case(aten.adaptive_avg_pool2d.default, Input((4, 9, "W")), [3, 5]),
    case(aten.adaptive_avg_pool2d.default, ANY_IMAGE, [1, SizeOf(3)]),
    case(aten.adaptive_avg_pool2d.default, ANY_IMAGE, [7, 5]),
    case(aten._adaptive_avg_pool2d.default, IMAGE, [4, 4]),
    case(aten.adaptive_avg_pool3d.default, VOLUME, [3, 1, 2]),
    case(aten._adaptive_avg_pool3d.default, VOLUME, [7, 3, 4]),
    case(aten.adaptive_max_pool1d.default, LINE, [4], result=0),
    case(aten.adaptive_max_pool2d.default, ANY_IMAGE, [1, 1], result=0, emits=("GlobalMaxPool",)),
    case(aten.adaptive_max_pool2d.default, IMAGE, [3, 4], result=0, emits=("MaxPool",)),
    case(aten.adaptive_max_pool2d.default, Input((4, 9, 8)), [5, 8], result=0),
    case(aten.adaptive_max_pool3d.default, VOLUME, [3, 1, 5], result=0),
]

FOUR = Weight((4,))
NORMALIZATION = [
    *(
        case(aten.batch_norm.default, x, FOUR, FOUR, FOUR, Weight((4,), positive), False, 0.1, 1e-3, False)
        for x in (Input(("B", 4)), LINE, ANY_IMAGE, VOLUME)
    ),
    case(aten.batch_norm.default, IMAGE, None, None, FOUR, Weight((4,), positive), False, 0.1, 1e-5, False),
    case(aten.batch_norm.default, ANY_IMAGE, FOUR, FOUR, None, None, True, 0.1, 1e-5, False),
    case(aten.instance_norm.default, ANY_IMAGE, FOUR, FOUR, None, None, True, 0.1, 1e-5, False),
    case(aten.instance_norm.default, LINE, None, None, None, None, True, 0.1, 1e-5, False),
    case(aten.instance_norm.default, LINE, FOUR, None, FOUR, Weight((4,), positive), False, 0.1, 1e-5, False),
    case(aten.layer_norm.default, Input(("B", "T", 8)), [8], Weight((8,)), Weight((8,))),
    case(aten.layer_norm.default, Input(("B", "T", 8)), [8], None, None, 1e-6),
    case(aten.layer_norm.default, IMAGE, [4, 9, 8], Weight((4, 9, 8)), None),
    case(aten.layer_norm.default, ANY_IMAGE, [SizeOf(2), SizeOf(3)]),
    case(aten.group_norm.default, ANY_IMAGE, 2, FOUR, FOUR),
    case(aten.group_norm.default, IMAGE, 1, FOUR, FOUR, 1e-6),
    case(aten.group_norm.default, IMAGE, 4, FOUR, None),
    case(aten.group_norm.default, Input(("B", 4)), 2, None, None),
    case(aten.rms_norm.default, Input(("B", "T", 8)), [8], Weight((8,)), 1e-6),
    case(aten.rms_norm.default, Input(("B", 3, 8)), [3, 8]),
    case(aten._weight_norm.default, Input((6, 4, 3)), Weight((6, 1, 1)), 0),
    case(aten._weight_norm.default, Input((6, 4)), Weight((1, 4)), 1),
]

X = Input(("B", 3, 5))
ACTIVATION = [
    *(
        case(op, Input(("B", 3, 50)))
        for op in (
            aten.relu.default,
            aten.relu6.default,
            aten.hardtanh.default,
            aten.sigmoid.default,
            aten.hardsigmoid.default,
            aten.hardswish.default,
            aten.silu.default,
            aten.gelu.default,
            aten.mish.default,
            aten.elu.default,
            aten.selu.default,
            aten.celu.default,
            aten.leaky_relu.default,
            aten.rrelu.default,
            aten.softplus.default,
            aten.tanh.default,
            aten.log_sigmoid.default,
            aten.softshrink.default,
            aten.hardshrink.default,
        )
    ),
    case(aten.sigmoid.default, Input(("B", 3), integers)),
    case(aten.tanh.default, Input(("B", 3), integers)),
    case(aten.hardtanh.default, X, 0, 6, emits=("Clip",)),
    case(aten.clamp.default, X, -0.5, None),
    case(aten.clamp.default, X, 0.5, -0.5),
    case(aten.clamp.default, Input(("B", 3), integers), -2, 2),
    case(aten.clamp.default, Input(("B", 3), integers), -1.5, 2.5),
    case(aten.clamp.default, Input(("B", "T"), integers), None, SizeOf(0)),
    case(aten.clamp.Tensor, X, Input((3, 5)), None),
    case(aten.clamp.Tensor, X, Input((5,)), Input((3, 5))),
    case(aten.clamp_min.default, X, 0.25),
    case(aten.clamp_min.Tensor, X, Input((5,))),
    case(aten.clamp_max.default, X, 0.25),
    case(aten.clamp_max.Tensor, X, Input((5,))),
    case(aten.gelu.default, X, kwargs={"approximate": "tanh"}),
    case(aten.elu.default, X, 0.7, 1.5, 0.3),
    case(aten.celu.default, X, 0.4),
    case(aten.leaky_relu.default, X, 0.2),
    case(aten.prelu.default, IMAGE, FOUR),
    case(aten.prelu.default, X, Weight((1,))),
    case(aten.prelu.default, Input(("B", 4)), Input((4,))),
    case(aten.softplus.default, Input(("B", 60)), 2, 20),
    case(aten.softplus.default, Input(("B", 60)), 1, 0.5),
    case(aten.softmax.int, X, -1),
    case(aten.softmax.int, X, 1),
    case(aten.softmax.int, Input(("B", 3), integers), 0, torch.float32),
    case(aten._softmax.default, X, 1, False),
    case(aten.log_softmax.int, X, 1),
    case(aten._log_softmax.default, X, -1, False),
    case(
        aten._safe_softmax.default,
        Input(("B", 8, 2), lambda s, g: normal(s, g).masked_fill(mask(s, g), -torch.inf)),
        -1,
    ),
    case(aten.glu.default, Input(("B", 6, 5)), 1),
    case(aten.threshold.default, X, 0.1, 20),
    case(aten.threshold.default, X, 0, 0, emits=("Relu",)),
    case(aten.dropout.default, X, 0.5, False),
    case(aten.feature_dropout.default, X, 0.5, False),
    case(aten.alpha_dropout.default, X, 0.5, False),
    case(aten.feature_alpha_dropout.default, X, 0.5, False),
]

PADDING = [
    case(aten.pad.default, ANY_IMAGE, [1, 2, 0, 3]),
    case(aten.pad.default, IMAGE, [1, -2], "constant", 1.5),
    case(aten.pad.default, Input(("B", 3), mask), [1, 1], "constant", True),
    case(aten.pad.default, Input(("B", 3), integers), [1, 1], "constant", 7),
    case(aten.pad.default, IMAGE, [0, 0, 0, 0]),
    case(aten.pad.default, ANY_IMAGE, [0, SizeOf(2), 1, 0]),
    case(aten.pad.default, ANY_IMAGE, [1, 2, 3, 1], "reflect"),
    case(aten.pad.default, LINE, [1, 2], "replicate"),
    case(aten.pad.default, ANY_IMAGE, [1, 2, 3, 0], "circular"),
    case(aten.constant_pad_nd.default, VOLUME, [0, 1, 2, 0], 2),
    case(aten.reflection_pad1d.default, LINE, [2, 1]),
    case(aten.reflection_pad2d.default, IMAGE, [2, 1, 0, 3]),
    case(aten.reflection_pad3d.default, VOLUME, [2, 1, 0, 3, 1, 1]),
    case(aten.replication_pad1d.default, LINE, [2, 1]),
    case(aten.replication_pad2d.default, Input((4, 9, 8)), [2, 1, 0, 3]),
    case(aten.replication_pad3d.default, VOLUME, [2, 1, 0, 3, 1, 1]),
    case(aten.im2col.default, IMAGE, [3, 2], [1, 2], [1, 0], [2, 1]),
    case(aten.im2col.default, Input((4, 9, 8)), [3, 3], [1, 1], [1, 1], [1, 1]),
    case(aten.im2col.default, ANY_IMAGE, [3, 2], [1, 2], [1, 0], [2, 1]),
    case(aten.col2im.default, Input(("B", 24, 16)), [9, 8], [3, 2], [2, 1], [1, 0], [2, 2]),
]

PIXELS = [
    case(aten.pixel_shuffle.default, Input(("B", 12, "H", 5)), 2, emits=("DepthToSpace",)),
    case(aten.pixel_shuffle.default, Input((18, 4, 5)), 3),
    case(aten.pixel_unshuffle.default, Input(("B", 3, 6, 8)), 2),
    case(aten.pixel_unshuffle.default, Input((1, 6, 9)), 3),
    case(aten.channel_shuffle.default, Input(("B", 6, "H", 5)), 3),
    case(aten.native_channel_shuffle.default, Input((2, 6, 2, 5)), 2),
    *(
        case(aten.grid_sampler.default, IMAGE, Input(("B", 5, 6, 2)), mode, padding, corners)
        for mode, padding, corners in (
            (0, 0, False),
            (0, 1, True),
            (1, 2, False),
            (2, 0, True),
            (2, 1, False),
            (0, 2, True),
        )
    ),
    case(aten.grid_sampler_2d.default, IMAGE, Input(("B", 5, 6, 2)), 0, 0, True),
    case(aten.grid_sampler_3d.default, VOLUME, Input(("B", 5, 6, 2, 3)), 0, 0, True, opsets=(20, 23)),
]

RESIZE = [
    case(aten.upsample_nearest1d.default, LINE, [22], emits=("Resize",)),
    case(aten.upsample_nearest1d.default, LINE, [25], 2.3),
    case(aten.upsample_nearest1d.vec, LINE, None, [0.7]),
    case(aten.upsample_nearest2d.default, IMAGE, [5, 19]),
    case(aten.upsample_nearest2d.vec, ANY_IMAGE, None, [2.0, 2.0]),
    case(aten.upsample_nearest2d.vec, ANY_IMAGE, [16, 7], None),
    case(aten.upsample_nearest2d.vec, ANY_IMAGE, [SizeOf(2, 2), SizeOf(3, 3)], None),
    case(aten.upsample_nearest3d.default, VOLUME, [14, 3, 7]),
    case(aten.upsample_nearest3d.vec, VOLUME, None, [2.0, 0.5, 1.5]),
    case(aten._upsample_nearest_exact1d.default, LINE, [5]),
    case(aten._upsample_nearest_exact1d.vec, LINE, None, [2.3]),
    case(aten._upsample_nearest_exact2d.default, IMAGE, [5, 19]),
    case(aten._upsample_nearest_exact2d.vec, ANY_IMAGE, None, [2.0, 0.5]),
    case(aten._upsample_nearest_exact3d.default, VOLUME, [14, 3, 7]),
    case(aten._upsample_nearest_exact3d.vec, VOLUME, None, [2.0, 0.5, 1.5]),
    case(aten.upsample_linear1d.default, LINE, [25], False),
    case(aten.upsample_linear1d.vec, Input(("B", 4, "T")), None, True, [2.0]),
    case(aten.upsample_bilinear2d.default, IMAGE, [5, 19], False),
    case(aten.upsample_bilinear2d.default, IMAGE, [20, 19], True),
    case(aten.upsample_bilinear2d.vec, ANY_IMAGE, None, False, [2.0, 1.7]),
    case(aten.upsample_bilinear2d.vec, ANY_IMAGE, [SizeOf(3), SizeOf(2)], False, None),
    case(aten.upsample_bilinear2d.vec, ANY_IMAGE, [7, 15], True, None),
    case(aten.upsample_bicubic2d.default, IMAGE, [5, 19], False),
    case(aten.upsample_bicubic2d.vec, ANY_IMAGE, None, False, [1.5, 0.6]),
    case(aten.upsample_bicubic2d.vec, IMAGE, [13, 11], True, None),
    case(aten.upsample_trilinear3d.default, VOLUME, [14, 3, 7], False),
    case(aten.upsample_trilinear3d.vec, VOLUME, None, True, [2.0, 0.5, 1.5]),
    case(aten._upsample_bilinear2d_aa.default, IMAGE, [5, 19], False),
    case(aten._upsample_bilinear2d_aa.vec, ANY_IMAGE, [5, 4], False, None),
    case(aten._upsample_bilinear2d_aa.vec, IMAGE, [5, 4], True, None),
    case(aten._upsample_bicubic2d_aa.default, IMAGE, [5, 19], False),
    case(aten._upsample_bicubic2d_aa.vec, IMAGE, None, False, [0.4, 0.6]),
    case(aten._upsample_bicubic2d_aa.default, IMAGE, [13, 3], True),
]


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
    sequence = Input(("B", 6, 5)) if batch_first else Input((6, "B", 5))
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
        aten.lstm.input,
        Input((4, 2, 5)),
        [Input((1, 2, 2)), Input((1, 2, 3))],
        [Weight((12, 5)), Weight((12, 2)), Weight((12,)), Weight((12,)), Weight((2, 3))],
        True,
        1,
        0.0,
        False,
        False,
        False,
    ),
    case(aten.gru.input, Input((4, 2, 5)), Input((1, 2, 3)), [Input((9, 5)), Input((9, 3))], False, 1, 0.0, False, False, False),
]

# What onnxruntime must make of a case: the opset, and an op of its optimized graph.
FUSED: list[tuple[Case, int, str]] = [
    (case(aten.gelu.default, X), 18, "Gelu"),
    (case(aten.rms_norm.default, Input(("B", "T", 8)), [8], Weight((8,)), 1e-6), 21, "SimplifiedLayerNormalization"),
    (case(aten.scaled_dot_product_attention.default, Q, K, V), 21, "FusedMatMul"),
    (case(aten.scaled_dot_product_attention.default, Q, K, V), 23, "Attention"),
    (case(aten.linear.default, Input((2, 3, 5)), Weight((4, 5)), Weight((4,))), 21, "Gemm"),
]
