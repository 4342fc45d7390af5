"""Layer after layer: the second moment of each layer's inputs, behind the layers that were rounded before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from fxopt.graph.interpret import Step, Values, compute_together, last_reads, same_for_all, step_of
from fxopt.graph.memory import Trimmer, return_free_memory
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument
from fxopt.passes.quantize.feedback import COARSE

aten = torch.ops.aten
ENOUGH, PER_INPUT = 1024, 8  # positions that a convolution's moments are taken from at least, and for each input
PATCHES = 2**22  # elements of a convolution's patches in memory at a time


def visit_layers(
    program: Program,
    items: Sequence[tuple[Tensor, ...]],
    layers: Collection[fx.Node],
    visit: Callable[[fx.Node, Tensor], Tensor],
) -> None:
    """Run all items together, node after node, and let each layer be rounded as it comes.

    `visit(layer, hessian)` gets E[x xᵀ] of the layer's inputs and returns the weight to go on with. Of the values only
    those still needed are in memory, and one such matrix at a time.
    """
    dead, shared = last_reads(program), same_for_all(program)
    lanes: list[Values] = [dict(zip(program.placeholders, item, strict=True)) for item in items]
    trimmer = Trimmer()
    known: tuple[Any, Tensor] = (None, torch.empty(0))  # layers side by side often read the same value
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            weight: dict[fx.Node, Any] = {}
            if node in layers:
                key = (node.args[0], _patch_options(node), _groups(node))
                if known[0] != key:
                    known = key, _hessian(node, lanes)
                weight = {node.args[1]: visit(node, known[1])}
                return_free_memory()
            compute = partial(_compute, step_of(program, node), weight)
            compute_together(lanes, node, compute, node in shared)
            for values in lanes:
                for source in dead.get(node, ()):
                    values.pop(source, None)
                trimmer.made_one(values.get(node))


def _compute(step: Step, weight: Mapping[fx.Node, Any], values: Values) -> Any:
    return step.compute({**{source: values[source] for source in step.reads}, **weight})


def layer_problem(node: fx.Node, largest: int | None = None) -> str | None:
    """Say why the inputs of a layer are not gathered, or return None. `largest`: how many there may be an output."""
    if node.target not in (aten.linear.default, aten.conv2d.default):
        return "only linear and conv2d layers are rounded with feedback"
    inputs = math.prod(argument(node, "weight").meta["val"].shape[1:])
    return f"it has {inputs} inputs an output" if largest is not None and inputs > largest else None


def _patch_options(node: fx.Node) -> dict[str, Any] | None:
    if node.target is aten.linear.default:
        return None
    kernel = argument(node, "weight").meta["val"].shape[2:]
    options = {name: argument(node, name) for name in ("dilation", "padding", "stride")}
    return {"kernel_size": tuple(kernel), **{name: tuple(value) for name, value in options.items()}}


def _groups(node: fx.Node) -> int:
    return 1 if node.target is aten.linear.default else int(argument(node, "groups"))


def _hessian(node: fx.Node, lanes: Sequence[Values]) -> Tensor:
    """Return the mean of x xᵀ over all positions at which a layer applies its weight, [K, K], or [groups, K, K]."""
    total, count = torch.zeros(()), 0
    found = [values[argument(node, "input")] for values in lanes]
    step = _step(node, found)
    for x in found:
        for rows in _rows(node, x, step):
            total = total + rows.mT @ rows
            count += rows.shape[-2]
    return total / max(count, 1)


def _step(node: fx.Node, found: Sequence[Tensor]) -> int:
    """Return how far apart the positions of a convolution may be, in both directions, so that enough are left.

    For a weight on a coarse grid, on which feedback has more to make up for, none are left out.
    """
    options = _patch_options(node)
    if options is None or _is_coarse(argument(node, "weight")):
        return 1
    positions = sum(x.numel() // x.shape[-3] for x in found) / math.prod(options["stride"])
    inputs = math.prod(argument(node, "weight").meta["val"].shape[1:])
    return max(1, math.isqrt(int(positions / max(ENOUGH, PER_INPUT * inputs))))


def _is_coarse(weight: fx.Node) -> bool:
    if weight.target is not fake_quantize:
        return False
    return bool(argument(weight, "quant_max") - argument(weight, "quant_min") < COARSE)


def _rows(node: fx.Node, x: Tensor, step: int) -> Iterator[Tensor]:
    """Yield what a layer multiplies with its flattened weight, [rows, K] or [groups, rows, K], some samples at once.

    Only every `step`-th position of a convolution counts, in each direction.
    """
    options, groups = _patch_options(node), _groups(node)
    if options is None:
        yield x.reshape(-1, x.shape[-1])
        return
    options["stride"] = tuple(step * value for value in options["stride"])
    x = x if x.ndim == 4 else x[None]
    size = x[0].numel() * options["kernel_size"][0] * options["kernel_size"][1]
    is_pointwise = options["kernel_size"] == (1, 1) and not any(options["padding"])
    for part in torch.split(x, max(1, PATCHES // max(size, 1))):
        if is_pointwise:
            found = part[..., :: options["stride"][0], :: options["stride"][1]].flatten(2)
        else:
            found = functional.unfold(part, **options)
        rows = found.reshape(len(part), groups, -1, found.shape[2]).permute(1, 0, 3, 2).flatten(1, 2)
        yield rows if groups > 1 else rows[0]
