"""CorrectBias: shift the biases of quantized layers so that rounding leaves the mean of each channel where it was.

    b_c += E[y_c] - E[y'_c]    y: the layer's output in float; y': with quantized weights and inputs

(Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, the empirical
form; as in Finkelstein et al. 2019 layer after layer, each behind the corrected ones before it.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.data import calibration_inputs, first_samples, split_items
from fxopt.graph.integer_arithmetic import INTEGER_OPS, op_of
from fxopt.graph.interpret import compute_together, last_reads, relative_noise, same_for_all
from fxopt.graph.memory import Trimmer, release_memory
from fxopt.graph.ops import fake_quantize
from fxopt.graph.padding import real_positions, run_without_padding, without_padding
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.quantize.lanes import Lanes, compute_both
from fxopt.passes.quantize.placement import WEIGHTED
from fxopt.passes.quantize.remove_fake_quantize import RemoveFakeQuantize
from fxopt.passes.quantize.rules import QUANTIZE_RULES

SAMPLES, AT_ONCE = 16, 4
# What must be left of the outputs' noise at most, on samples that the correction was not fitted to; where there are no
# others it has to be less: part of what is gone there is only fitted.
WORTH_IT, WORTH_IT_FITTED = 0.95, 0.75


@dataclass(frozen=True)
class CorrectBias:
    """Correct the biases of a calibrated Program (with `fake_quantize` nodes), before Convert.

    - `data`: any iterable of items like the example inputs. `samples`: how many samples of it are used, half of them
      to fit (they are in memory together, with the values that the layer at hand needs) and half to judge.

    A layer without a bias gets one. The corrections are kept only if they make the outputs more exact. Raises DataError
    for data that is empty, does not fit, or holds NaN or infinity.
    """

    data: Iterable[Any] = field(repr=False)
    samples: int = SAMPLES

    def __call__(self, program: Program) -> Program:
        """Return the corrected Program."""
        edit = Edit(program, by=self)
        if not any(is_quantized_layer(node) for node in program.graph.nodes):
            return edit.finish()
        # Split, so that there are samples to judge by if all come in one batch.
        found = split_items(first_samples(calibration_inputs(self.data, program), self.samples), program, AT_ONCE)
        items = [item for item in found if all(tensor.numel() for tensor in item)]
        if not items:
            return edit.finish()
        half = (len(items) + 1) // 2
        fitted, judged = items[:half], items[half:] or items
        release_memory()  # of the calibration: two runs side by side need room
        corrections = _corrections(program.eval(), fitted)
        release_memory()
        nodes = {node.name: node for node in edit.graph.nodes}
        for name, correction in corrections.items():
            shift_bias(edit, nodes[name], correction)
        corrected = edit.finish()
        if noise_left(program, corrected, judged) < (WORTH_IT if len(items) > 1 else WORTH_IT_FITTED):
            return corrected
        edit = Edit(program, by=self)
        edit.note("Bias correction does not bring the outputs nearer to the float ones; it is left out.")
        return edit.finish()


def noise_left(before: Program, after: Program, items: Sequence[tuple[Tensor, ...]]) -> float:
    """Return the share of the outputs' noise that a change of a calibrated Program leaves."""
    exact = run_without_padding(RemoveFakeQuantize()(before).eval(), items)
    plain, changed = (relative_noise(exact, run_without_padding(found.eval(), items)) for found in (before, after))
    return changed / plain if plain else 1.0


def is_quantized_layer(node: fx.Node) -> bool:
    """Say whether a node is a layer whose input and weight are quantized, and whose bias, if any, can be changed."""
    rule = QUANTIZE_RULES.get(node.target)
    if rule is None or rule.role not in WEIGHTED:
        return False
    bias = argument(node, "bias")
    return all(_is_fake(value) for value in node.args[:2]) and (bias is None or is_constant(bias))


def _is_fake(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.target is fake_quantize


def _corrections(program: Program, items: Sequence[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Run all items side by side, in float and behind quantization; return what to add to the bias of each layer.

    Each layer is corrected as it comes.
    """
    dead, shared = last_reads(program), same_for_all(program)
    lanes: list[Lanes] = [
        {node: (value, value) for node, value in zip(program.placeholders, item, strict=True)} for item in items
    ]
    names = [spec.name for spec in program.inputs]
    reals = [real_positions(names, item) for item in items]
    corrections: dict[str, Tensor] = {}
    trimmer = Trimmer()
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            compute_together(lanes, node, partial(compute_both, program, node), node in shared)
            if is_quantized_layer(node):
                corrections[node.name] = _correct(node, lanes, reals)
            for values in lanes:
                for source in dead.get(node, ()):
                    values.pop(source, None)
                trimmer.made_one(values.get(node, (None,))[0])
    return corrections


def _correct(node: fx.Node, lanes: Sequence[Lanes], reals: Sequence[Tensor | None]) -> Tensor:
    """Return a layer's mean error a channel over all items, and take it out of the quantized lane."""
    row = INTEGER_OPS[op_of(node)]
    assert row.channels is not None
    axis = row.channels[1]
    total, count = torch.zeros(()), 0
    for values, real in zip(lanes, reals, strict=True):
        left, right = (without_padding(value, real if axis == -1 else None) for value in values[node])
        others = [dim for dim in range(left.ndim) if dim != left.ndim + axis]
        total = total + (left - right).sum(others, dtype=torch.float64)
        count += left.numel() // left.shape[axis]
    correction = (total / max(count, 1)).float()
    shift = correction.reshape([-1, *[1] * (-axis - 1)])
    for values in lanes:
        values[node][1].add_(shift)
    return correction


def shift_bias(edit: Edit, node: fx.Node, correction: Tensor) -> None:
    """Add a correction, `[outputs]`, to the bias of a layer of a calibrated Program."""
    bias, weight = argument(node, "bias"), node.args[1]
    assert isinstance(weight, fx.Node) and isinstance(weight.args[0], fx.Node)
    if isinstance(bias, fx.Node):
        value = edit.constant(bias)
        assert value is not None
        name, correction = f"{bias.target}_corrected", value.detach() + correction
    else:
        name = f"{weight.args[0].target}_bias"
    stored = edit.add_constant(name, correction, before=node)
    kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}
    edit.update(node, (*node.args[:2], stored, *node.args[3:]), kwargs)
