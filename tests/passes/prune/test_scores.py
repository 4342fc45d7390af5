"""Scores of units against numbers computed by hand, and against the removal of each unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.errors import DataError, PassError
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.passes import (
    CLEANUP,
    L1,
    L2,
    ActivationTimesWeight,
    BatchNormScale,
    GeometricMedian,
    HessianDiagonal,
    Lamp,
    Random,
    RemoveChannels,
    Taylor,
)
from fxopt.passes.prune.coordinates import coordinates
from fxopt.passes.prune.groups import groups_of
from fxopt.passes.prune.scores import Score
from fxopt.passes.prune.units import Units, units_of
from tests.passes.cleanup.checks import program_of

W1 = torch.tensor([[1.0, -2.0], [0.5, 0.5], [3.0, 0.0]])
W2 = torch.tensor([[2.0, 1.0, -1.0], [0.0, 1.0, 0.5]])
X = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
WIDTHS = (24, 8)


def _layer(weight: Tensor, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def two_layers(activation: Callable[[Tensor], Tensor] = torch.relu, bias: bool = False) -> Program:
    torch.manual_seed(0)
    return program_of(lambda m, x: m.b(activation(m.a(x))), X, dynamic="batch", a=_layer(W1, bias), b=_layer(W2, bias))


def units_in(program: Program) -> Units:
    groups = groups_of(coordinates(program))
    return units_of(groups.coordinates, groups.groups)


def scores_of(program: Program, score: Score) -> list[float]:
    """Return the scores of the units of the first group, in the order of their positions."""
    units = units_in(program)
    values: list[float] = score(units)[units.members[0]].tolist()
    return values


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (L2(normalize="none"), [4, 2, 1.25]),
        (L2(), [4 / 7.25 * 3, 2 / 7.25 * 3, 1.25 / 7.25 * 3]),
        (L2(weights="all", normalize="none"), [5 + 4, 0.5 + 2, 9 + 1.25]),
        (L2(weights="all", normalize="max"), [9 / 10.25, 2.5 / 10.25, 1]),
        (L2("mean", "none", "all"), [4.5, 1.25, 5.125]),
        (L2("max", "none", "all"), [5, 2, 9]),
        (L1(normalize="none"), [2, 2, 1.5]),
        (L1(weights="all", normalize="none"), [3 + 2, 1 + 2, 3 + 1.5]),
        (Lamp(), [1, 2 / 6, 1.25 / 7.25]),
    ],
)
def test_magnitudes(score: Score, expected: list[float], bias: bool) -> None:
    """A bias does not count beside a weight."""
    assert scores_of(two_layers(bias=bias), score) == pytest.approx(expected)


def test_biases_count_where_there_is_nothing_else() -> None:
    scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    program = program_of(lambda m, x: (x * m.scale.reshape(1, 3)).sum(1), torch.ones(2, 1), scale=scale)
    assert scores_of(program, L2(normalize="none")) == pytest.approx([1, 4, 9])


def heads() -> Program:
    """Two heads of four positions each."""

    def attend(m: Any, x: Tensor) -> Any:
        q, k, v = (layer(x).view(1, 5, 2, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.o(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    layers: dict[str, Any] = {name: nn.Linear(6, 8) for name in "qkv"}
    return program_of(attend, torch.randn(1, 5, 6), **layers, o=nn.Linear(8, 6))


def by_tensors(units: Units, scores: Any) -> dict[tuple[int, str], list[float]]:
    """Return the scores of each group by its size and the first letters of its tensors."""
    return {
        (len(group.units), "".join(sorted({member.tensor[0] for member in group.members}))): scores[members].tolist()
        for group, members in zip(units.groups, units.members, strict=True)
    }


def test_a_unit_sums_over_all_of_its_positions() -> None:
    """Position j of both heads: rows j and 4 + j of what makes them, columns j and 4 + j of what reads them."""
    program = heads()
    units = units_in(program)
    weights = {name: program.module.get_parameter(f"{name}.weight").detach().double() for name in "qkvo"}
    rows = {name: weight.square().sum(1 if name != "o" else 0).reshape(2, 4) for name, weight in weights.items()}
    found = by_tensors(units, L2(normalize="none", weights="all")(units))
    assert found[2, "koqv"] == pytest.approx(sum(rows[name].sum(1) for name in "qkvo").tolist())  # type: ignore[union-attr]
    assert found[4, "kq"] == pytest.approx((rows["q"] + rows["k"]).sum(0).tolist())
    assert found[4, "ov"] == pytest.approx((rows["v"] + rows["o"]).sum(0).tolist())


def test_what_no_layer_reads_has_its_weights() -> None:
    program = heads()
    units = units_in(program)
    found = by_tensors(units, ActivationTimesWeight([torch.randn(1, 5, 6)], normalize="none")(units))
    weights = by_tensors(units, L2(normalize="none")(units))
    assert found[4, "kq"] == weights[4, "kq"]
    assert found[4, "ov"] != weights[4, "ov"]


def test_the_geometric_median() -> None:
    rows = torch.stack([(W1 - row).square().sum(1).sqrt().sum() for row in W1])
    columns = torch.stack([(W2.T - column).square().sum(1).sqrt().sum() for column in W2.T])
    assert scores_of(two_layers(), GeometricMedian(normalize="none")) == pytest.approx((rows + columns).tolist())


def with_norms() -> Program:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(WIDTHS[0])
    nn.init.normal_(norm.weight)
    return program_of(
        lambda m, x: m.c(torch.relu(m.b(torch.relu(m.norm(m.a(x)))))),
        X,
        a=nn.Linear(2, WIDTHS[0]),
        norm=norm,
        b=nn.Linear(WIDTHS[0], WIDTHS[1]),
        c=nn.Linear(WIDTHS[1], 3),
    )


def test_scales_of_batch_norms_and_weights_where_there_is_none() -> None:
    program = with_norms()
    units = units_in(program)
    found = BatchNormScale()(units)
    gamma = program.module.get_parameter("norm.weight").detach().double().abs()
    first, second = units.members
    assert found[first].tolist() == pytest.approx((gamma / gamma.mean()).tolist())
    assert found[second].tolist() == pytest.approx(L2()(units)[second].tolist())


def test_without_batch_norms_there_are_no_scales() -> None:
    folded = Pipeline(CLEANUP)(with_norms())
    with pytest.raises(PassError, match=r"no batch norm with a scale.*before it, or choose L2"):
        RemoveChannels(score=BatchNormScale())(folded)


def test_random_scores_come_from_the_seed() -> None:
    assert scores_of(two_layers(), Random(1)) == scores_of(two_layers(), Random(1)) != scores_of(two_layers(), Random())


def _changes(items: list[Tensor]) -> list[float]:
    """Return the squared change of all outputs without each hidden unit, a mean over samples."""
    hidden = torch.relu(torch.cat(items) @ W1.T).double()
    return (hidden.square().mean(0) * W2.double().square().sum(0)).tolist()


def test_activation_times_weight_is_the_power_of_the_change() -> None:
    items = [X[:1], X[1:]]
    assert scores_of(two_layers(), ActivationTimesWeight(items, normalize="none")) == pytest.approx(_changes(items))


def test_of_consumers_each_adds_its_power() -> None:
    other = torch.randn(5, 3)
    program = program_of(lambda m, x: (m.b(m.a(x)), m.c(m.a(x))), X, a=_layer(W1), b=_layer(W2), c=_layer(other))
    power = (X @ W1.T).square().mean(0)
    expected = power * (W2.square().sum(0) + other.square().sum(0))
    assert scores_of(program, ActivationTimesWeight([X], normalize="none")) == pytest.approx(expected.tolist())


def test_label_free_taylor_is_the_change_of_the_outputs() -> None:
    """The outputs are linear in the weights that read a unit, so that only the number of random signs limits it."""
    many = [X] * 60  # split into single samples, each with random signs
    found = scores_of(two_layers(), Taylor(many, normalize="mean"))
    expected = np.array(_changes([X]))
    assert found == pytest.approx((expected / expected.mean()).tolist(), rel=0.15)


def test_taylor_with_a_loss_is_the_square_of_its_derivative() -> None:
    """The derivative by the scale of a unit, at 1, is the sum of w g over the weights that read it."""
    labels = torch.tensor([0, 1, 1, 0])
    items = [(X[:2], labels[:2]), (X[2:], labels[2:])]

    def loss(outputs: Tensor, batch: Any) -> Tensor:
        return functional.cross_entropy(outputs, batch[1])

    expected = torch.zeros(3)
    for x, y in items:
        scale = torch.ones(3, requires_grad=True)
        functional.cross_entropy(torch.relu(x @ W1.T) * scale @ W2.T, y).backward()  # type: ignore[no-untyped-call]
        assert scale.grad is not None
        expected += scale.grad.square() / 2
    assert scores_of(two_layers(), Taylor(items, loss, normalize="none")) == pytest.approx(expected.tolist())


def test_the_hessian_diagonal() -> None:
    """With the loss |y|^2, the gradient of the weights of y = W h is 2 y h^T."""
    items = [X[:1], X[1:2]]
    expected = np.zeros(3)
    for x in items:
        hidden = torch.relu(x @ W1.T)
        gradient = 2 * (hidden @ W2.T).T @ hidden
        expected += (gradient * W2).square().sum(0).numpy() / 2 / len(items)
    found = scores_of(two_layers(), HessianDiagonal(items, lambda outputs, _: outputs.square().sum(), normalize="none"))
    assert found == pytest.approx(expected.tolist())


@pytest.mark.parametrize("score", [Taylor([X]), HessianDiagonal([X]), ActivationTimesWeight([X]), GeometricMedian()])
def test_channels_go_by_any_score(score: Score) -> None:
    program = program_of(
        lambda m, x: m.b(torch.relu(m.a(x))), X, dynamic="batch", a=nn.Linear(2, 32), b=nn.Linear(32, 3)
    )
    small = RemoveChannels(score=score)(program)
    assert small.kept["relu"][1] == tuple(sorted(np.argsort(scores_of(program, score), kind="stable")[-16:].tolist()))


@pytest.mark.parametrize(
    ("score", "error", "message"),
    [
        (Taylor([]), DataError, "is empty"),
        (HessianDiagonal([torch.ones(2, 9)]), DataError, "item 0: .*does not fit"),
        (ActivationTimesWeight(5), DataError, "must be iterable"),  # type: ignore[arg-type]
        (Taylor([X], lambda outputs, batch: outputs), PassError, "must return a tensor with one number"),
        (L2(reduction="median"), PassError, "reduction='median' must be"),  # type: ignore[arg-type]
        (L2(weights="some"), PassError, "weights='some' must be"),  # type: ignore[arg-type]
        (L1(normalize="l2"), PassError, "normalize='l2' must be"),  # type: ignore[arg-type]
        (Taylor, PassError, r"is no score; pass an object such as L2\(\)"),
        (3, PassError, "score=3 is no score"),
        ("taylor", PassError, "no score 'taylor'. Choose one of l2, l1, or pass an object"),
    ],
)
def test_a_wrong_score_is_refused(score: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RemoveChannels(score=score)(two_layers())
