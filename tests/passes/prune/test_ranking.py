"""Rankings: which groups lose how much."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute
from fxopt.passes import L2, RemoveChannels
from fxopt.passes.prune.coordinates import coordinates
from fxopt.passes.prune.groups import groups_of
from fxopt.passes.prune.ranking import Ranking, signatures
from fxopt.passes.prune.scores import unit_scores
from tests.passes.cleanup.checks import program_of

WIDTH = 32
NAMES = ("a", "b", "c", "d")


def chain() -> Program:
    """Linear layers a to d of 32 units, then a head; the weights of each layer are 10 times those of the next."""
    torch.manual_seed(0)
    layers: dict[str, Any] = {name: nn.Linear(WIDTH, WIDTH) for name in NAMES}
    with torch.no_grad():
        for number, name in enumerate(NAMES):
            layers[name].weight.copy_(10.0**-number * (1 + torch.rand(WIDTH, WIDTH)))

    def forward(m: Any, x: Any) -> Any:
        for name in NAMES:
            x = torch.relu(getattr(m, name)(x))
        return m.head(x)

    return program_of(forward, torch.randn(2, WIDTH), head=nn.Linear(WIDTH, 2), **layers)


def widths(ranking: Ranking) -> dict[str, int]:
    small = RemoveChannels(macs=0.5, score=L2(normalize="none"), ranking=ranking, round_to=1)(chain())
    return {name: get_attribute(small.module, f"{name}.weight").shape[0] for name in NAMES}


def test_of_all_units_the_lowest_go() -> None:
    found = widths("global")
    assert found["a"] == WIDTH
    assert found["c"] < WIDTH / 4


def test_every_group_loses_the_same_share() -> None:
    found = widths("local")
    assert max(found.values()) - min(found.values()) <= 1
    assert max(found.values()) < WIDTH


def test_each_scope_loses_the_same_share() -> None:
    """What no scope names is one, too: in it, the lower ones go first."""
    found = widths(("a",))
    share = found["a"] / WIDTH
    assert share == pytest.approx(sum(found[name] for name in "bcd") / (3 * WIDTH), abs=0.04)
    assert found["b"] > found["c"]


def test_the_longest_scope_holds() -> None:
    inner = nn.Sequential(nn.Linear(4, WIDTH), nn.Linear(WIDTH, WIDTH))
    program = program_of(lambda m, x: m.head(m.inner(x)), torch.randn(2, 4), inner=inner, head=nn.Linear(WIDTH, 2))
    groups = groups_of(coordinates(program))
    one = unit_scores(groups.coordinates, groups.groups, "l2", ("inner",))
    two = unit_scores(groups.coordinates, groups.groups, "l2", ("inner", "inner.1"))
    local = unit_scores(groups.coordinates, groups.groups, "l2", "local")
    assert two == local != one


def residual() -> Program:
    """Two blocks x + second(relu(first(x))) on one stream, whose hidden units are alike, in widths 16 and 32."""
    torch.manual_seed(0)
    layers: dict[str, Any] = {"stem": nn.Linear(4, 24), "head": nn.Linear(24, 2)}
    for number, hidden in enumerate((16, 32)):
        layers |= {f"first{number}": nn.Linear(24, hidden), f"second{number}": nn.Linear(hidden, 24)}

    def forward(m: Any, x: Any) -> Any:
        x = m.stem(x)
        for number in range(2):
            x = x + getattr(m, f"second{number}")(torch.relu(getattr(m, f"first{number}")(x)))
        return m.head(x)

    return program_of(forward, torch.randn(2, 4), **layers)


def test_groups_of_the_same_structure_are_alike_in_any_width() -> None:
    program = residual()
    groups = groups_of(coordinates(program)).groups
    keys = dict(zip([group.name for group in groups], signatures(program, groups), strict=True))
    assert keys["first0.weight[0]"] == keys["first1.weight[0]"] != keys["stem.weight[0]"]


def test_groups_of_the_same_structure_are_ranked_together() -> None:
    program = residual()
    found = groups_of(coordinates(program))
    by_name = {group.name: group for group in found.groups}
    plain = unit_scores(found.coordinates, found.groups, "l2")
    ranks = unit_scores(found.coordinates, found.groups, "l2", "isomorphic")
    stream = sorted(by_name["stem.weight[0]"].units, key=plain.__getitem__)
    assert [ranks[unit] for unit in stream] == pytest.approx([(i + 1) / 24 for i in range(24)])
    hidden = sorted(
        by_name["first0.weight[0]"].units + by_name["first1.weight[0]"].units, key=lambda unit: (plain[unit], unit)
    )
    assert [ranks[unit] for unit in hidden] == pytest.approx([(i + 1) / 48 for i in range(48)])


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        ("glob", "ranking='glob' must be 'global', 'local', 'isomorphic' or a tuple"),
        (("a", "layer9"), "ranking: no tensor or module is named 'layer9'. There are a.bias, a.weight"),
    ],
)
def test_a_wrong_ranking_is_refused(ranking: Any, message: str) -> None:
    with pytest.raises(PassError, match=message):
        RemoveChannels(ranking=ranking)(chain())
