"""Capture: what a model returns stays the same, whatever its inputs, outputs and state look like."""

import copy
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.zoo_models.shim import declare_torchvision_ops
from fxopt.errors import CaptureError, DataError
from fxopt.graph.capture import capture
from fxopt.graph.program import Program
from fxopt.graph.verify import verify
from tests.graph.models import ConvNet, Function


def assert_same(left: Any, right: Any) -> None:
    """Compare two results: structure, shapes, dtypes, and values to within float rounding."""
    left_leaves, left_spec = pytree.tree_flatten(left)
    right_leaves, right_spec = pytree.tree_flatten(right)
    assert left_spec == right_spec
    for one, other in zip(left_leaves, right_leaves, strict=True):
        if isinstance(one, Tensor):
            torch.testing.assert_close(other, one)
        else:
            assert one == other


def check(model: nn.Module, example: Any, *inputs: Any, dynamic: Any = None, **keywords: Any) -> Program:
    """Capture with the example, verify fully, and compare with the model on other inputs."""
    program = verify(capture(model, example, dynamic=dynamic), full=True)
    expected = copy.deepcopy(model).eval()(*copy.deepcopy(inputs), **copy.deepcopy(keywords))
    assert_same(expected, program(*inputs, **keywords))
    return program


def shapes(program: Program) -> list[str]:
    return [str(spec) for spec in program.inputs]


def test_dynamic_by_name_from_an_example_of_batch_one() -> None:
    program = check(ConvNet(), torch.randn(1, 3, 8, 8), torch.randn(5, 3, 8, 8), dynamic="batch")
    assert shapes(program) == ["x: float32[batch, 3, 8, 8]"]
    assert str(program.outputs[0]) == "output: float32[batch, 5]"
    assert program.notes == ()


def test_dynamic_by_input_and_dimension() -> None:
    model = Function(lambda module, x: module.linear(x).sum(1))
    dims = {"inputs_0": {0: "batch", -2: "time"}}
    program = check(model, torch.randn(1, 3, 8), torch.randn(2, 7, 8), dynamic=dims)
    assert shapes(program) == ["inputs_0: float32[batch, time, 8]"]


class TwoInputs(nn.Module):
    def forward(self, a: Tensor, b: Tensor, flag: bool = True, *, scale: float | Tensor = 1.0) -> Tensor:
        return a * scale + b if flag else a - b


def test_one_name_for_two_inputs_is_one_dimension() -> None:
    program = check(TwoInputs(), (torch.randn(2, 3),) * 2, torch.randn(4, 3), torch.randn(4, 3), dynamic="batch")
    assert shapes(program) == ["a: float32[batch, 3]", "b: float32[batch, 3]"]
    with pytest.raises(DataError, match=r"Input 'b' .*dimension 0 \(batch, 4 elsewhere\) has size 5"):
        program(torch.randn(4, 3), torch.randn(5, 3))


@pytest.mark.parametrize(
    ("function", "dims", "note"),
    [
        (lambda m, x: m.linear(x), {0: "batch", 2: "width"}, "Dimension 2 ('width') of input 'inputs_0' is fixed to 8"),
        (lambda m, x: m.linear(x).reshape(24), {0: "batch"}, "Dimension 0 ('batch') of input 'inputs_0' is fixed to 1"),
        (lambda m, x: x.reshape(-1, 2, 24), {0: "batch"}, "Dimension 'batch' must be a multiple of 2."),
    ],
)
def test_a_dimension_that_the_model_fixes_is_noted(
    function: Callable[..., Any], dims: dict[int, str], note: str
) -> None:
    program = capture(Function(function), torch.randn(1, 3, 8), dynamic={"inputs_0": dims})
    assert any(text.startswith(note) for text in program.notes), program.notes


@dataclass
class Pair:
    first: Tensor
    second: Tensor | None = None


class Named(NamedTuple):
    left: Tensor
    right: tuple[Tensor, int]


torch.export.register_dataclass(Pair)


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda m, x: {"y": x + 1, "none": None, "n": 3}, ["y", None, None]),
        (lambda m, x: (x + 1, [x - 1, {"z": x}]), ["output_0", "output_1_0", "output_1_1_z"]),
        (lambda m, x: Named(x + 1, (x, 4)), ["left", "right_0", None]),
        (lambda m, x: Pair(x + 1), ["first"]),
        (lambda m, x: (x, x, m.weight, m.total), ["output_0", "output_1", "output_2", "output_3"]),
        (lambda m, x: {"a_b": x + 1, "a": {"b": x}}, ["output_0", "output_1"]),  # "a_b" would be there twice
    ],
)
def test_outputs_keep_their_structure(function: Callable[..., Any], names: list[str | None]) -> None:
    x = torch.randn(2, 8)
    program = check(Function(function), x, x)
    assert [spec and spec.name for spec in program.outputs] == names


