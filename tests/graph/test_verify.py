"""verify(): every invariant, planted wrong once, is found and its place shown."""

import operator
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxopt.errors import VerifyError
from fxopt.graph.capture import capture
from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.program import Program, TensorSpec
from fxopt.graph.rewrite import Edit
from fxopt.graph.verify import EXPENSIVE_INVARIANTS, INVARIANTS, verify
from tests.graph.models import ConvNet

aten = torch.ops.aten


class Quantized(nn.Module):
    """Quantize to one scale, dequantize; the weight per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.125))
        self.register_buffer("zero_point", torch.tensor(3, dtype=torch.uint8))
        self.register_buffer("weight", torch.zeros(4, 2, dtype=torch.int8))
        self.register_buffer("steps", torch.ones(4))
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        q = quantize(x, self.scale, self.zero_point, None, 0, 255, torch.uint8)
        weight = dequantize(self.weight, self.steps, self.zeros, 0)
        return nn.functional.linear(dequantize(q, self.scale, self.zero_point, None), weight)


@pytest.fixture
def program() -> Program:
    return capture(ConvNet(), torch.randn(2, 3, 8, 8))


@pytest.fixture
def quantized() -> Program:
    return capture(Quantized(), torch.randn(3, 2))


def the(program: Program, op: Any) -> fx.Node:
    node: fx.Node = next(iter(program.graph.find_nodes(op="call_function", target=op)))
    return node


def test_captured_programs_are_valid(program: Program, quantized: Program) -> None:
    assert verify(program, full=True) is program
    assert verify(quantized, full=True) is quantized


def test_statements_are_distinct() -> None:
    statements = [statement for statement, _ in INVARIANTS + EXPENSIVE_INVARIANTS]
    assert len(set(statements)) == len(statements)


def unordered(program: Program) -> None:
    the(program, aten.conv2d.default).prepend(the(program, aten.relu.default))


def in_place(program: Program) -> None:
    the(program, aten.relu.default).target = aten.relu_.default


def method(program: Program) -> None:
    node = the(program, aten.relu.default)
    node.op, node.target = "call_method", "relu"


def missing_tensor(program: Program) -> None:
    del program.module.get_submodule("conv").weight


def other_shape(program: Program) -> None:
    program.module.get_submodule("conv").weight = nn.Parameter(torch.zeros(2))


def unread_tensor(program: Program) -> None:
    program.module.register_buffer("forgotten", torch.zeros(2))


def no_value(program: Program) -> None:
    del the(program, aten.relu.default).meta["val"]


def real_value(program: Program) -> None:
    the(program, aten.relu.default).meta["val"] = torch.zeros(2)


def no_tuple(program: Program) -> None:
    program.output_node.args = (program.output_node.args[0][0],)  # type: ignore[index]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (unordered, "fx's own lint.*used before it has been defined"),
        (
            in_place,
            r"no op changes its arguments: aten.relu_.default.*\n  at node 'relu'.*\n(.*\n)*-> %relu__1 = relu_\(",
        ),
        (method, "nodes are placeholder.*call_method"),
        (missing_tensor, "every get_attr reads a tensor.*no 'conv.weight'"),
        (other_shape, r"'conv.weight' is float32\[2\], its node says float32\[4, 3, 3, 3\]"),
        (unread_tensor, "every tensor of the module is read: no node reads 'forgotten'"),
        (no_value, r"every value has its fake tensor: it has no meta\['val'\]"),
        (real_value, "is a real tensor"),
        (no_tuple, "the outputs fit the output specs: .*no tuple"),
    ],
)
def test_damage_to_the_graph_is_found(program: Program, damage: Callable[[Program], None], message: str) -> None:
    damage(program)
    with pytest.raises(VerifyError, match=message):
        verify(program)


X, Y = TensorSpec("x", torch.float32, (2, 3, 8, 8)), TensorSpec("output", torch.float32, (2, 5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ()}, "1 placeholders for 0 input specs"),
        ({"inputs": (replace(X, shape=("n", 3, 8, 8)),)}, r"the spec is x: float32\[n, 3, 8, 8\], the node gives"),
        ({"inputs": (replace(X, dtype=torch.int8),)}, r"the spec is x: int8"),
        ({"outputs": (Y, Y)}, "1 values for 2 output specs"),
        ({"outputs": (replace(Y, shape=(2, 6)),)}, r"the spec is output: float32\[2, 6\]"),
        ({"outputs": (None,)}, "is a tensor without a spec"),
        ({"history": ["Prune()"]}, r"history is \['Prune\(\)'\]"),
        ({"notes": (3,)}, r"notes is \(3,\)"),
        ({"constants": {1: 2.0}}, "a call has 1 leaves, inputs and constants are 2"),
    ],
)
def test_specs_that_do_not_fit_are_found(program: Program, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        verify(replace(program, **changes))


def test_names_are_unique() -> None:
    class Twice(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    program = capture(Twice(), (torch.ones(2), torch.zeros(2)))
    with pytest.raises(VerifyError, match=r"two inputs are named 'a'"):
        verify(replace(program, inputs=(program.inputs[0],) * 2))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scale", torch.tensor(0.0), "scale 'scale' is not positive"),
        ("scale", torch.tensor(float("nan")), "scale 'scale' is not positive"),
        ("steps", torch.tensor([1.0, -1.0, 1.0, 1.0]), "scale 'steps' is not positive"),
    ],
)
def test_scales_are_positive_and_finite(quantized: Program, name: str, value: Tensor, message: str) -> None:
    quantized.module.register_buffer(name, value)
    with pytest.raises(VerifyError, match=message):
        verify(quantized)


@pytest.mark.parametrize(
    ("op", "position", "value", "message"),
    [
        (quantize, 5, 256, r"the range \[0, 256\] does not lie inside uint8"),
        (quantize, 4, 10, r"zero_point 'zero_point' lies outside of \[10, 255\]"),
        (quantize, 3, 1, r"scale has the shape \(\) instead of \(2,\) \(axis=1\)"),
        (dequantize, 3, 1, r"scale has the shape \(4,\) instead of \(2,\) \(axis=1\)"),
        (dequantize, 3, 2, "axis 2 of a tensor with 2 dimensions"),
    ],
)
def test_quantization_is_well_formed(quantized: Program, op: Any, position: int, value: int, message: str) -> None:
    node = the(quantized, op)
    node.update_arg(position, value)
    with pytest.raises(VerifyError, match=message):
        verify(quantized)


def test_only_the_full_check_recomputes_values(program: Program) -> None:
    edit = Edit(program, by=None)
    (mean,) = edit.calls(aten.mean.dim)
    mean.args = (mean.args[0], [1, 2])
    result = edit.finish()
    assert verify(result) is result
    with pytest.raises(VerifyError, match=r"those the ops compute: computed .*size=\(2, 8\).* stored"):
        verify(result, full=True)


def test_sizes_that_depend_on_data_are_accepted() -> None:
    class Select(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0] * x.sum().item()

    verify(capture(Select(), torch.randn(3)), full=True)


def test_the_error_says_which_pass_came_last(program: Program) -> None:
    damaged = replace(program, history=("FoldBatchNorm()", "Broken(1)"), inputs=())
    with pytest.raises(VerifyError, match=re.escape("The Program after Broken(1) is not valid")):
        verify(damaged)


def test_all_broken_statements_are_told(program: Program) -> None:
    with pytest.raises(VerifyError) as error:
        verify(replace(program, inputs=(), outputs=(), history=[]))  # type: ignore[arg-type]
    assert str(error.value).count("\n* ") == 4


def test_getitem_of_parts_is_accepted() -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.chunk(2)[1]

    program = verify(capture(Parts(), torch.randn(4)), full=True)
    assert program.graph.find_nodes(op="call_function", target=operator.getitem)
