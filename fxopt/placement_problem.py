"""What a choice among the integer nodes of a placement costs, as the rows of a linear program (see solve).

Unknown is for each node whether it is integer. What follows from that is linear: the time of nodes and of conversions,
as in timed_placement; the noise of weights and values that are quantized (see sensitivity); and what placement demands
of ops that gain only between integer ones.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from fxopt.passes.quantize.placement import WEIGHTED, activations
from fxopt.passes.quantize.rules import Role, needs_chain
from fxopt.sensitivity import Noise, dynamic_key
from fxopt.solve import Problem
from fxopt.target import Target
from fxopt.timed_placement import Prices


def placement_problem(prices: Prices, target: Target, noise: Noise, dynamic: Collection[str] = ()) -> Problem:
    """Return the problem of a placement, and of nodes with `dynamic` ranges, which stand by themselves.

    What `noise` does not know makes none.
    """
    placement = prices.placement
    problem = Problem((*placement.integer, *dynamic))
    width = max((len(row) for row in noise.values()), default=0)
    problem.noise = [{} for _ in range(width)]
    for name in placement.integer:
        _node(problem, prices, target, noise, prices.nodes[name])
    for name in dynamic:
        _times(problem, prices, name)
        _add_noise(problem, name, noise.get(dynamic_key(name), ()))
    for point in placement.points.values():
        _conversions(problem, prices, prices.nodes[point.value])
        _rounding(problem, prices, prices.nodes[point.value], noise.get(point.value, ()))
    return problem


def _node(problem: Problem, prices: Prices, target: Target, noise: Noise, node: fx.Node) -> None:
    """Add the time of a node, the noise of its weight, and what it demands of its neighbours."""
    _times(problem, prices, node.name)
    role = prices.placement.integer[node.name]
    if role in WEIGHTED:
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        _add_noise(problem, node.name, noise.get(str(weight.target), ()))
    if role not in WEIGHTED or (role is Role.CONVOLUTION and needs_chain(node, target)):
        _chain(problem, prices, node)


def _times(problem: Problem, prices: Prices, name: str) -> None:
    left, right = prices.seconds(name)
    problem.constant += left
    problem.seconds[name] = right - left


def _chain(problem: Problem, prices: Prices, node: fx.Node) -> None:
    """Let a node be integer only between integer nodes, as placement has it."""
    for value in activations(node):
        if (maker := prices.maker(value)) is not None and maker != node.name:
            problem.rows.append(({node.name: 1.0, maker: -1.0}, 0.0))
    role = prices.placement.integer[node.name]
    if role is Role.CONCATENATE and not any(user.op == "output" for user in node.users):
        return
    made = [prices.nodes[name] for name in prices.placement.points if prices.maker(prices.nodes[name]) == node.name]
    readers = {user.name for value in made for user in prices.integer_readers(value)}
    problem.rows.append(({node.name: 1.0} | dict.fromkeys(sorted(readers), -1.0), 0.0))


def _conversions(problem: Problem, prices: Prices, value: fx.Node) -> None:
    """Let a value cost a conversion where its maker and one of its readers are on different sides."""
    maker, price = prices.maker(value), prices.conversion(value)
    quantized, dequantized = f"quantize {value.name}", f"dequantize {value.name}"
    for reader in dict.fromkeys(prices.readers(value)):
        if reader is not None and reader != maker:
            _at_least(problem, quantized, reader, maker)
        if maker is not None and reader != maker:
            _at_least(problem, dequantized, maker, reader)
    problem.seconds[quantized] = price
    problem.seconds[dequantized] = price


def _rounding(problem: Problem, prices: Prices, value: fx.Node, noise: tuple[float, ...]) -> None:
    """Let a value that is quantized make its noise, unless it is made of values that have the very same scale."""
    maker, rounded = prices.maker(value), f"round {value.name}"
    copied = maker is not None and _is_copied(prices, prices.nodes[maker], value)
    for reader in dict.fromkeys(prices.readers(value)):
        if reader is not None and reader != maker:
            _at_least(problem, rounded, reader, maker if copied else None)
    if maker is not None and not copied:
        _at_least(problem, rounded, maker, None)
    _add_noise(problem, rounded, noise)


def _is_copied(prices: Prices, maker: fx.Node, value: fx.Node) -> bool:
    points = prices.placement.points
    sources = [points.get(source.name) for source in activations(maker)]
    group = points[value.name].group
    return bool(sources) and all(source is not None and source.group == group for source in sources)


def _at_least(problem: Problem, name: str, plus: str, minus: str | None) -> None:
    """Demand a variable of at least one minus the other."""
    problem.rows.append(({plus: 1.0, name: -1.0} | ({} if minus is None else {minus: -1.0}), 0.0))


def _add_noise(problem: Problem, name: str, noise: tuple[float, ...]) -> None:
    for terms, share in zip(problem.noise, noise, strict=False):
        terms[name] = terms.get(name, 0.0) + share
