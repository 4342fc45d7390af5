"""The linear program against all labelings that placement itself allows, with costs by their definition."""

import itertools
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fxopt.passes.quantize.placement import Placement, place
from fxopt.placement_problem import placement_problem
from fxopt.sensitivity import Noise
from fxopt.solve import NOISE_GAP, fastest, most_exact
from fxopt.target import TARGETS
from fxopt.timed_placement import NodeTime, Prices
from tests.passes.quantize.nets import program_of


class Joined(nn.Module):
    """Two convolutions added, a max-pool that shares its scale, a concatenation, and a linear; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.last, self.head = nn.Conv2d(32, 16, 1), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.max_pool2d(torch.relu(self.stem(x)), 2)
        x = self.last(torch.cat([torch.relu(self.inner(x) + x), x], 1))
        return self.head(x.mean([2, 3])), x.amax([2, 3])


TARGET = TARGETS["x86"]
PROGRAM = program_of(Joined(), torch.zeros(2, 4, 8, 8))
PLACEMENT = place(PROGRAM, TARGET)
NODES = {node.name: node for node in PROGRAM.graph.nodes}
LAYERS = {"conv2d": "stem.weight", "conv2d_1": "inner.weight", "conv2d_2": "last.weight", "linear": "head.weight"}


def allowed() -> list[Placement]:
    """List the placements that keeping any set of nodes float leads to, each once, with all their points."""
    names = list(PLACEMENT.integer)
    chosen = itertools.chain.from_iterable(itertools.combinations(names, count) for count in range(len(names) + 1))
    found = {frozenset((p := place(PROGRAM, TARGET, kept)).integer): p for kept in chosen}
    return list(found.values())


ALLOWED = allowed()


def seconds_of(placement: Placement, times: dict[str, NodeTime]) -> float:
    """Add up times by definition: of nodes, of the clips that are not absorbed, and of conversions."""
    prices, total = Prices(PROGRAM, PLACEMENT, times), 0.0
    for name in PLACEMENT.integer:
        total += prices.seconds(name)[name in placement.integer]
    for name in PLACEMENT.points:
        value = NODES[name]
        maker = prices.maker(value)
        made = maker in placement.integer
        read = {user.name in placement.integer for user in value.users}
        total += prices.conversion(value) * ((not made and True in read) or (made and False in read))
    return total


def noise_of(placement: Placement, noise: Noise) -> tuple[float, ...]:
    """Add up noise by definition: of the weights, and once of each set of values with one scale that are quantized.

    A value made by an op that only moves values, or joins values with the same scale, has no rounding of its own.
    """
    rows = [noise[LAYERS[name]] for name in placement.integer if name in LAYERS]
    copied = {"max_pool2d": "max_pool2d"}
    if len({PLACEMENT.points[name].group for name in ("relu_1", "max_pool2d", "cat")}) == 1:
        copied["cat"] = "cat"
    rows += [noise[name] for name in placement.points if copied.get(name) not in placement.integer]
    return tuple(sum(row[place] for row in rows) for place in range(2))


@st.composite
def costs(draw: st.DrawFn) -> tuple[dict[str, NodeTime], dict[str, tuple[float, float]]]:
    micros, share = st.integers(0, 40).map(lambda n: n * 1e-6), st.integers(0, 50).map(lambda n: n * 1e-4)
    times = {name: NodeTime(draw(micros), draw(micros)) for name in PLACEMENT.integer}
    return times, {name: (draw(share), draw(share)) for name in (*PLACEMENT.points, *LAYERS.values())}


def test_there_is_much_to_choose_from() -> None:
    assert len(ALLOWED) == 30 and len(PLACEMENT.integer) == 8


FREE: dict[str, NodeTime] = {name: NodeTime(0.0, 0.0) for name in PLACEMENT.integer}
FAINT = dict.fromkeys((*PLACEMENT.points, *LAYERS.values()), (0.0, 0.0)) | {
    "mean": (0.0, 1e-4), "last.weight": (0.0, 5e-3), "head.weight": (0.0, 5e-3),
}  # fmt: skip


@example((FREE, FAINT), 0.03125)  # what is next to nothing is not what the solver cares for
@settings(max_examples=15, deadline=None)
@given(costs(), st.floats(0.0, 0.06))
def test_the_fastest_choice_within_a_noise(
    drawn: tuple[dict[str, NodeTime], dict[str, tuple[float, float]]], bound: float
) -> None:
    times, noise = drawn
    problem = placement_problem(Prices(PROGRAM, PLACEMENT, times), TARGET, noise)
    fit = [p for p in ALLOWED if max(noise_of(p, noise)) <= bound]
    found = fastest(problem, bound)
    placement = place(PROGRAM, TARGET, set(PLACEMENT.integer) - found.integer)
    assert set(placement.integer) == found.integer
    assert found.seconds == pytest.approx(seconds_of(placement, times), abs=1e-9)
    assert found.noise == pytest.approx(noise_of(placement, noise), abs=1e-6)
    assert found.seconds <= min(seconds_of(p, times) for p in fit) * (1 + 1e-4) + 2e-9


@settings(max_examples=15, deadline=None)
@given(costs(), st.floats(0.3, 1.1))
def test_the_most_exact_choice_within_a_time(
    drawn: tuple[dict[str, NodeTime], dict[str, tuple[float, float]]], share: float
) -> None:
    times, noise = drawn
    limit = share * seconds_of(place(PROGRAM, TARGET, list(PLACEMENT.integer)), times)
    problem = placement_problem(Prices(PROGRAM, PLACEMENT, times), TARGET, noise)
    fit = [max(noise_of(p, noise)) for p in ALLOWED if seconds_of(p, times) <= limit]
    found = most_exact(problem, limit)
    assert (found is None) == (not fit)
    if found is not None:
        assert found.seconds <= limit + 1e-9
        assert max(found.noise) == found.worst <= min(fit) * (1 + NOISE_GAP) + 1e-5


def test_without_bounds_the_choice_is_that_of_the_times_alone() -> None:
    times = {name: NodeTime(100e-6, 1e-6) for name in PLACEMENT.integer}
    problem = placement_problem(Prices(PROGRAM, PLACEMENT, times), TARGET, {})
    found = fastest(problem, math.inf)
    assert found.integer == set(PLACEMENT.integer) and found.noise == ()
    assert most_exact(problem, -1.0) is None
