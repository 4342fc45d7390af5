"""group_lasso(): the penalty is the formula, so is its gradient, and training with it makes removal harmless."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import PassError
from fxopt.graph.cost import macs
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute
from fxopt.passes import MaskWeights, RemoveChannels, Sparsity, channel_groups, group_lasso
from fxopt.passes.prune.group_lasso import GroupLasso
from tests.passes.cleanup.checks import program_of


def two_layers(hidden: int = 3) -> Program:
    members: dict[str, Any] = {"first": nn.Linear(2, hidden), "second": nn.Linear(hidden, 2)}
    return program_of(lambda m, x: m.second(torch.relu(m.first(x))), torch.randn(4, 2), **members)


def gradients(penalty: GroupLasso, program: Program) -> dict[str, Tensor]:
    named = dict(program.module.named_parameters())
    found = torch.autograd.grad(penalty(program), list(named.values()), materialize_grads=True)
    return dict(zip(named, found, strict=True))


def test_by_hand() -> None:
    program = two_layers()
    penalty = group_lasso(program, strength=0.5)
    first, bias, second = (get_attribute(program.module, n) for n in ("first.weight", "first.bias", "second.weight"))
    # unit u: row u of the first weight, its bias, column u of the second: 2 + 1 + 2 weights
    norms = (first.square().sum(1) + bias.square() + second.square().sum(0)).sqrt()
    assert penalty.sizes.tolist() == [5, 5, 5]
    torch.testing.assert_close(penalty(program), 0.5 * 5**0.5 * norms.sum())
    found = gradients(penalty, program)
    for name, value in (
        ("first.weight", first / norms[:, None]), ("first.bias", bias / norms), ("second.weight", second / norms)
    ):  # fmt: skip
        torch.testing.assert_close(found[name], 0.5 * 5**0.5 * value.detach())
    assert (found["second.bias"] == 0).all()


def _residual(m: Any, x: Tensor) -> Any:
    x = m.stem(x)
    return m.head((x + m.norm(m.inner(x))).mean((2, 3)))


def _vectors(m: Any, x: Tensor) -> Any:
    q, k, v = m.qkv(m.stem(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
    return m.head(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


CASES: dict[str, Any] = {
    "residual": (
        _residual,
        torch.randn(1, 3, 4, 4),
        {
            "stem": nn.Conv2d(3, 6, 1),
            "inner": nn.Conv2d(6, 6, 3, padding=1),
            "norm": nn.BatchNorm2d(6),
            "head": nn.Linear(6, 2),
        },
    ),
    "attention": (
        _vectors,
        torch.randn(1, 5, 8),
        {"stem": nn.Linear(8, 8), "qkv": nn.Linear(8, 24), "head": nn.Linear(8, 8)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_weight_of_a_unit_counts_once(name: str) -> None:
    """An oracle that marks the elements of each unit one by one, by its slices."""
    function, x, members = CASES[name]
    program = program_of(function, x, **members)
    groups = channel_groups(program)
    penalty = group_lasso(program, strength=2.0)
    trained = dict(program.module.named_parameters())
    total, sizes = torch.zeros(()), []
    for unit in sorted(unit for group in groups.groups for unit in group.units):
        marks = {key: torch.zeros_like(tensor, dtype=torch.bool) for key, tensor in trained.items()}
        for cut in groups.slices(unit):
            if cut.tensor in marks:
                marks[cut.tensor].index_fill_(cut.dim, torch.tensor(cut.indices), True)
        sizes.append(sum(int(mark.sum()) for mark in marks.values()))
        squares = sum((trained[key] * mark).square().sum() for key, mark in marks.items())
        total = total + sizes[-1] ** 0.5 * squares.sqrt()  # type: ignore[union-attr]
    assert penalty.sizes.tolist() == sizes
    torch.testing.assert_close(penalty(program), 2 * total)
    expected = torch.autograd.grad(2 * total, list(trained.values()), materialize_grads=True)
    for found, value in zip(gradients(penalty, program).values(), expected, strict=True):
        torch.testing.assert_close(found, value)


def test_a_unit_of_zeros_has_no_gradient() -> None:
    program = two_layers()
    with torch.no_grad():
        for name, index in (("first.weight", (1,)), ("first.bias", (1,)), ("second.weight", (slice(None), 1))):
            get_attribute(program.module, name)[index] = 0
    found = gradients(group_lasso(program, strength=1.0), program)
    assert all(value.isfinite().all() for value in found.values())
    assert (found["first.weight"][1] == 0).all() and (found["first.weight"][0] != 0).any()


def _trained(strength: float) -> tuple[Program, float]:
    """Train 24 hidden units on what 4 suffice for; returns the share of the variance that is left unexplained, too."""
    torch.manual_seed(0)
    members: dict[str, Any] = {"first": nn.Linear(8, 24), "second": nn.Linear(24, 4)}
    program = program_of(lambda m, x: m.second(torch.relu(m.first(x))), torch.randn(64, 8), **members).train()
    x, teacher = torch.randn(64, 8), nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 4))
    wanted = teacher(x).detach()
    penalty = group_lasso(program, strength)
    optimizer = torch.optim.Adam(program.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        error = (program.module(x)[0] - wanted).square().mean()
        (error + penalty(program)).backward()
        optimizer.step()
    return program.eval(), float(error.detach() / wanted.var())


def test_training_with_it_makes_removal_harmless() -> None:
    x = torch.randn(64, 8)
    damage, small = {}, {}
    for strength in (1e-9, 3e-4):
        program, error = _trained(strength)
        assert error < 0.05
        norms = group_lasso(program, 1.0).norms(program)
        small[strength] = int((norms < 0.05 * norms.max()).sum())
        result = RemoveChannels(macs=0.5, round_to=1)(program)
        assert abs(macs(result) / macs(program) - 0.5) <= 0.02
        with torch.no_grad():
            before, after = program.module(x)[0], result.module(x)[0]
        damage[strength] = float((after - before).square().mean() / before.var())
    assert small[1e-9] == 0 and small[3e-4] >= 12  # half of the units are near zero
    assert damage[3e-4] < 1e-3 < 1e-2 < damage[1e-9]


def test_it_serves_programs_that_share_the_tensors() -> None:
    program = two_layers()
    penalty = group_lasso(program, strength=1.0)
    for other in (program.train(), MaskWeights(Sparsity(0.5))(program)):
        assert torch.equal(penalty(other), penalty(program))


def test_bad_input() -> None:
    with pytest.raises(PassError, match="above 0"):
        group_lasso(two_layers(), strength=0)
    with pytest.raises(PassError, match="no units"):
        group_lasso(program_of(lambda m, x: m.layer(x), torch.randn(2, 3), layer=nn.Linear(3, 3)), strength=1.0)
