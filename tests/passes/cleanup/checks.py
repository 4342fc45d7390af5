"""What must hold for every cleanup pass on every Program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxopt.graph.capture import capture
from fxopt.graph.pipeline import Pass
from fxopt.graph.printer import format_program
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute
from fxopt.graph.verify import verify

FLOAT32_BOUND = 1e-5  # of the output's range, a fold rounds each weight once


class Model(nn.Module):
    """A module whose forward is a function of (itself, inputs); keyword arguments become its attributes."""

    def __init__(self, function: Callable[..., Any], **members: Any) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def program_of(function: Callable[..., Any], *inputs: Tensor, dynamic: str | None = None, **members: Any) -> Program:
    """Capture a function of (module, inputs) with the given members."""
    return capture(Model(function, **members), inputs, dynamic=dynamic)


def snapshot(program: Program) -> tuple[str, dict[str, Tensor]]:
    """Copy all that a pass must not touch: the text, the raw arguments and the tensors."""
    raw = "\n".join(f"{node.name} {node.op} {node.target} {node.args} {node.kwargs}" for node in program.graph.nodes)
    return raw + format_program(program), {name: value.detach().clone() for name, value in tensors(program).items()}


def check(by: Pass, program: Program, *inputs: Tensor, bound: float = FLOAT32_BOUND) -> Program:
    """Run a pass and return its result, after checking what every pass promises.

    Same outputs within `bound` of their range (0: exactly), a valid Program, the second run changes nothing, two runs
    agree, and the Program that went in is untouched.
    """
    text, values = snapshot(program)
    result = by(program)
    verify(result, full=True)
    assert_same_outputs(program, result, inputs, bound)
    assert by(result) is result, f"a second run of {by} changes the Program again"
    assert format_program(by(program)) == format_program(result)
    after_text, after_values = snapshot(program)
    assert text == after_text
    assert values.keys() == after_values.keys()
    assert all(torch.equal(values[name], after_values[name]) for name in values)
    return result


def assert_same_outputs(before: Program, after: Program, inputs: tuple[Tensor, ...], bound: float) -> None:
    with torch.no_grad():
        pairs = zip(before.module(*inputs), after.module(*inputs), strict=True)
    for expected, actual in pairs:
        if not isinstance(expected, Tensor):
            assert expected == actual
            continue
        assert expected.shape == actual.shape
        assert expected.dtype == actual.dtype
        if bound == 0 or not expected.is_floating_point():
            torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
        elif expected.numel():
            error = float((actual.double() - expected.double()).abs().max())
            assert error <= bound * max(float(expected.abs().max()), float(expected.max() - expected.min()), 1e-3)


def ops(program: Program) -> list[str]:
    """List the ops of a Program in graph order, by name."""
    calls = program.graph.nodes
    return [
        node.target._opname if isinstance(node.target, torch._ops.OpOverload) else str(node.target.__name__)
        for node in calls
        if node.op == "call_function"
    ]


def tensors(program: Program) -> dict[str, Tensor]:
    """Return the tensors that a Program reads, by name."""
    names = [str(node.target) for node in program.graph.find_nodes(op="get_attr")]
    return {name: get_attribute(program.module, name) for name in names}


def refuses(by: Pass, program: Program) -> None:
    """Assert that a pass leaves a Program alone: it returns the very same object."""
    assert by(program) is program
