"""Node by node: the same results as a call, little memory, and honest comparisons."""

import gc
import math
import weakref

import pytest
import torch
from torch import Tensor, fx, nn

from fxopt.errors import DataError
from fxopt.graph.capture import capture
from fxopt.graph.interpret import compare, node_values, run, run_together, sqnr, walk_pairs
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from tests.graph.models import ConvNet, Function

aten = torch.ops.aten
X = torch.randn(2, 3, 8, 8)


@pytest.fixture
def program() -> Program:
    return capture(ConvNet(), X)


def test_outputs_equal_those_of_a_call(program: Program) -> None:
    (result,) = run(program, (X,))
    assert torch.equal(result, program(X)) and not result.requires_grad


def test_structured_outputs_come_flat() -> None:
    program = capture(Function(lambda m, x: {"a": x + 1, "none": None, "b": (x, 3)}), torch.randn(2))
    x = torch.randn(2)
    a, none, b, three = run(program, (x,))
    assert torch.equal(a, x + 1) and none is None and b is x and three == 3


def test_every_value_is_observed_in_order(program: Program) -> None:
    seen: list[str] = []
    run(program, (X,), lambda node, value: seen.append(node.name))
    assert seen == [node.name for node in program.graph.nodes if node.op in ("placeholder", "call_function")]


def test_a_run_can_stop_early(program: Program) -> None:
    seen: list[str] = []
    (value,) = run(program, (X,), lambda node, value: seen.append(node.name), stop_after="conv2d")
    weight, bias = (program.module.get_parameter(f"conv.{name}") for name in ("weight", "bias"))
    assert torch.equal(value, nn.functional.conv2d(X, weight, bias, padding=1))
    assert seen == ["x", "conv2d"]
    with pytest.raises(DataError, match=r"no node 'conv3d' to stop after"):
        run(program, (X,), stop_after="conv3d")


def test_dead_values_are_dropped() -> None:
    program = capture(nn.Sequential(*[nn.Linear(4, 4) for _ in range(10)]), torch.randn(1, 4))
    alive: list[int] = []
    values: list[weakref.ref[Tensor]] = []

    def count(node: fx.Node, value: Tensor) -> None:
        values.append(weakref.ref(value))
        gc.collect()
        alive.append(sum(reference() is not None for reference in values))

    run(program, (torch.randn(1, 4),), count)
    assert len(alive) == 11 and max(alive[2:]) <= 3  # the caller's input, what is read and what is made


def test_wrong_inputs_are_told(program: Program) -> None:
    with pytest.raises(DataError, match=r"takes 1 tensors, got 2"):
        run(program, (X, X))
    with pytest.raises(DataError, match=r"dimension 0 has size 1"):
        run(program, (X[:1],))


def test_values_by_name(program: Program) -> None:
    values = node_values(program, (X,), ["relu", "x"])
    assert list(values) == ["relu", "x"] and values["x"] is X
    assert values["relu"].min() == 0
    with pytest.raises(DataError, match=r"No tensor node is named missing"):
        node_values(program, (X,), ["relu", "missing"])


def perturbed(program: Program, amount: float) -> Program:
    edit = Edit(program, by=None)
    (relu,) = edit.calls(aten.relu.default)
    noise = edit.call(aten.mul.Tensor, relu, 1.0 + amount, before=relu.next)
    relu.replace_all_uses_with(noise, delete_user_cb=lambda user: user is not noise)
    return edit.finish()


def test_compare_shows_where_two_programs_part(program: Program) -> None:
    ratios = compare(program, perturbed(program, 0.01), (X,))
    assert ratios["relu"] == math.inf
    assert ratios["dropout"] == pytest.approx(40, abs=1e-3)  # 20·log10(1 / 0.01)
    assert list(ratios) == ["conv2d", "batch_norm", "relu", "dropout", "mean", "linear"]
    assert list(compare(program, perturbed(program, 0.01), (X,), names=["mean"])) == ["mean"]


def test_two_programs_run_in_step_with_few_values_at_once(program: Program) -> None:
    """As many as one run holds, twice over, and one that is compared: not all of one Program's."""
    other = perturbed(program, 0.01)
    names = [node.name for node in program.graph.nodes if node.op == "call_function"]
    seen: list[weakref.ref[Tensor]] = []
    alive, order = [], []
    for name, left, right in walk_pairs(program, other, (X,), {name: name for name in names}):
        seen += [weakref.ref(left), weakref.ref(right)]
        order.append(name)
        gc.collect()
        alive.append(sum(reference() is not None for reference in seen))
    assert order == names and max(alive) <= 6 < 2 * len(names)


def test_nodes_correspond_as_told_in_any_order(program: Program) -> None:
    found = list(walk_pairs(program, program, (X,), {"relu": "linear", "mean": "conv2d"}))
    assert [name for name, _, _ in found] == ["linear", "conv2d"]
    values = node_values(program, (X,), ["linear", "relu", "conv2d", "mean"])
    for (name, left, right), other in zip(found, ("relu", "mean"), strict=True):
        assert torch.equal(left, values[name]) and torch.equal(right, values[other])


@pytest.mark.parametrize(
    ("reference", "value", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], math.inf),
        ([3.0, 4.0], [3.0, 4.5], 20.0),  # 25 / 0.25
        ([10.0], [9.0], 20.0),
        ([0.0, 0.0], [0.0, 1.0], -math.inf),
        ([math.nan, math.inf, 10.0], [math.nan, math.inf, 9.0], 20.0),
        ([1.0, 2.0], [1.0, math.nan], math.nan),
        ([1.0, 2.0], [1.0, math.inf], -math.inf),
    ],
)
def test_sqnr(reference: list[float], value: list[float], expected: float) -> None:
    assert sqnr(torch.tensor(reference), torch.tensor(value)) == pytest.approx(expected, nan_ok=True)


def test_sqnr_adds_up_over_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxopt.graph.interpret.CHUNK", 2)
    reference, value = (
        torch.tensor([[3.0, 4.0, math.inf], [0.0, 0.0, 5.0]]),
        torch.tensor([[3.0, 4.5, math.inf], [0, 0, 5]]),
    )
    assert sqnr(reference, value) == pytest.approx(10 * math.log10(50 / 0.25))


def test_sqnr_of_integers_is_exact() -> None:
    assert sqnr(torch.tensor([200], dtype=torch.uint8), torch.tensor([220], dtype=torch.uint8)) == pytest.approx(20.0)


def test_items_run_side_by_side_give_what_each_gives_alone() -> None:
    """Also of several sizes; what no input reaches is computed once."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            weight = self.weight * 2
            return torch.nn.functional.linear(x, weight), x.relu()

    program = capture(Scaled(), torch.randn(2, 4), dynamic="batch")
    items = [(torch.randn(size, 4),) for size in (1, 3, 2)]
    made: list[Tensor] = []

    def counted(x: Tensor, factor: float) -> Tensor:
        made.append(x)
        return x * factor

    node = next(node for node in program.graph.nodes if node.target is aten.mul.Tensor)
    node.target = counted
    for item, outputs in zip(items, run_together(program, items), strict=True):
        for found, expected in zip(outputs, run(program, item), strict=True):
            assert torch.equal(found, expected)
    assert len(made) == 1 + len(items)
    with pytest.raises(DataError):
        run_together(program, [(torch.randn(2, 5),)])
