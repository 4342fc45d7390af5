"""RoundGptq: weights that lie on the grids of their `fake_quantize` nodes, rounded with error feedback.

Between Calibrate and Convert: what Convert rounds to the nearest step is then on a step already. For weights of 4 bits
in integer layers (W4A8) that is worth most.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.data import calibration_inputs, first_samples
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument, constant
from fxopt.passes.quantize.feedback import output_error, round_with_feedback
from fxopt.passes.quantize.gptq import check_damping
from fxopt.passes.quantize.insert import describe_float
from fxopt.passes.quantize.layer_inputs import layer_problem, visit_layers
from fxopt.passes.quantize.regions import has_grid, weight_of

SAMPLES = 32
GRID = ("x", "scale", "zero_point")  # the arguments of fake_quantize that are tensors


@dataclass(frozen=True)
class RoundGptq:
    """Round the weights of a calibrated Program for the least change of each layer's output, before Convert.

    - `data`: any iterable of items like the example inputs. `samples`: how many samples of it are used; they are in
      memory together, with the values that the layer at hand needs.
    - `damping`, `ordered`: see Gptq; grouped convolutions have no order.
    - `largest`: of layers with more inputs an output than this the weights are left alone: memory grows with the square
      of the inputs, time with the cube.

    Linears and conv2d (as a product with its patches, group by group) are rounded on the grid they have; others keep
    their weights, with a note. Layers come one after the other, each on the outputs of the rounded ones before it.
    Raises DataError for data that is empty, does not fit, or holds NaN or infinity.
    """

    data: Iterable[Any] = field(repr=False)
    samples: int = SAMPLES
    damping: float = 0.01
    ordered: bool = False
    largest: int | None = None

    def __post_init__(self) -> None:
        check_damping(self.damping)

    def __call__(self, program: Program) -> Program:
        """Return the Program with rounded weights."""
        edit = Edit(program, by=self)
        running = program.eval()
        quantized = [node for node in running.graph.nodes if has_grid(node)]
        reasons = {node.name: reason for node in quantized if (reason := layer_problem(node, self.largest))}
        if not quantized:
            return edit.finish()
        items = first_samples(calibration_inputs(self.data, program), self.samples)
        replace_weights(edit, rounded_weights(running, items, self.damping, self.ordered, self.largest))
        for note in describe_float(reasons):
            edit.note(note.replace("Float:", "Rounded to the nearest step:"))
        return edit.finish()


def rounded_weights(
    program: Program,
    items: Sequence[tuple[Tensor, ...]],
    damping: float = 0.01,
    ordered: bool = False,
    largest: int | None = None,
) -> dict[str, Tensor]:
    """Return the weights of the layers that can be rounded with feedback, on their grids, by the weights' names."""
    layers = [node for node in program.graph.nodes if has_grid(node) and layer_problem(node, largest) is None]
    rounded: dict[str, Tensor] = {}

    def visit(node: fx.Node, hessian: Tensor) -> Tensor:
        fake = weight_of(node)
        name = str(argument(fake, "x").target)
        if name not in rounded:
            weight, scale, zero = (constant(program.module, argument(fake, part)) for part in GRID)
            assert weight is not None and scale is not None and zero is not None
            limits = (argument(fake, "quant_min"), argument(fake, "quant_max"))
            in_order = ordered and hessian.ndim == 2
            rounded[name] = round_on_grid(weight.detach(), hessian, scale, zero, limits, damping, in_order)
        return rounded[name]

    visit_layers(program, items, layers, visit)
    return rounded


def round_on_grid(
    weight: Tensor,
    hessian: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    limits: tuple[int, int],
    damping: float = 0.01,
    ordered: bool = False,
) -> Tensor:
    """Round weight[N, ...] to steps of scale[N] (or one for all) around zero_point; returns floats on the grid.

    `hessian` is [K, K] of the inputs of the flattened weight [N, K], or [groups, K, K]; `limits` are the smallest and
    the largest step. A row for which rounding to the nearest is better gets that.
    """
    flat = weight.reshape(len(weight), -1)
    step, zero = (value.to(flat.dtype).expand(len(flat)) for value in (scale, zero_point))
    steps, _, _ = round_with_feedback(
        flat, hessian, lambda *_: (step, zero), limits, group=max(flat.shape[1], 1), damping=damping, ordered=ordered
    )
    nearest = torch.round(flat / step[:, None]).add_(zero[:, None]).clamp_(*limits)
    plain, fitted = ((found - zero[:, None]) * step[:, None] for found in (nearest, steps))
    is_plain = output_error(plain - flat, hessian) <= output_error(fitted - flat, hessian)
    return torch.where(is_plain[:, None], plain, fitted).reshape(weight.shape)


def replace_weights(edit: Edit, rounded: Mapping[str, Tensor]) -> None:
    """Let the fake_quantize nodes of weights read rounded ones, given by the weights' names."""
    for node in list(edit.graph.find_nodes(op="get_attr")):
        if (value := rounded.get(str(node.target))) is None:
            continue
        for reader in list(node.users):
            if reader.target is fake_quantize:
                stored = edit.add_constant(f"{node.target}_rounded", value, before=reader)
                reader.replace_input_with(node, stored)
