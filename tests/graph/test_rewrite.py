"""Edit and Rule: a pass changes a copy; patterns match by meaning, not by spelling."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from fxopt.errors import PassError
from fxopt.graph.capture import capture
from fxopt.graph.printer import format_program
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, Rule, argument, constant, match, rewrite
from fxopt.graph.verify import verify
from tests.graph.models import ConvNet, Function

aten = torch.ops.aten


def program_of(function: Callable[..., Any], *shape: int, dynamic: str | None = None) -> Program:
    return capture(Function(lambda module, x: function(x)), torch.randn(shape), dynamic=dynamic)


def apply(program: Program, *rules: Rule) -> tuple[Program, int]:
    edit = Edit(program, by=None)
    count = rewrite(edit, rules)
    return verify(edit.finish(), full=True), count


def names(program: Program) -> list[str]:
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


DOUBLE_NEGATION = Rule(lambda x: aten.neg.default(aten.neg.default(x)), lambda x: aten.alias.default(x))
ADD_TO_MUL = Rule(lambda x: aten.add.Tensor(x, x), lambda x: aten.mul.Tensor(x, 2.0))


def test_a_rule_replaces_every_match_and_keeps_the_meaning() -> None:
    program = program_of(lambda x: torch.neg(torch.neg(x)) + torch.neg(torch.neg(x * 3)), 2, 3)
    result, count = apply(program, DOUBLE_NEGATION)
    assert count == 2
    assert names(result) == ["aten.alias.default", "aten.mul.Tensor", "aten.alias.default", "aten.add.Tensor"]
    x = torch.randn(2, 3)
    assert torch.equal(result(x), program(x))


def test_the_same_argument_twice_must_be_the_same_value() -> None:
    assert apply(program_of(lambda x: x + x, 2), ADD_TO_MUL)[1] == 1
    assert apply(program_of(lambda x: x + x.sin(), 2), ADD_TO_MUL)[1] == 0


def test_an_inner_value_with_another_user_is_no_match() -> None:
    def shared(x: Tensor) -> tuple[Tensor, Tensor]:
        inner = torch.neg(x)
        return torch.neg(inner), inner

    assert apply(program_of(shared, 2), DOUBLE_NEGATION)[1] == 0


def test_defaults_match_however_they_are_spelled() -> None:
    rule = Rule(lambda x: aten.flatten.using_ints(x, 1, -1), lambda x: aten.reshape.default(x, [2, -1]))
    for spelled in (lambda x: x.flatten(1), lambda x: torch.flatten(x, start_dim=1, end_dim=-1)):
        assert apply(program_of(spelled, 2, 3, 4), rule)[1] == 1
    assert apply(program_of(lambda x: x.flatten(0), 2, 3, 4), rule)[1] == 0


def test_a_check_with_a_reason_leaves_the_match_alone() -> None:
    seen: list[Any] = []

    def check(edit: Edit, x: fx.Node, factor: float) -> str | None:
        seen.append(factor)
        return None if factor == 1.0 else "it changes the value"

    rule = Rule(lambda x, factor: aten.mul.Tensor(x, factor), lambda x: aten.alias.default(x), check=check)
    result, count = apply(program_of(lambda x: (x * 1.0) * 2.0, 2), rule)
    assert (count, seen) == (1, [1.0, 2.0])
    assert names(result) == ["aten.alias.default", "aten.mul.Tensor"]


def test_a_replacement_may_use_only_what_the_pattern_binds() -> None:
    with pytest.raises(PassError, match=r"uses \['y'\]"):
        Rule(lambda x: aten.neg.default(x), lambda x, y: aten.add.Tensor(x, y))


def test_the_first_rule_that_matches_wins() -> None:
    other = Rule(lambda x: aten.add.Tensor(x, x), lambda x: aten.sin.default(x))
    assert names(apply(program_of(lambda x: x + x, 2), ADD_TO_MUL, other)[0]) == ["aten.mul.Tensor"]


def test_match_binds_numbers_and_lists() -> None:
    program = program_of(lambda x: x.permute(1, 0).clamp(-1, 1), 2, 3)
    pattern = fx.symbolic_trace(
        lambda x, order, low, high: aten.clamp.default(aten.permute.default(x, order), low, high)
    )
    (clamp,) = program.graph.find_nodes(op="call_function", target=aten.clamp.default)
    bound = match(pattern.graph, clamp)
    assert bound is not None and bound.pop("x") is program.placeholders[0]
    assert bound == {"order": [1, 0], "low": -1, "high": 1}


def test_an_edit_leaves_its_program_alone_and_shares_tensors() -> None:
    program = capture(ConvNet(), torch.randn(2, 3, 8, 8))
    before = format_program(program)
    edit = Edit(program, by=test_an_edit_leaves_its_program_alone_and_shares_tensors)
    for node in edit.calls(aten.relu.default):
        edit.replace(node, edit.call(aten.gelu.default, node.args[0], before=node))
    edit.note("relu became gelu")
    result = verify(edit.finish(), full=True)
    assert format_program(program) == before
    assert result.history == ("test_an_edit_leaves_its_program_alone_and_shares_tensors",)
    assert result.notes == ("relu became gelu",)
    assert result.module.get_parameter("conv.weight") is program.module.get_parameter("conv.weight")
    (gelu,) = result.graph.find_nodes(op="call_function", target=aten.gelu.default)
    (relu,) = program.graph.find_nodes(op="call_function", target=aten.relu.default)
    assert gelu.meta["stack_trace"] == relu.meta["stack_trace"]


def test_changed_arguments_change_all_shapes_that_follow() -> None:
    program = program_of(lambda x: x.sum(1, keepdim=True).expand(-1, 5) * 2, 2, 3, dynamic="batch")
    edit = Edit(program, by=None)
    (expand,) = edit.calls(aten.expand.default)
    edit.update(expand, args=(expand.args[0], [-1, 7]))
    spec = program.outputs[0]
    assert spec is not None
    result = edit.finish(outputs=(type(spec)(spec.name, spec.dtype, ("batch", 7)),))
    assert "mul.Tensor(%expand_1, 2): float32[batch, 7]" in format_program(verify(result, full=True))
    assert result(torch.randn(4, 3)).shape == (4, 7)


def test_dead_nodes_and_unread_tensors_vanish() -> None:
    program = capture(ConvNet(), torch.randn(2, 3, 8, 8))
    edit = Edit(program, by=None)
    (norm,) = edit.calls(aten.batch_norm.default)
    edit.replace(norm, norm.all_input_nodes[0])
    result = verify(edit.finish())
    assert sorted(result.module.state_dict()) == ["classifier.bias", "classifier.weight", "conv.bias", "conv.weight"]


def test_added_constants_get_unique_names() -> None:
    program = program_of(lambda x: x + 1, 4)
    edit = Edit(program, by=None)
    (add,) = edit.calls(aten.add.Tensor)
    nodes = [edit.add_constant("block.scale", torch.full((4,), float(number)), before=add) for number in (2, 3)]
    product = edit.call(aten.mul.Tensor, nodes[0], nodes[1], before=add)
    edit.update(add, args=(add.args[0], product))
    result = verify(edit.finish(), full=True)
    assert [str(node.target) for node in nodes] == ["block.scale", "block.scale_1"]
    assert torch.equal(result(torch.zeros(4)), torch.full((4,), 6.0))
    assert constant(result.module, result.graph.find_nodes(op="get_attr")[0]) is not None
    assert constant(result.module, result.placeholders[0]) is None


def test_argument_by_name() -> None:
    program = program_of(lambda x: torch.flatten(x, end_dim=1), 2, 3, 4)
    (node,) = program.graph.find_nodes(op="call_function", target=aten.flatten.using_ints)
    assert (argument(node, "start_dim"), argument(node, "end_dim")) == (0, 1)
    with pytest.raises(KeyError, match=r"no argument 'dim'"):
        argument(node, "dim")
