"""In-place ops become functional: random programs of views and writes give what eager PyTorch gives."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxopt.errors import CaptureError
from fxopt.graph.capture import capture
from fxopt.graph.functionalize import functional_form, is_inplace
from fxopt.graph.verify import verify
from tests.graph.models import Function

aten = torch.ops.aten

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "select": lambda t: t[-1] if t.ndim else t,
    "slice": lambda t: t[..., :2] if t.ndim else t,
    "step": lambda t: t[::2] if t.ndim else t,
    "narrow": lambda t: t.narrow(0, 0, 1) if t.ndim and len(t) else t,
    "transpose": lambda t: t.transpose(0, -1) if t.ndim else t,
    "matrix": lambda t: t.mT if t.ndim > 1 else t,
    "permute": lambda t: t.permute([*range(1, t.ndim), 0]) if t.ndim else t,
    "view": lambda t: t.reshape(-1),
    "unsqueeze": lambda t: t.unsqueeze(-1),
    "squeeze": lambda t: t.squeeze(),
    "diagonal": lambda t: t.diagonal() if t.ndim > 1 else t,
    "unbind": lambda t: t.unbind(0)[-1] if t.ndim and len(t) else t,
    "split": lambda t: torch.split(t, 2)[-1] if t.ndim and len(t) else t,
    "chunk": lambda t: t.chunk(2, -1)[-1] if t.ndim and len(t) else t,
    "expand": lambda t: t.expand(t.shape),
    "detach": lambda t: t.detach(),
    "contiguous": lambda t: t.contiguous(),
    "alias": lambda t: t.view_as(t),
}
WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "add": lambda t, other: t.add_(1.5),
    "subtract": lambda t, other: t.sub_(other.sum()),
    "multiply": lambda t, other: t.mul_(2),
    "fill": lambda t, other: t.fill_(3),
    "zero": lambda t, other: t.zero_(),
    "relu": lambda t, other: torch.relu_(t),
    "clamp": lambda t, other: t.clamp_(-1, 1),
    "copy": lambda t, other: t.copy_(other.mean()),
    "mask": lambda t, other: t.masked_fill_(t > 1, 0.5),
    "item": lambda t, other: t.__setitem__(0, other.mean()) if t.ndim and len(t) else None,
    "last": lambda t, other: t.__setitem__((..., -1), 1.25) if t.ndim and t.shape[-1] else None,
    "same shape": lambda t, other: t.add_(other) if t.shape == other.shape else None,
}
READS: dict[str, Callable[[Tensor], Tensor]] = {"sine": torch.sin, "clone": torch.clone, "plus": lambda t: t + 1}

STEP = st.one_of(
    st.tuples(st.sampled_from(sorted(VIEWS)), st.integers(0, 99), st.just(0)),
    st.tuples(st.sampled_from(sorted(WRITES)), st.integers(0, 99), st.integers(0, 99)),
    st.tuples(st.sampled_from(sorted(READS)), st.integers(0, 99), st.just(0)),
)


def run_steps(steps: list[tuple[str, int, int]], x: Tensor) -> list[Tensor]:
    """Run the steps on values made so far, each named by a number; returns all values as they are at the end."""
    values = [x, x + 0]
    for name, first, second in steps:
        value, other = values[first % len(values)], values[second % len(values)]
        if name in WRITES:
            WRITES[name](value, other)
        else:
            values.append((VIEWS | READS)[name](value))
    return values


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEP, min_size=2, max_size=9))
def test_random_views_and_writes(steps: list[tuple[str, int, int]]) -> None:
    x = torch.linspace(-2, 3, 12).reshape(3, 4)
    program = verify(capture(Function(lambda module, x: run_steps(steps, x)), x.clone()))
    for expected, actual in zip(run_steps(steps, x.clone()), program(x.clone()), strict=True):
        torch.testing.assert_close(actual, expected, equal_nan=True)


def write_parts(module: Any, x: Tensor) -> Any:
    left, right = x.clone().chunk(2, -1)
    left *= 2
    right.copy_(left)
    return left, right


def write_dynamic_slices(module: Any, x: Tensor) -> Any:
    y = x.new_zeros(x.shape[0], x.shape[1] + 2, 8)
    y[:, 2:] = x
    y[:, -1:] += 1
    return y


def write_indices(module: Any, x: Tensor) -> Any:
    y = torch.zeros(3, 8)
    y[torch.tensor([0, 2])] = x[0, :2]
    y[y > 0.5] = 2.0
    y.T[0] = 3
    return y.index_fill_(1, torch.tensor([1]), 4.0)


def write_other_dtypes(module: Any, x: Tensor) -> Any:
    half, mask = x.to(torch.float16), x > 0
    half += x
    mask |= x < -1
    return half, mask


def write_the_input(module: Any, x: Tensor) -> Any:
    torch.nn.functional.silu(x, inplace=True)
    return x, torch.nn.functional.dropout(x, 0.5, training=False, inplace=True).mul_(2)


def write_the_shape(module: Any, x: Tensor) -> Any:
    y = x + 0
    y.unsqueeze_(0)
    return y.add_(1)


@pytest.mark.parametrize(
    "function",
    [write_parts, write_dynamic_slices, write_indices, write_other_dtypes, write_the_input, write_the_shape],
)
def test_writes_of_every_kind(function: Callable[..., Any]) -> None:
    dims = {} if function is write_indices else {0: "batch", 1: "time"}
    program = verify(capture(Function(function), torch.randn(2, 3, 8), dynamic={"inputs_0": dims}), full=True)
    assert not any(is_inplace(node) for node in program.graph.nodes)
    x = torch.randn(2, 3, 8) if function is write_indices else torch.randn(4, 5, 8)
    torch.testing.assert_close(program(x.clone()), function(None, x.clone()))


def test_an_updated_input_is_noted() -> None:
    program = capture(Function(write_the_input), torch.randn(2, 3))
    assert program.notes == ("forward() updates 'inputs_0'; the update is not part of the Program.",)


def test_the_model_and_its_buffers_are_left_as_they_were() -> None:
    model = Function(lambda module, x: module.total.add_(x))
    before = copy.deepcopy(model.state_dict())
    program = capture(model, torch.ones(8))
    program(torch.ones(8))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def overlapping(module: Any, x: Tensor) -> Tensor:
    y = x + 0
    y.as_strided((2, 2), (1, 1)).mul_(2)
    return y


def into_out(module: Any, x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    return torch.add(x, x, out=y)


@pytest.mark.parametrize(
    ("function", "message"),
    [(overlapping, "through a view made by aten.as_strided"), (into_out, "aten.add.out.*no functional form")],
)
def test_what_cannot_be_functional_is_refused(function: Callable[..., Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Function(function), torch.randn(2, 3))


@pytest.mark.parametrize(
    ("op", "form"),
    [
        (aten.relu_.default, aten.relu.default),
        (aten.add_.Tensor, aten.add.Tensor),
        (aten.zero_.default, aten.zeros_like.default),
        (aten.__ior__.Tensor, aten.bitwise_or.Tensor),
        (aten.relu.default, None),
        (aten.add.out, None),
    ],
)
def test_functional_form(op: Any, form: Any) -> None:
    assert functional_form(op) is form