SMALL_BERT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 20,
}


@pytest.mark.slow
def test_huggingface_output_is_an_object_of_its_class() -> None:
    declare_torchvision_ops()
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing a model of transformers warns of other packages
        model = transformers.BertModel(transformers.BertConfig(**SMALL_BERT)).train()
    example = {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    dims = {name: {0: "batch", 1: "time"} for name in example}
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    mask = (ids > 0).long()
    program = check(model, example, input_ids=ids, attention_mask=mask, dynamic=dims)
    assert shapes(program) == ["input_ids: int64[batch, time]", "attention_mask: int64[batch, time]"]
    assert "last_hidden_state" in program(input_ids=ids, attention_mask=mask)
    assert model.training


def test_keywords_and_constants() -> None:
    a, b, scale = torch.randn(3, 2, 3)
    program = check(TwoInputs(), {"a": a, "b": b, "scale": scale}, a=a, b=b, scale=scale)
    assert [spec.name for spec in program.inputs] == ["a", "b", "scale"]

    program = check(TwoInputs(), {"a": a, "b": b, "flag": False, "scale": 3.0}, a=a, b=b, flag=False, scale=3.0)
    assert [spec.name for spec in program.inputs] == ["a", "b"]
    assert list(program.constants.values()) == [False, 3.0]
    with pytest.raises(DataError, match=r"captured as the constant False, but this call passes True"):
        program(a=a, b=b, flag=True, scale=3.0)


def test_the_call_may_mix_positions_and_keywords() -> None:
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    program = capture(TwoInputs(), (a, b))
    assert torch.equal(program(a, b=b), a + b)
    assert torch.equal(program(b=b, a=a), a + b)


class Variadic(nn.Module):
    def forward(self, *parts: Tensor, **named: Tensor) -> Tensor:
        return sum(parts[1:], parts[0]) - named["offset"]


def test_variadic_arguments_have_names_and_dims() -> None:
    exported = torch.export.export(Variadic(), (torch.randn(2, 3), torch.randn(2, 3)), {"offset": torch.randn(2, 3)})
    assert len(capture(exported).inputs) == 3

    class Sum(nn.Module):
        def forward(self, *parts: Tensor) -> Tensor:
            return parts[0] + parts[1]

    dims = {"parts_0": {0: "batch"}, "parts_1": {0: "batch"}}
    program = check(Sum(), (torch.randn(1, 3), torch.randn(1, 3)), torch.randn(4, 3), torch.randn(4, 3), dynamic=dims)
    assert shapes(program) == ["parts_0: float32[batch, 3]", "parts_1: float32[batch, 3]"]

    class Named(nn.Module):
        def forward(self, x: Tensor, **rest: Tensor) -> Tensor:
            return x + rest["offset"]

    example = {"x": torch.randn(1, 3), "offset": torch.randn(3)}
    program = check(Named(), example, x=torch.randn(4, 3), offset=torch.randn(3), dynamic={"x": {0: "batch"}})
    assert shapes(program) == ["x: float32[batch, 3]", "offset: float32[3]"]
    example = {"x": torch.randn(1, 3), "offset": torch.randn(1, 3)}
    program = check(Named(), example, x=torch.randn(4, 3), offset=torch.randn(4, 3), dynamic="batch")
    assert shapes(program) == ["x: float32[batch, 3]", "offset: float32[batch, 3]"]


def test_lists_and_dicts_as_inputs() -> None:
    class Nested(nn.Module):
        def forward(self, xs: list[Tensor], extra: dict[str, Tensor]) -> Tensor:
            return xs[0] + xs[1] * extra["a"]

    xs, extra = [torch.randn(1, 4), torch.randn(1, 4)], {"a": torch.randn(1, 4)}
    larger = [torch.randn(3, 4), torch.randn(3, 4)]
    program = check(Nested(), (xs, extra), larger, {"a": torch.randn(3, 4)}, dynamic="batch")
    assert [spec.name for spec in program.inputs] == ["xs_0", "xs_1", "extra_a"]
    with pytest.raises(DataError, match=r"another structure"):
        program(larger, {"b": torch.randn(3, 4)})


def test_integer_inputs_and_tied_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids: Tensor) -> Any:
            return self.head(self.embedding(ids))

    program = check(Tied(), torch.tensor([[1, 2]]), torch.tensor([[3, 4], [5, 6]]), dynamic="batch")
    assert shapes(program) == ["ids: int64[batch, 2]"]
    assert len(list(program.parameters())) == 1


