"""Errors of layers by hand-computed values, and distributions against torch."""

import math

import pytest
import torch
from torch import Tensor, nn

from fxopt.debugging import distributions, layer_errors
from fxopt.errors import DataError
from fxopt.graph.interpret import node_values, sqnr
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.passes.quantize import Quantize
from tests.passes.quantize.nets import Residual, images, program_of

X = images(4)


def halved(program: Program, name: str) -> Program:
    """Return a Program in which the reader of one node gets half of its value."""
    edit = Edit(program, by=None)
    node = next(node for node in edit.graph.nodes if node.name == name)
    (user,) = node.users
    user.replace_input_with(node, edit.call(torch.ops.aten.mul.Tensor, node, 0.5, before=user, name="half"))
    return edit.finish()


class Chain(nn.Module):
    """x -> x + 1 -> 3 (x + 1) -> 3 (x + 1) - 2."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + 1) * 3 - 2


def test_sqnr_cosine_and_what_a_layer_adds_by_hand() -> None:
    x = torch.tensor([[1.0, 3.0]])
    program = program_of(Chain(), x)
    errors = {error.name: error for error in layer_errors(program, halved(program, "add"), [x])}
    assert errors["add"].sqnr == math.inf and errors["add"].lost == 0.0 and errors["add"].cosine == 1.0
    assert errors["mul"].sqnr == pytest.approx(10 * math.log10(180 / 45))  # 6, 12 against 3, 6
    assert errors["mul"].cosine == pytest.approx(1.0) and errors["mul"].lost == math.inf
    sub = errors["sub"]  # 4, 10 against 1, 4
    assert sub.sqnr == pytest.approx(10 * math.log10(116 / 45))
    assert sub.cosine == pytest.approx(44 / math.sqrt(116 * 17))
    assert sub.lost == pytest.approx(errors["mul"].sqnr - sub.sqnr)


def test_the_worst_layers_come_first_and_all_items_count() -> None:
    program = program_of(Residual(), X)
    quantized = Quantize([X])(program)
    errors = layer_errors(program, quantized, [X[:1], X[1:]])
    assert [error.sqnr for error in errors] == sorted(error.sqnr for error in errors)
    names = [error.name for error in errors]
    assert {"conv2d", "linear"} <= set(names)
    whole = [node_values(side, (X,), ["linear"])["linear"] for side in (program, quantized)]
    (linear,) = [error for error in errors if error.name == "linear"]
    assert linear.sqnr == pytest.approx(sqnr(*whole), abs=1e-3)


def test_programs_of_different_models_and_empty_data_are_errors() -> None:
    program = program_of(Residual(), X)
    with pytest.raises(DataError, match="empty"):
        layer_errors(program, program, [])
    with pytest.raises(DataError, match="share no node"):
        layer_errors(program, program_of(nn.Identity(), X), [X])


def test_distributions_count_every_value_where_torch_does() -> None:
    program = program_of(Residual(), X)
    found = distributions(program, [X[:2], X[2:]], ["relu", "head.weight"])
    assert set(found) == {"relu", "head.weight"}
    relu = node_values(program, (X,), ["relu"])["relu"]
    histogram = found["relu"]
    assert (histogram.low, histogram.high) == pytest.approx((float(relu.min()), float(relu.max())))
    assert sum(histogram.counts) == pytest.approx(relu.numel())
    weight = program.module.get_parameter("head.weight")
    counts, edges = found["head.weight"].counts, found["head.weight"].edges
    negative = sum(count for count, end in zip(counts, edges[1:], strict=True) if end <= 0)
    assert negative == pytest.approx(int((weight < 0).sum()), abs=3)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(DataError, match="no node or weight named nowhere"):
        distributions(program_of(Residual(), X), [X], ["nowhere"])
