"""Gptq: weights of linears in few bits, each rounded so that the layer's output changes least on calibration data.

Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.data import calibration_inputs, first_samples
from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.passes.quantize.block_grid import BlockFormat, BlockWeight, fit_grid, round_to_nearest, stored
from fxopt.passes.quantize.feedback import output_error, round_with_feedback
from fxopt.passes.quantize.layer_inputs import visit_layers
from fxopt.passes.quantize.placement import reasons_of
from fxopt.passes.quantize.quantize_weights import (
    check_options,
    constant_linears,
    store_weights,
    weight_float_reasons,
)

SAMPLES = 64


@dataclass(frozen=True)
class Gptq:
    """Do what QuantizeWeights does, with the rounding fitted to calibration data.

    - `data`: any iterable of items like the example inputs. `samples`: how many samples of it are used; they are in
      memory together, with the values that the layer at hand needs.
    - `damping`: what share of the mean square input is added to each, against a fit to few samples.
    - `ordered`: round the inputs with the largest values first (GPTQ's "act-order"), with ranges fixed before.
    - `bits`, `group_size`, `symmetric`, `accuracy_level`, `keep_float`: see QuantizeWeights.

    Layers come one after the other, each on the outputs of the rounded ones before it. A row for which plain rounding
    is better stays so; a weight that several linears read is rounded for the first. Raises DataError for data that is
    empty, does not fit, or holds NaN or infinity, and PassError for an option or a name that does not exist.
    """

    data: Iterable[Any] = field(repr=False)
    bits: int = 4
    group_size: int | None = 32
    symmetric: bool = False
    accuracy_level: int = 4
    keep_float: Mapping[str, str] | Collection[str] = ()
    samples: int = SAMPLES
    damping: float = 0.01
    ordered: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))
        check_options(self.bits, self.group_size, self.accuracy_level)
        check_damping(self.damping)

    def __call__(self, program: Program) -> Program:
        """Return the quantized Program."""
        layout = BlockFormat(self.bits, self.group_size, self.symmetric)
        items = first_samples(calibration_inputs(self.data, program), self.samples)
        edit, running = Edit(program, by=self), program.eval()
        reasons = weight_float_reasons(program, self.bits, self.group_size, self.keep_float)
        weights = {node.name: weight.detach() for node, weight in constant_linears(edit, reasons)}
        rounded: dict[int, BlockWeight] = {}

        def visit(node: fx.Node, hessian: Tensor) -> Tensor:
            weight = weights[node.name]
            key = weight.data_ptr()
            if key not in rounded:
                rounded[key] = fit_weight(weight, hessian, layout, self.damping, self.ordered)
            return rounded[key].dequantized()

        layers = [node for node in running.graph.nodes if node.name in weights]
        visit_layers(running, items, layers, visit)
        return store_weights(
            edit, layout, self.accuracy_level, self.keep_float, lambda _, weight: rounded[weight.data_ptr()]
        )


def check_damping(damping: float) -> None:
    """Raise PassError unless the damping is positive and finite."""
    if not 0 < damping < float("inf"):
        raise PassError(f"The damping must be a positive number such as 0.01, not {damping!r}.")


def fit_weight(
    weight: Tensor, hessian: Tensor, layout: BlockFormat, damping: float = 0.01, ordered: bool = False
) -> BlockWeight:
    """Round weight[N, K] for inputs with E[x xᵀ] = hessian[K, K]; each row with feedback or plainly, as is better."""
    importance = hessian.diagonal() + damping * hessian.diagonal().mean() + torch.finfo(torch.float32).tiny
    plain = round_to_nearest(weight, layout, importance)
    group = layout.block_size(weight.shape[1])

    def grid(columns: Tensor, start: int) -> tuple[Tensor, Tensor]:
        return fit_grid(columns, layout, importance[start : start + columns.shape[1]])

    limits = (0, (1 << layout.bits) - 1)
    parts = round_with_feedback(weight, hessian, grid, limits, group=group, damping=damping, ordered=ordered)
    fitted = stored(*parts, layout)
    errors = [output_error(found.dequantized() - weight, hessian) for found in (plain, fitted)]
    is_plain = (errors[0] <= errors[1])[:, None]
    zero = None
    if plain.zero_point is not None and fitted.zero_point is not None:
        zero = torch.where(is_plain, plain.zero_point, fitted.zero_point)
    q, scale = (torch.where(is_plain, *pair) for pair in ((plain.q, fitted.q), (plain.scale, fitted.scale)))
    return BlockWeight(q, scale, zero, plain.block_size, layout.bits)