def test_modes_of_the_modules_are_restored() -> None:
    model = ConvNet().train()
    model.norm.eval()
    program = check(model, torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)
    (dropout,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.dropout.default)
    assert dropout.args[2] is False


def test_a_buffer_updated_in_forward_is_noted_and_untouched() -> None:
    def count(module: Any, x: Tensor) -> Any:
        module.total += 1
        return x + module.total

    model = Function(count)
    program = check(model, torch.randn(2, 8), torch.randn(2, 8))
    assert program.notes == ("forward() updates 'total'; the update is not part of the Program.",)
    assert model.get_buffer("total").sum() == 0
    assert torch.equal(program(torch.zeros(2, 8)), program(torch.zeros(2, 8)))


def test_constants_made_in_forward_are_no_updates() -> None:
    program = check(Function(lambda m, x: x + torch.tensor([1.0, 2.0])), torch.randn(2), torch.randn(2))
    assert program.notes == ()


def test_context_regions_are_inlined() -> None:
    def regions(module: Any, x: Tensor) -> Any:
        with torch.no_grad():
            y = module.linear(x)
            with torch.enable_grad():
                z = module.linear(y)
        with torch.autocast("cpu", enabled=False):
            return z * y + x

    program = check(Function(regions), torch.randn(2, 8), torch.randn(4, 8), dynamic="batch")
    targets = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert targets == {torch.ops.aten.linear.default, torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor}


def test_an_exported_program_can_be_captured() -> None:
    x = torch.randn(2, 3, 8, 8)
    model = ConvNet().eval()
    program = verify(capture(torch.export.export(model, (x,))), full=True)
    assert_same(model(x), program(x))


def test_lstm_with_dynamic_batch_stays_whole() -> None:
    program = check(
        nn.LSTM(8, 6, 2, bidirectional=True),
        torch.randn(4, 1, 8),
        torch.randn(4, 3, 8),
        dynamic={"input": {1: "batch"}},
    )
    assert program.graph.find_nodes(op="call_function", target=torch.ops.aten.lstm.input)


def branch(module: Any, x: Tensor) -> Tensor:
    if x.sum() > 0:  # the branch on data
        return x
    return -x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (branch, r"test_capture.py:\d+: if x.sum\(\) > 0:.*\nThe model branches on tensor values"),
        (lambda m, x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)), "no control flow.*cond"),
        (lambda m, x: m.linear(x[..., :7]), r"must have same reduction dim.*\n.*test_capture.py:\d+"),
    ],
)
def test_a_failed_capture_names_the_line(
    function: Callable[..., Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError, match=re.compile(message, re.DOTALL)):
        capture(Function(function), torch.randn(2, 8))
    assert capfd.readouterr() == ("", "")  # torch's own prints are held back


@pytest.mark.parametrize(
    ("example", "dynamic", "message"),
    [
        (3, None, "example_inputs must be a Tensor, a tuple .* got int"),
        ((torch.ones(2),), None, "do not fit TwoInputs.forward.*missing a required argument: 'b'"),
        ({"a": torch.ones(2), "c": 1}, None, "do not fit TwoInputs.forward"),
        ((1, 2), None, "hold no Tensor"),
        (
            (torch.ones(2), torch.ones(2)),
            {"c": {0: "n"}},
            "dynamic names the input 'c', but the tensor inputs are a, b",
        ),
        ((torch.ones(2), torch.ones(2)), {"a": {1: "n"}}, "names dimension 1 of 'a', which has 1 dimensions"),
        ((torch.ones(2), torch.ones(2)), "my batch", r"names that are identifiers, got \['my batch'\]"),
    ],
)
def test_wrong_example_inputs(example: Any, dynamic: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(TwoInputs(), example, dynamic=dynamic)


def test_a_model_must_be_a_module() -> None:
    with pytest.raises(CaptureError, match=r"takes an nn.Module or an ExportedProgram, got function"):
        capture(check, torch.ones(2))  # type: ignore[arg-type]
