"""Convert: the last of the three passes of static quantization. Fake quantization becomes integers.

The result is the reference that a runtime must match: quantize and dequantize nodes with the arithmetic of ONNX,
weights as int8 and biases as int32 buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxopt.errors import PassError, where
from fxopt.graph.batch_norm_factor import batch_norm_factor
from fxopt.graph.learned import learned_fake_quantize
from fxopt.graph.memory import Trimmer
from fxopt.graph.ops import dequantize, fake_quantize, observe, quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import INTEGER_KINDS, WEIGHTED_KINDS, is_constant, is_dequantized, is_dequantized_weight
from fxopt.graph.rewrite import Edit, argument
from fxopt.graph.tracked import tracked_grid, weight_grid
from fxopt.passes.quantize.clips import clip_is_redundant
from fxopt.passes.quantize.expand import expand_activations
from fxopt.passes.quantize.nodes import insert
from fxopt.passes.quantize.placement import ABSORBS_CLIP
from fxopt.passes.quantize.rules import QUANTIZE_RULES, clip_bounds
from fxopt.target import Target, find_target

LAYERS = [op for op, kind in INTEGER_KINDS.items() if kind in WEIGHTED_KINDS]
LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True)
class Convert:
    """Turn `fake_quantize` nodes into quantize and dequantize, weights into int8 and biases into int32 buffers.

    - `target`: the target that the observers were inserted for.

    A clip (relu, relu6, ...) between an integer op and its quantization is dropped: saturation does the same. A bias
    is stored in steps of input scale × weight scale; that of a linear stays float where its kernel adds it in float.
    Fewer than 8 bits are held in 8-bit storage, activations inside narrower limits: a runtime clips the integers.
    """

    target: str = "x86"

    def __call__(self, program: Program) -> Program:
        """Return the converted Program.

        Raises PassError if an observer, a trained scale or a restored batch norm is left, for more than 8 bits, and for
        weights too wide for the target.
        """
        target = find_target(self.target)
        edit = Edit(program, by=self)
        for node in edit.calls(observe):
            raise PassError(f"{where(node)} is an observer without a range: run Calibrate before Convert.")
        for node in edit.calls(batch_norm_factor):
            raise PassError(f"{where(node)} is of a restored batch norm: run FoldRestoredBatchNorm before Convert.")
        for node in edit.calls(learned_fake_quantize, tracked_grid, weight_grid):
            raise PassError(f"{where(node)} has a scale that is still trained: run FixScales before Convert.")
        for node in edit.calls(fake_quantize):
            if argument(node, "quant_max") - argument(node, "quant_min") > 255:
                raise PassError(
                    f"{where(node)} has more than 8 bits, which no integer kernel takes: simulation only. Run the "
                    "calibrated Program instead of converting it."
                )
        zero_points: dict[fx.Node, fx.Node] = {}
        trimmer = Trimmer()  # left alone, the pieces that weights were rounded in take more than the weights
        for node in edit.calls(fake_quantize):
            if is_constant(node.args[0]):
                trimmer.made_one(node.meta["val"])
                _convert_weight(edit, node, target)
            else:
                _absorb_clip(edit, node)
                _convert_value(edit, node, target, zero_points)
        expand_activations(edit, target)
        for node in edit.calls(*LAYERS):
            _convert_bias(edit, node, target)
        return edit.finish()


def _convert_weight(edit: Edit, node: fx.Node, target: Target) -> None:
    source, scale, zero_point, axis, low, high = node.args
    if not (isinstance(low, int) and isinstance(high, int) and max(-low, high) <= target.weight_max):
        raise PassError(
            f"{where(node)} gives a weight the range [{low}, {high}]; kernels of target '{target.name}' are exact up "
            f"to ±{target.weight_max}. Give Calibrate the target too: Calibrate(data, target='{target.name}')."
        )
    weight, steps, zeros = (edit.constant(value) for value in (source, scale, zero_point))
    assert weight is not None and steps is not None and zeros is not None and isinstance(source, fx.Node)
    values = quantize(weight.detach(), steps, zeros, axis, low, high, torch.int8)
    stored = edit.add_constant(f"{source.target}_int8", values, before=node)
    # Just before its reader: the float form of a weight is then never there for long when the graph runs in torch.
    reader, name, value = min(node.users), node.name.replace("_fake", "_dequantized"), node.meta["val"]
    edit.replace(
        node,
        insert(edit, dequantize, stored, scale, zero_point, axis, before=reader, name=name, value=value, like=node),
    )


def _absorb_clip(edit: Edit, node: fx.Node) -> None:
    """Let a quantization read past a clip that it makes redundant."""
    clip = node.args[0]
    assert isinstance(clip, fx.Node)
    bounds = clip_bounds(clip)
    if bounds is None or len(clip.users) > 1 or not isinstance(clip.args[0], fx.Node):
        return
    rule = QUANTIZE_RULES.get(clip.args[0].target)
    if rule is None or rule.role not in ABSORBS_CLIP or len(clip.args[0].users) > 1:
        return
    scale, zero_point = (edit.constant(value) for value in node.args[1:3])
    assert scale is not None and zero_point is not None
    low, high = argument(node, "quant_min"), argument(node, "quant_max")
    if clip_is_redundant(float(scale), int(zero_point), bounds, low, high):
        node.update_arg(0, clip.args[0])
        edit.graph.erase_node(clip)


def _convert_value(edit: Edit, node: fx.Node, target: Target, zero_points: dict[fx.Node, fx.Node]) -> None:
    source, scale, zero_point, axis, low, high = node.args
    assert isinstance(zero_point, fx.Node) and isinstance(low, int) and isinstance(high, int)
    shift = torch.iinfo(target.activation).min - torch.iinfo(zero_point.meta["val"].dtype).min
    if zero_point not in zero_points:
        zero_points[zero_point] = _shifted(edit, zero_point, shift, target.activation)
    zero = zero_points[zero_point]
    base = node.name.replace("_fake", "")
    value = node.meta["val"]
    with edit.mode:
        integers = torch.empty_like(value, dtype=target.activation)
    q = insert(
        edit, quantize, source, scale, zero, axis, low + shift, high + shift, target.activation,
        before=node, name=f"{base}_quantized", value=integers, like=node,
    )  # fmt: skip
    name = f"{base}_dequantized"
    edit.replace(node, insert(edit, dequantize, q, scale, zero, axis, before=node, name=name, value=value, like=node))


def _shifted(edit: Edit, zero_point: fx.Node, shift: int, dtype: torch.dtype) -> fx.Node:
    """Return a zero point in the dtype of the activations; signed and unsigned values differ by a shift only."""
    value = edit.constant(zero_point)
    assert value is not None
    if value.dtype is dtype and shift == 0:
        return zero_point
    moved = (value.to(torch.int32) + shift).to(dtype)
    name = f"{zero_point.target}_{str(dtype).removeprefix('torch.')}"
    return edit.add_constant(name, moved, before=zero_point.next)


def _convert_bias(edit: Edit, node: fx.Node, target: Target) -> None:
    x, weight, bias = node.args[0], node.args[1], argument(node, "bias")
    if not (is_dequantized(x) and is_dequantized_weight(weight)) or not isinstance(bias, fx.Node):
        return
    value = edit.constant(bias)
    if value is None or (node.target is LINEAR and not needs_integer_bias(node, target)):
        return
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    x_scale, weight_scale = edit.constant(x.args[1]), edit.constant(weight.args[1])
    assert x_scale is not None and weight_scale is not None
    scale = x_scale * weight_scale
    stored = edit.add_constant(f"{bias.target}_int32", integer_bias(value.detach(), scale), before=node)
    scale_node = edit.add_constant(f"{bias.target}_scale", scale, before=node)
    zeros = edit.add_constant(f"{bias.target}_zero_point", torch.zeros(scale.shape, dtype=torch.int32), before=node)
    name, axis = f"{node.name}_bias_dequantized", 0 if scale.ndim else None
    wide = edit.call(dequantize, stored, scale_node, zeros, axis, before=node, name=name)
    node.args = (x, weight, wide, *node.args[3:])


def needs_integer_bias(node: fx.Node, target: Target) -> bool:
    """Say whether a linear is emitted as Gemm, whose integer kernel takes an int32 bias only."""
    return not target.contrib_ops and node.meta["val"].ndim == 2


def integer_bias(bias: Tensor, scale: Tensor) -> Tensor:
    """Return a bias in whole steps of `scale`, as int32."""
    limit = torch.iinfo(torch.int32)
    return torch.round(bias.double() / scale.double()).clamp(limit.min, limit.max).to(torch.int32)
