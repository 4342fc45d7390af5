"""AdaRound: weights that lie on the grids of their `fake_quantize` nodes, each rounded up or down as was learned.

One layer after the other (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization"), or one
block of layers after the other (Li et al. 2021, "BRECQ: Pushing the Limit of Post-Training Quantization by Block
Reconstruction").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fxopt.data import calibration_inputs, first_samples, split_items
from fxopt.errors import PassError
from fxopt.graph.interpret import last_reads, step_of
from fxopt.graph.memory import release_memory
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument, constant
from fxopt.passes.quantize.lanes import Lanes, compute_both
from fxopt.passes.quantize.reconstruction import has_rows, replay_of, rows_of
from fxopt.passes.quantize.regions import Region, block_regions, layer_regions, weight_of
from fxopt.passes.quantize.round_gptq import GRID, replace_weights, rounded_weights
from fxopt.passes.quantize.soft_rounding import Grid, Task, learn_rounding

SAMPLES = 64
TOGETHER = 8  # samples that a block is run on at a time
ITERATIONS = 500
REGIONS = {"layer": layer_regions, "block": block_regions}


@dataclass(frozen=True)
class AdaRound:
    """Learn for each weight of a calibrated Program whether to round it up or down, before Convert.

    - `data`: any iterable of items like the example inputs. `samples`: how many samples of it are used; they are in
      memory together, in float and behind quantization, with the values that the region at hand needs.
    - `region`: whose output is to stay what it was in float: each "layer" with its activation function, or each
      "block" between two values through which everything passes, all its weights together; that is slower.
    - `iterations`: steps of gradient descent for each region.
    - `drop`: the share of the quantized values that a region sees in float while it learns, 0 to 1.

    Linears and ungrouped conv2d layers start from what RoundGptq makes of them, others from their exact weights. A
    single linear or conv2d learns from rows at random places of its inputs, other regions from whole samples.
    Regions come one after the other, each on the outputs of the rounded ones before it. A weight that several layers
    read is rounded in the first. The same data gives the same weights. Raises PassError for an option out
    of its range; DataError for data that is empty, does not fit, or holds NaN or infinity.
    """

    data: Iterable[Any] = field(repr=False)
    samples: int = SAMPLES
    region: Literal["layer", "block"] = "layer"
    iterations: int = ITERATIONS
    drop: float = 0.0

    def __post_init__(self) -> None:
        if self.region not in REGIONS:
            raise PassError(f"The region is {self.region!r}. Choose one of {', '.join(REGIONS)}.")
        if not 0 <= self.drop <= 1:
            raise PassError(f"drop is {self.drop!r}. Give a share from 0 to 1.")
        if self.iterations < 1:
            raise PassError(f"iterations is {self.iterations!r}. Give a positive number.")

    def __call__(self, program: Program) -> Program:
        """Return the Program with rounded weights."""
        edit = Edit(program, by=self)
        running = program.eval()
        regions = REGIONS[self.region](running)
        if not regions:
            return edit.finish()
        found = first_samples(calibration_inputs(self.data, program), self.samples)
        items = first_samples(split_items(found, program, TOGETHER), self.samples)
        items = [item for item in items if all(tensor.numel() for tensor in item)]
        if not items:
            return edit.finish()
        starts = rounded_weights(running, items)
        release_memory()  # two runs side by side need room
        replace_weights(edit, _Rounding(running, regions, starts, self.iterations, self.drop).run(items))
        return edit.finish()


@dataclass
class _Rounding:
    """A run over the graph that rounds each region's weights when it comes to it."""

    program: Program
    regions: Sequence[Region]
    starts: Mapping[str, Tensor]  # by the names of weights
    iterations: int
    drop: float
    weights: dict[fx.Node, Tensor] = field(default_factory=dict)  # by their fake_quantize nodes

    def run(self, items: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """Return the rounded weights by their names."""
        starts = {region.nodes[0]: region for region in self.regions}
        dead = last_reads(self.program)
        lanes: list[Lanes] = [
            {node: (value, value) for node, value in zip(self.program.placeholders, item, strict=True)}
            for item in items
        ]
        with torch.no_grad():
            for node in self.program.graph.nodes:
                if node.op in ("placeholder", "output"):
                    continue
                if node in starts:
                    self._round(starts[node], lanes)
                for values in lanes:
                    values[node] = compute_both(self.program, node, values, self.weights)
                    for source in dead.get(node, ()):
                        values.pop(source, None)
        return {_name(node): weight for node, weight in self.weights.items()}

    def _round(self, region: Region, lanes: Sequence[Lanes]) -> None:
        new = tuple(dict.fromkeys(weight_of(layer) for layer in region.layers if weight_of(layer) not in self.weights))
        if not new:
            return
        grids = [_grid(self.program, node) for node in new]
        starts = [self.starts.get(_name(node)) for node in new]
        found = learn_rounding(grids, starts, self._task(region, lanes, new), self.iterations)
        self.weights.update(zip(new, found, strict=True))

    def _task(self, region: Region, lanes: Sequence[Lanes], new: Sequence[fx.Node]) -> Task:
        targets = [_float_outputs(self.program, region, values) for values in lanes]
        if has_rows(region):
            return rows_of(region, lanes, [target for (target,) in targets], self.drop)
        return replay_of(self.program, region, lanes, targets, self.weights, new, self.drop)


def _name(fake: fx.Node) -> str:
    return str(argument(fake, "x").target)


def _float_outputs(program: Program, region: Region, lanes: Lanes) -> tuple[Tensor, ...]:
    values = {node: lanes[node][0] for node in region.inputs}
    for node in region.nodes:
        skipped = node.target is fake_quantize
        values[node] = values[argument(node, "x")] if skipped else step_of(program, node).compute(values)
    return tuple(values[end] for end in region.ends)


def _grid(program: Program, fake: fx.Node) -> Grid:
    weight, scale, zero = (constant(program.module, argument(fake, name)) for name in GRID)
    assert weight is not None and scale is not None and zero is not None
    shape = [-1 if scale.ndim and dim == 0 else 1 for dim in range(weight.ndim)]
    step, center = (value.detach().to(weight.dtype).reshape(shape if scale.ndim else []) for value in (scale, zero))
    return Grid(weight.detach(), step, center, (argument(fake, "quant_min"), argument(fake, "quant_max")))
