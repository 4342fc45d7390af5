"""WEIGHT_RULES: every row finds its weights, and knows which of them one output sums over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxopt.graph.rewrite import get_attribute
from fxopt.graph.verify import verify
from fxopt.passes import FoldMasks, MaskWeights
from fxopt.passes.prune import NofM
from fxopt.passes.prune.weights import WEIGHT_RULES, Layout, weights_of
from tests.passes.cleanup.checks import check, program_of

aten = torch.ops.aten


@pytest.mark.parametrize("inputs_first", [False, True])
def test_convolutions_lie_channels_last(inputs_first: bool) -> None:
    groups, first, second, kernel = 2, 3, 4, (3, 2)
    weight = torch.randn(groups * first, second, *kernel)
    found = Layout((groups, first, second, 6), inputs_first).matrices(weight)
    assert found.shape == ((12, 4, 3) if inputs_first else (12, 3, 4))
    for matrix, output, channel in np.ndindex(*found.shape):
        group, tap = divmod(matrix, 6)
        a, b = (channel, output) if inputs_first else (output, channel)
        assert found[matrix, output, channel] == weight[group * first + a, b, tap // 2, tap % 2]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(1, 4)] * 4), st.booleans())
def test_layouts_are_undone(shape: tuple[int, int, int, int], inputs_first: bool) -> None:
    layout = Layout(shape, inputs_first)
    weight = torch.randn(shape[0] * shape[1], shape[2], shape[3])
    assert torch.equal(layout.restore(layout.matrices(weight), weight), weight)
    rows = layout.rows(weight)
    assert rows.shape[1] == weight.numel() // (shape[0] * shape[2 if inputs_first else 1])
    assert torch.equal(layout.restore_rows(rows, weight), weight)


CALLS: dict[Any, tuple[Any, tuple[Tensor, ...], dict[str, Any]]] = {
    aten.conv1d.default: (lambda m, x: m.layer(x), (torch.randn(1, 4, 6),), {"layer": nn.Conv1d(4, 4, 3)}),
    aten.conv2d.default: (lambda m, x: m.layer(x), (torch.randn(1, 4, 6, 6),), {"layer": nn.Conv2d(4, 4, 3)}),
    aten.conv3d.default: (lambda m, x: m.layer(x), (torch.randn(1, 4, 3, 3, 3),), {"layer": nn.Conv3d(4, 4, 2)}),
    aten.conv2d.padding: (
        lambda m, x: m.layer(x),
        (torch.randn(1, 4, 6, 6),),
        {"layer": nn.Conv2d(4, 4, 3, padding="same")},
    ),
    aten.conv_transpose1d.default: (
        lambda m, x: m.layer(x),
        (torch.randn(1, 4, 6),),
        {"layer": nn.ConvTranspose1d(4, 4, 3)},
    ),
    aten.conv_transpose2d.input: (
        lambda m, x: m.layer(x),
        (torch.randn(1, 8, 6, 6),),
        {"layer": nn.ConvTranspose2d(8, 4, 3, groups=2)},
    ),
    aten.conv_transpose3d.input: (
        lambda m, x: m.layer(x),
        (torch.randn(1, 4, 3, 3, 3),),
        {"layer": nn.ConvTranspose3d(4, 4, 2)},
    ),
    aten.linear.default: (lambda m, x: m.layer(x), (torch.randn(2, 4),), {"layer": nn.Linear(4, 4)}),
    aten.matmul.default: (
        lambda m, x: x @ m.layer,
        (torch.randn(2, 3, 4),),
        {"layer": nn.Parameter(torch.randn(4, 4))},
    ),
    aten.mm.default: (
        lambda m, x: torch.mm(m.layer, x),
        (torch.randn(4, 3),),
        {"layer": nn.Parameter(torch.randn(4, 4))},
    ),
    aten.bmm.default: (
        lambda m, x: torch.bmm(x, m.layer),
        (torch.randn(2, 3, 4),),
        {"layer": nn.Parameter(torch.randn(2, 4, 4))},
    ),
    aten.addmm.default: (
        lambda m, x: torch.addmm(m.bias, x, m.layer),
        (torch.randn(2, 4),),
        {"layer": nn.Parameter(torch.randn(4, 4)), "bias": torch.ones(4)},
    ),
    aten.lstm.input: (lambda m, x: m.layer(x)[0], (torch.randn(2, 3, 4),), {"layer": nn.LSTM(4, 4)}),
    aten.gru.input: (lambda m, x: m.layer(x)[0], (torch.randn(2, 3, 4),), {"layer": nn.GRU(4, 4)}),
    aten.rnn_tanh.input: (lambda m, x: m.layer(x)[0], (torch.randn(2, 3, 4),), {"layer": nn.RNN(4, 4)}),
    aten.rnn_relu.input: (
        lambda m, x: m.layer(x)[0],
        (torch.randn(2, 3, 4),),
        {"layer": nn.RNN(4, 4, nonlinearity="relu")},
    ),
}  # fmt: skip
ALIKE = {aten.conv1d.padding, aten.conv3d.padding, aten.baddbmm.default}  # as conv2d.padding and bmm


def test_every_row_has_a_case() -> None:
    assert CALLS.keys() | ALIKE == WEIGHT_RULES.keys()


@pytest.mark.parametrize("op", CALLS, ids=str)
def test_rows(op: Any) -> None:
    function, inputs, members = CALLS[op]
    program = program_of(function, *inputs, **members)
    assert any(node.target is op for node in program.graph.nodes)
    result = verify(MaskWeights(NofM(2, 4))(program), full=True)
    found = weights_of(result)
    assert found and all(weight.reader.target is op for weight in found)
    for weight in found:
        assert (weight.layout.matrices(weight.mask).sum(2) == 2).all()
    check(FoldMasks(), result, *inputs, bound=0)


@pytest.mark.parametrize("op", [op for op in CALLS if "conv" in str(op)] + [aten.linear.default], ids=str)
def test_an_output_sums_over_its_row(op: Any) -> None:
    """Masking all rows but that of the first output leaves only that output different from the bias."""
    function, inputs, members = CALLS[op]
    program = program_of(function, *inputs, **members)
    weight = weights_of(program)[0]
    rows = torch.zeros_like(weight.layout.rows(weight.mask))
    rows[0] = True
    pattern = lambda weights, scores: [weight.layout.restore_rows(rows, weight.value)]  # noqa: E731
    (value,) = MaskWeights(pattern)(program).module(*inputs)
    bias = get_attribute(program.module, "layer.bias")
    axis = 1 if "conv" in str(op) else -1
    moved = (value - bias.reshape([-1 if dim == axis % value.ndim else 1 for dim in range(value.ndim)])).abs()
    changed = moved.amax([dim for dim in range(value.ndim) if dim != axis % value.ndim]) > 1e-6
    assert changed.tolist() == [True] + [False] * (len(changed) - 1)
