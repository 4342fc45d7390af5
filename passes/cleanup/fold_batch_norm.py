"""Batch norm in inference is a scale and a shift of each channel: they move into the layer before or after it.

    s = gamma / sqrt(var + eps),  t = beta - mean * s
    bn(W * x + b) = (s W) * x + (s b + t)          W * bn(x) + b = (W s) * x + (W t + b)

Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 3.2 and eq. 14.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument, constant
from fxopt.passes.cleanup.drop_inference_no_ops import RESHAPES
from fxopt.passes.cleanup.layers import Layer, accepts_input_shift, layer_at, scale_inputs, scale_outputs, write
from fxopt.passes.cleanup.purity import is_training

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldBatchNorm:
    """Fold inference batch norm into the layer before it, or else into the layer after it.

    Folded:
    1. conv1d, conv2d, conv3d, linear -> batch norm: into the outputs; also grouped and depthwise, and a linear layer
       whose leading dimensions are flattened in between.
    2. conv_transpose1d, 2d, 3d -> batch norm: into the outputs; also grouped.
    3. batch norm -> conv, linear without zero padding: into the inputs.
    4. batch norm whose shift is zero -> any layer: into the inputs.
    5. A weight that other layers share: this layer gets a copy of its own.
    Left alone:
    6. Batch norm in training mode, or without running statistics.
    7. A layer whose output, or a batch norm before a layer whose output, has another use.
    8. Batch norm with a shift before a layer with zero padding or a transposed one: the border would differ.
    9. Batch norm over another dimension than the layer's channels (linear on [batch, length, features]).
    10. Tensors that are computed in the graph, and a scale that is not finite.

    Weights stay Parameters, keep their names and dtype; the arithmetic is float64. A missing bias is added.
    """

    def __call__(self, program: Program) -> Program:
        """Return the folded Program, or `program` itself if nothing can be folded."""
        norms = program.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
        if not any(match_norm(program.module, node) for node in norms):
            return program
        edit = Edit(program, by=self)
        while any([_fold(edit, node) for node in edit.calls(aten.batch_norm.default)]):
            pass  # a fold can bring another batch norm next to a layer
        return edit.finish()


@dataclass(frozen=True)
class Match:
    """The layer that a batch norm goes into, whether it is `before` the norm, and the norm's scale and shift.

    Both are float64, `[channels]`.
    """

    layer: Layer
    before: bool
    scale: Tensor
    shift: Tensor


def match_norm(module: nn.Module, norm: fx.Node) -> Match | None:
    """Return what a batch norm can be folded into; the module holds the tensors of its graph."""
    affine = channel_scale(module, norm)
    if affine is None:
        return None
    source = norm.args[0]
    layer = layer_at(module, source) or _flattened_layer(module, norm)
    if layer is not None and len(layer.node.users) == 1 and (layer.channel_dim == 1 or layer.node is not source):
        return Match(layer, True, *affine)
    user = next(iter(norm.users), None)
    layer = layer_at(module, user) if len(norm.users) == 1 else None
    if layer is None or layer.source is not norm or layer.channel_dim != 1:
        return None
    if not accepts_input_shift(layer) and bool(affine[1].any()):
        return None
    return Match(layer, False, *affine)


def _flattened_layer(module: nn.Module, norm: fx.Node) -> Layer | None:
    """Return the linear layer of linear -> reshape to [rows, channels] -> batch norm, if its channels stay the last."""
    source = norm.args[0]
    if not isinstance(source, fx.Node) or source.target not in RESHAPES or len(source.users) != 1:
        return None
    layer, shape = layer_at(module, source.args[0]), source.meta["val"].shape
    if layer is None or layer.kind.spatial or len(shape) != 2:
        return None
    return layer if isinstance(shape[1], int) and shape[1] == layer.outputs else None


def _fold(edit: Edit, norm: fx.Node) -> bool:
    match = None if norm._erased else match_norm(edit.module, norm)
    if match is None:
        return False
    if match.before:
        write(edit, match.layer, *scale_outputs(match.layer, match.scale, match.shift))
    else:
        write(edit, match.layer, *scale_inputs(match.layer, match.scale, match.shift))
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    edit.replace(norm, source)
    return True


def channel_scale(module: nn.Module, norm: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Return the scale and shift of an inference batch norm, float64 `[channels]`; None if not known or finite."""
    if is_training(norm):
        return None
    tensors = {}
    for name in ("weight", "bias", "running_mean", "running_var"):
        node = argument(norm, name)
        value = constant(module, node)
        if value is None and (node is not None or name.startswith("running")):
            return None
        tensors[name] = None if value is None else value.detach().double()
    mean, variance = tensors["running_mean"], tensors["running_var"]
    assert mean is not None and variance is not None
    scale = torch.rsqrt(variance + argument(norm, "eps"))
    if tensors["weight"] is not None:
        scale = scale * tensors["weight"]
    shift = -mean * scale
    if tensors["bias"] is not None:
        shift = shift + tensors["bias"]
    return (scale, shift) if bool(scale.isfinite().all() & shift.isfinite().all()) else None
