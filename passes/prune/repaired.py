"""repaired_weights(): the original and the pruned Program side by side, and each map fitted as its turn comes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from fxopt.graph.interpret import Values, last_reads, step_of, walk_steps
from fxopt.graph.memory import Trimmer
from fxopt.graph.padding import real_positions
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument
from fxopt.passes.cleanup.layers import LAYERS
from fxopt.passes.prune.ancestor import Counterpart
from fxopt.passes.prune.least_squares import Moments, best_change
from fxopt.passes.prune.linear_maps import NORMS, LinearMap, linear_map

aten = torch.ops.aten
JUDGED = 4  # one item of so many is not fitted to
ROWS = 2**15  # that a map is fitted to at most, taken at random places
FEATURES = 2**13  # of a map that more than its bias is fitted of
RIDGES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e4)  # the last one leaves little but a change of the bias

Items = Sequence[tuple[Tensor, ...]]


@dataclass(frozen=True)
class Target:
    """What a map is fitted to: a value of the original, without what another branch adds to it."""

    counterpart: Counterpart
    other: fx.Node | None = None

    def wanted(self, exact: Tensor, values: Values) -> Tensor:
        """Return what the map should give."""
        left = self.counterpart.select(exact)
        return left if self.other is None else left - values[self.other]


def repaired_weights(
    program: Program, original: Program, targets: Mapping[fx.Node, Target], items: Items
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return weight and bias of each map that can be brought nearer to its target, by name, behind those before it.

    Both Programs are in inference; `items` are their tensor inputs.
    """
    reference = _Reference(original, items, {target.counterpart.node for target in targets.values()})
    lanes: list[Values] = [dict(zip(program.placeholders, item, strict=True)) for item in items]
    reals = [real_positions([spec.name for spec in program.inputs], item) for item in items]
    dead, trimmer, found = last_reads(program), Trimmer(), dict[str, tuple[Tensor, Tensor]]()
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            compute = step_of(program, node).compute
            for values in lanes:
                values[node] = compute(values)
            if node in targets:
                exact = reference.take(targets[node].counterpart.node)
                wanted = [targets[node].wanted(*both) for both in zip(exact, lanes, strict=True)]
                pair = _repair(program, node, lanes, wanted, reals)
                if pair is not None:
                    found[node.name] = pair
            for values in lanes:
                for source in dead.get(node, ()):
                    values.pop(source, None)
                trimmer.made_one(values.get(node))
    return found


def _repair(
    program: Program,
    node: fx.Node,
    lanes: Sequence[Values],
    wanted: Sequence[Tensor],
    reals: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor] | None:
    """Fit a map and let all lanes go on with what it then gives; returns its weight and bias."""
    known = linear_map(program.module, node)
    assert known is not None
    change = _fit(known, lanes, wanted, reals)
    if change is None:
        return None
    weight, bias = known.changed(change)
    for values in lanes:
        values[node] = known.compute(values, weight, bias)
    return weight, bias


def is_judged(number: int, count: int) -> bool:
    """Say whether one of some items is not fitted to, but judged by; at least the last one is."""
    return number % JUDGED == JUDGED - 1 or (count < JUDGED and number == count - 1)


def targets_of(program: Program, pairs: Mapping[fx.Node, Counterpart]) -> tuple[dict[fx.Node, Target], dict[str, str]]:
    """Return the targets of the maps that read something else than in the original, and why others have none."""
    result: dict[fx.Node, Target] = {}
    without: dict[str, str] = {}
    order = {node: number for number, node in enumerate(program.graph.nodes)}
    differs: set[fx.Node] = set()
    for node in program.graph.nodes:
        pair = pairs.get(node)
        reads_other = any(source in differs for source in node.all_input_nodes)
        if node.op == "call_function" and (reads_other or pair is None or pair.left):
            differs.add(node)
        if not reads_other or node.target not in (*LAYERS, *NORMS):
            continue
        if pair is None:
            without[node.name] = "original has no such node with the same readers and the same rows"
        elif linear_map(program.module, node) is None:
            without[node.name] = "it has no weights of its own that can be fitted"
        else:
            result[node] = _at_the_sum(node, pairs, order) or Target(pair)
    return result, without


def _at_the_sum(node: fx.Node, pairs: Mapping[fx.Node, Counterpart], order: Mapping[fx.Node, int]) -> Target | None:
    """Return the sum that a node ends a branch into, where the other branch is there already."""
    total = next(iter(node.users)) if len(node.users) == 1 else None
    if total is None or total.target not in (aten.add.Tensor, aten.add_.Tensor) or total not in pairs:
        return None
    left, right = argument(total, "self"), argument(total, "other")
    other = right if left is node else left
    if not isinstance(other, fx.Node) or other is node or argument(total, "alpha") != 1:
        return None
    same = str(tuple(node.meta["val"].shape)) == str(tuple(total.meta["val"].shape))
    return Target(pairs[total], other) if same and order[other] < order[node] else None


class _Reference:
    """The original run on all items, as far as it was asked for; of its values only the awaited ones are kept."""

    def __init__(self, original: Program, items: Items, awaited: Collection[fx.Node]) -> None:
        steps = [step_of(original, node) for node in original.graph.nodes if node.op != "placeholder"]
        self.walks = [walk_steps(original, steps, item) for item in items]
        self.waiting: list[Values] = [{} for _ in items]
        self.awaited = awaited

    def take(self, node: fx.Node) -> list[Any]:
        """Return the values of an awaited node, which are then forgotten."""
        for walk, waiting in zip(self.walks, self.waiting, strict=True):
            while node not in waiting:
                reached, value = next(walk)
                if reached in self.awaited:
                    waiting[reached] = value
        return [waiting.pop(node) for waiting in self.waiting]


def _fit(
    known: LinearMap, lanes: Sequence[Values], wanted: Sequence[Tensor], reals: Sequence[Tensor | None]
) -> Tensor | None:
    """Return the change of weight and bias, [groups, outputs, features + 1], that brings a map nearer to its target."""
    features = known.features if known.features <= FEATURES else 0
    fitted, judged = (Moments(known.groups, features, known.outputs) for _ in range(2))
    places = [_positions(known, target, real) for target, real in zip(wanted, reals, strict=True)]
    share = min(1.0, ROWS / max(sum(map(len, places)), 1))
    generator = torch.Generator().manual_seed(0)
    for number, (values, target, place) in enumerate(zip(lanes, wanted, places, strict=True)):
        if share < 1 or len(lanes) == 1:
            place = place[torch.randperm(len(place), generator=generator)[: max(1, int(share * len(place)))]]
        x = known.rows(values, place)[..., :features]
        r = known.results(target - values[known.node], place)
        if len(lanes) == 1:  # one item that cannot be split: some of its positions judge
            some = -(-len(place) // JUDGED)
            judged.add(x[:, :some], r[:, :some])
            fitted.add(x[:, some:], r[:, some:])
        else:
            (judged if is_judged(number, len(lanes)) else fitted).add(x, r)
    change = best_change(fitted, judged, RIDGES)
    return None if change is None else functional.pad(change, (known.features - features, 0))


def _positions(known: LinearMap, value: Tensor, real: Tensor | None) -> Tensor:
    """Return the numbers of the positions of a value, over all dimensions but that of the channels, but for padding."""
    shape = [size for dim, size in enumerate(value.shape) if dim != known.channels]
    count = int(torch.Size(shape).numel())
    if real is None or known.channels < 2 or value.shape[:2] != real.shape:
        return torch.arange(count)
    return real.reshape(*real.shape, *[1] * (len(shape) - 2)).expand(shape).flatten().nonzero()[:, 0]
