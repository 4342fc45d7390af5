"""The rules for convolutions, pooling, norms, activations, resizing, attention and recurrence, against torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fxopt.export.onnx_rules import (
    ONNX_RULES,
    activation,
    adaptive_pooling,
    attention,
    convolution,
    normalization,
    padding,
    pixels,
    pooling,
    recurrent,
    resize,
)
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from tests.export import nn_cases, sequence_cases
from tests.export.op_cases import OPSETS, Case, Input, Weight, case, check, emit

aten = torch.ops.aten

FAMILIES: dict[ModuleType, Sequence[Case]] = {
    convolution: nn_cases.CONVOLUTION,
    pooling: nn_cases.POOLING,
    adaptive_pooling: nn_cases.ADAPTIVE_POOLING,
    normalization: nn_cases.NORMALIZATION,
    activation: nn_cases.ACTIVATION,
    padding: nn_cases.PADDING,
    pixels: nn_cases.PIXELS,
    resize: nn_cases.RESIZE,
    attention: sequence_cases.ATTENTION,
    recurrent: sequence_cases.RECURRENT,
}
# torch says that "same" padding of even kernels costs a copy, and that weights of an LSTM should lie side by side.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__.rsplit(".", 1)[1])
def test_every_row_has_a_case(family: ModuleType) -> None:
    assert set(family.RULES) == {case.op for case in FAMILIES[family]}


def test_the_docstring_of_a_rule_is_the_schema_of_its_op() -> None:
    wrong = {
        str(op): str(op._schema)
        for op, rule in ONNX_RULES.items()
        if isinstance(op, torch._ops.OpOverload)
        and str(op._schema) not in [line.strip() for line in (rule.__doc__ or "").splitlines()]
    }
    assert wrong == {}


def can_be_emitted(cases: Sequence[Case], opset: int) -> list[Case]:
    return [case for case in cases if opset in case.opsets]


# One opset a family in the fast run, all of them in the slow one.
@pytest.mark.parametrize(
    ("family", "opset"),
    [
        pytest.param(
            family,
            opset,
            marks=[] if opset == OPSETS[number % len(OPSETS)] else [pytest.mark.slow],
            id=f"{family.__name__.rsplit('.', 1)[1]}-{opset}",
        )
        for number, family in enumerate(FAMILIES)
        for opset in OPSETS
    ],
)
def test_rules_agree_with_torch_at_two_sets_of_sizes(family: ModuleType, opset: int) -> None:
    emitted = check(can_be_emitted(FAMILIES[family], opset), opset)
    assert not emitted.delegated


@pytest.mark.parametrize(
    "case", [case for cases in FAMILIES.values() for case in cases if case.emits], ids=lambda case: case.name
)
def test_a_case_emits_the_ops_it_names(case: Case) -> None:
    _, emitted = emit([case], 21)
    assert set(case.emits) <= {node.op_type for node in emitted.proto.graph.node}


def test_what_a_rule_cannot_express_is_delegated_and_right() -> None:
    emitted = check(sequence_cases.DELEGATED, 18)
    assert set(emitted.delegated) == {str(case.op) for case in sequence_cases.DELEGATED}


@pytest.mark.parametrize(
    ("case", "opset", "fused"), sequence_cases.FUSED, ids=lambda value: getattr(value, "name", str(value))
)
def test_onnxruntime_fuses_the_form(case: Case, opset: int, fused: str, tmp_path: Path) -> None:
    _, emitted = emit([case], opset)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(emitted.proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert fused in {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}


def test_a_transposed_weight_keeps_its_name_and_is_stored_once() -> None:
    weight = Weight((7, 11))
    _, emitted = emit([case(aten.linear.default, Input(("B", "T", 11)), weight)], 21)
    (initializer,) = emitted.proto.graph.initializer
    assert initializer.name == "models.0.weight_1"
    assert list(initializer.dims) == [11, 7]


def test_initial_states_of_zeros_are_left_out() -> None:
    program = capture(nn.LSTM(4, 3, batch_first=True), torch.zeros(2, 5, 4), dynamic="batch")
    (lstm,) = [node for node in to_onnx(program).proto.graph.node if node.op_type == "LSTM"]
    assert len(lstm.input) == 4


# --- geometry -------------------------------------------------------------------------------------------------------


@st.composite
def windows(draw: st.DrawFn, spatial: int, pads_up_to_half: bool) -> dict[str, list[int]]:
    """Draw kernels, strides, dilations, paddings, and sizes in which a window fits."""

    def ints(low: int, high: int) -> list[int]:
        return draw(st.lists(st.integers(low, high), min_size=spatial, max_size=spatial))

    kernel, stride, dilation = ints(1, 4), ints(1, 3), ints(1, 3)
    pad = [draw(st.integers(0, k // 2 if pads_up_to_half else 3)) for k in kernel]
    size = [d * (k - 1) + 1 + more for k, d, more in zip(kernel, dilation, ints(0, 6), strict=True)]
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "pad": pad, "size": size}


@st.composite
def convolutions(draw: st.DrawFn) -> Case:
    spatial = draw(st.integers(1, 3))
    op = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}[spatial]
    transposed = {1: aten.conv_transpose1d.default, 2: aten.conv_transpose2d.input, 3: aten.conv_transpose3d.input}[
        spatial
    ]
    w = draw(windows(spatial, pads_up_to_half=False))
    groups, inner, outer = draw(st.tuples(*[st.integers(1, 3)] * 3))
    bias = draw(st.sampled_from([None, Weight((groups * outer,))]))
    x = Input(("B", groups * inner, *w["size"]))
    if not draw(st.booleans()):
        weight = Weight((groups * outer, inner, *w["kernel"]))
        return case(op, x, weight, bias, w["stride"], w["pad"], w["dilation"], groups)
    pad = [min(p, d * (k - 1) // 2) for p, d, k in zip(w["pad"], w["dilation"], w["kernel"], strict=True)]
    more = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(w["stride"], w["dilation"], strict=True)]
    weight = Weight((groups * inner, outer, *w["kernel"]))
    return case(transposed, x, weight, bias, w["stride"], pad, more, groups, w["dilation"])


@st.composite
def poolings(draw: st.DrawFn) -> Case:
    spatial = draw(st.integers(1, 3))
    maximum = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}[spatial]
    average = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}[spatial]
    w = draw(windows(spatial, pads_up_to_half=True))
    x, ceil = Input(("B", 2, *w["size"])), draw(st.booleans())
    if draw(st.booleans()):
        return case(maximum, x, w["kernel"], w["stride"], w["pad"], w["dilation"], ceil)
    divisor = [draw(st.sampled_from([None, 3]))] if spatial > 1 else []
    return case(average, x, w["kernel"], w["stride"], w["pad"], ceil, draw(st.booleans()), *divisor)


@st.composite
def resizings(draw: st.DrawFn) -> Case:
    size, factor = draw(st.integers(4, 40)), draw(st.sampled_from([None, 0.3, 0.7, 1.3, 2.3, 3.0]))
    x, count = Input(("B", 1, size)), draw(st.integers(1, 60)) if factor is None else int(size * factor)
    corners: list[Any] = []
    op = draw(st.sampled_from([aten.upsample_nearest1d, aten._upsample_nearest_exact1d, aten.upsample_linear1d]))
    if op is aten.upsample_linear1d:
        corners = [draw(st.booleans())]
    return case(op.default, x, [count], *corners, factor)


@pytest.mark.parametrize("geometries", [convolutions(), poolings(), resizings()], ids=["conv", "pool", "resize"])
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_geometry(geometries: st.SearchStrategy[Case], data: st.DataObject) -> None:
    check(data.draw(st.lists(geometries, min_size=12, max_size=12)), 21)
