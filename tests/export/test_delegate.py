"""An op without a rule: translated by torch.onnx alone, computed now, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxopt.errors import UnsupportedOpError
from fxopt.export.model_file import OnnxModel
from fxopt.export.onnx_rules import ONNX_RULES
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from tests.export.op_cases import assert_close, session_of

aten = torch.ops.aten


class Call(nn.Module):
    """A function of an input and a parameter."""

    def __init__(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(-2, 3, 5), requires_grad=False)

    def forward(self, x: Tensor) -> Any:
        """Apply the function."""
        return self.function(x, self.weight)


def emit(function: Callable[[Tensor, Tensor], Any], opset: int = 21) -> tuple[nn.Module, OnnxModel]:
    model = Call(function)
    return model, to_onnx(capture(model, torch.randn(3, 5), dynamic="batch"), opset=opset)


def check(function: Callable[[Tensor, Tensor], Any], opset: int = 21) -> OnnxModel:
    model, emitted = emit(function, opset)
    onnx.checker.check_model(emitted.proto, full_check=True)
    session = session_of(emitted.proto)
    for batch in (3, 7):
        x = torch.randn(batch, 5)
        for got, want in zip(session.run(None, {"x": x.numpy()}), pytree.tree_leaves(model(x)), strict=True):
            assert_close(got, want.numpy(), 1e-5, f"batch {batch}, opset {opset}")
    return emitted


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_a_delegated_op_is_inlined_and_reported(
    opset: int, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    emitted = check(lambda x, w: torch.atan2(x, w) + torch.atan2(w, x) + torch.atan2(x, w), opset)
    assert emitted.delegated == {"aten.atan2.default": ("atan2", "atan2_1", "atan2_2")}
    assert emitted.opset == opset
    assert not emitted.proto.functions
    names = [node.name for node in emitted.proto.graph.node]
    assert len(set(names)) == len(names)
    assert capfd.readouterr().out == ""
    assert not recwarn.list


def test_several_results_and_weights_of_its_own() -> None:
    def function(x: Tensor, weight: Tensor) -> Any:
        return torch.unique(x.round(), return_inverse=True, return_counts=True)

    assert list(check(function).delegated) == ["aten._unique2.default"]


def test_a_size_stays_dynamic() -> None:
    emitted = check(lambda x, w: aten.as_strided(x, [x.shape[0] - 1, 2], [5, 2], 1))
    assert list(emitted.delegated) == ["aten.as_strided.default"]


def test_a_rule_can_delegate_a_rare_case() -> None:
    assert aten.diagonal.default in ONNX_RULES
    emitted = check(lambda x, w: torch.diagonal(x))
    assert list(emitted.delegated) == ["aten.diagonal.default"]


def test_a_call_without_tensors_becomes_a_constant() -> None:
    emitted = check(lambda x, w: x * torch.hann_window(5))
    assert list(emitted.delegated) == ["aten.hann_window.default"]
    assert [node.op_type for node in emitted.proto.graph.node] == ["Mul"]


def random_numbers(x: Tensor, weight: Tensor) -> Tensor:
    return x + torch.rand_like(x)


def no_translation(x: Tensor, weight: Tensor) -> Tensor:
    return torch.hypot(x, weight)


def complex_numbers(x: Tensor, weight: Tensor) -> Tensor:
    spectrum: Tensor = torch.fft.rfft(x)
    return spectrum.abs()


def size_float(x: Tensor, weight: Tensor) -> Tensor:
    return torch.renorm(x, 2, 0, x.shape[0] / 2)


@pytest.mark.parametrize(
    ("function", "op", "reason"),
    [
        (random_numbers, "aten.rand_like", "random"),
        (no_translation, "aten.hypot", "torch.onnx cannot translate"),
        (complex_numbers, "aten.fft_rfft", "complex"),
        (size_float, "aten.renorm", "computed from sizes"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    function: Callable[[Tensor, Tensor], Tensor], op: str, reason: str
) -> None:
    with pytest.raises(UnsupportedOpError, match=reason) as raised:
        emit(function)
    message = str(raised.value)
    assert op in message
    assert "test_delegate.py" in message  # the line of the model
    assert "\n" not in message and "\x1b" not in message
