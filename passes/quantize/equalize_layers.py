"""EqualizeLayers: give the channels between two layers the same range in the weights on either side.

    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1),    s_i = c sqrt(r1_i / r2_i)

for a positively homogeneous f; r1_i is the largest magnitude in row i of [W1, b1], r2_i that in column i of W2. The
geometric mean of the s_i is made 1: a factor common to all channels makes no difference to quantization.
(Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1, eq. 11.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.passes.cleanup.layers import LAYERS, Layer, layer_at, scale_inputs, scale_outputs, write
from fxopt.passes.quantize.channel_paths import Channels, Reader, balance, owns_tensors, readers

SETTLED = 0.01  # a change of the scales by less than this share makes no difference to 8-bit weights


@dataclass(frozen=True)
class EqualizeLayers:
    """Equalize the channel ranges of layers with nothing but positively homogeneous ops between them. Needs no data.

    - `iterations`: how often at most the chain of pairs is gone through; each pair moves its neighbours' ranges. It
      ends when no scale changes by 1 % any more.

    Equalized:
    1. conv, conv_transpose or linear -> layer: behind relu, leaky_relu, prelu, dropout, pools, zero padding, reshapes,
       attention (as its values) and the like (PATHS); also where all of several readers are such layers.
    2. conv -> depthwise -> conv: all three end with the same range a channel, up to one factor for each layer.
    3. conv -> flatten -> linear: a channel is a run of the linear's inputs.
    Left alone:
    4. Values that anything else reads (a residual addition, the output), and ops that bend the scale: sigmoid, gelu,
       and relu6 and hardtanh, whose clipping would differ from channel to channel.
    5. Channels with weights of zero on either side.
    6. Layers that share a tensor with others.

    It sees weights only, while the ranges of activations count as much, and with a scale for each output channel of a
    weight nearly alone: keep it only where the outputs of the quantized Program get more exact.

    A bias counts as one more weight, lest a channel with small weights and a large bias be blown up. Weights keep
    dtype and names. All scaling is float64, rounded once for each tensor: the outputs agree with those before as
    those of two runs with differently ordered sums would.
    """

    iterations: int = 20

    def __call__(self, program: Program) -> Program:
        """Return the equalized Program, or `program` itself if there is nothing to equalize."""
        ranges = _equalized(program, self.iterations)
        if not ranges:
            return program
        edit = Edit(program, by=self)
        for node, found in ranges.items():
            layer = layer_at(edit.module, edit.copies[node])
            assert layer is not None
            _rescale(edit, layer, found)
        return edit.finish()


def equalizing_scales(program: Program, iterations: int = 20) -> dict[str, Tensor]:
    """Return the factor of each output channel by which EqualizeLayers changes a layer, float64, by node name."""
    return {node.name: found.output_scale for node, found in _equalized(program, iterations).items()}


def _equalized(program: Program, iterations: int) -> dict[fx.Node, _Ranges]:
    """Return the ranges and scales of all layers after equalization; nothing if none needs it."""
    pairs = find_pairs(program)
    ranges = {layer.node: _Ranges(layer) for pair in pairs for layer in pair.layers}
    return ranges if _equalize(pairs, ranges, iterations) else {}


@dataclass(frozen=True)
class Pair:
    """A layer, and the layers that alone read its outputs."""

    first: Layer
    readers: tuple[Reader, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers of the pair."""
        return (self.first, *(reader.layer for reader in self.readers))


def find_pairs(program: Program) -> tuple[Pair, ...]:
    """Find the layers whose output channels can be rescaled in the layers that read them, in graph order."""
    pairs = []
    for node in program.graph.nodes:
        layer = layer_at(program.module, node) if node.target in LAYERS else None
        if layer is not None and owns_tensors(layer):
            pairs.append(Pair(layer, readers(program.module, node, Channels((layer.channel_dim,)))))
    return tuple(pair for pair in pairs if pair.readers)


class _Ranges:
    """The magnitudes of a layer's weights as they are being scaled, and the scales so far."""

    def __init__(self, layer: Layer) -> None:
        weight = layer.weight.detach().abs().reshape(layer.groups, -1, *layer.weight.shape[1:])
        weight = weight.flatten(3).amax(3) if weight.ndim > 3 else weight
        # [groups, outputs, inputs]; float32 is enough for a range, and the scales are exact all the same
        self.weight = (weight.mT if layer.kind.transposed else weight).to(torch.float32, copy=True)
        self.bias = (
            torch.zeros(layer.outputs, dtype=torch.float64)
            if layer.bias is None
            else layer.bias.detach().double().abs()
        )
        self.output_scale = torch.ones(layer.outputs, dtype=torch.float64)
        self.input_scale = torch.ones(layer.inputs, dtype=torch.float64)

    def outputs(self) -> Tensor:
        """Return the range of each output channel, bias included; zero if its weights are all zero."""
        rows = self.weight.amax(2).flatten().double()
        return torch.where(rows > 0, torch.maximum(rows, self.bias), 0.0)

    def inputs(self) -> Tensor:
        """Return the range of each input channel."""
        return self.weight.amax(1).flatten().double()

    def scale_outputs(self, scale: Tensor) -> None:
        """Scale the output channels."""
        self.weight *= scale.reshape(len(self.weight), -1, 1).float()
        self.bias *= scale
        self.output_scale *= scale

    def scale_inputs(self, scale: Tensor) -> None:
        """Scale the input channels."""
        self.weight *= scale.reshape(len(self.weight), 1, -1).float()
        self.input_scale *= scale


def _equalize(pairs: Sequence[Pair], ranges: Mapping[fx.Node, _Ranges], iterations: int) -> bool:
    """Equalize pair after pair until the scales settle; says whether any needed it."""
    for iteration in range(iterations):
        steps = [_equalize_pair(ranges[pair.first.node], pair.readers, ranges) for pair in pairs]
        if max(steps, default=0.0) < SETTLED:
            return iteration > 0
    return iterations > 0 and bool(pairs)


def _equalize_pair(first: _Ranges, readers: Sequence[Reader], ranges: Mapping[fx.Node, _Ranges]) -> float:
    """Equalize the channels between a layer and its readers; returns the largest change, |log s|."""
    before = first.outputs()
    after = torch.stack([reader.gather(ranges[reader.layer.node].inputs()) for reader in readers]).amax(0)
    scale = balance(before.sqrt(), after.sqrt())
    first.scale_outputs(1 / scale)
    for reader in readers:
        ranges[reader.layer.node].scale_inputs(reader.spread(scale))
    return float(scale.log().abs().max())


def _rescale(edit: Edit, layer: Layer, ranges: _Ranges) -> None:
    nothing = torch.zeros((), dtype=torch.float64)
    exact = replace(layer, weight=layer.weight.detach().double())  # rounded once, when it is written
    weight, bias = scale_outputs(exact, ranges.output_scale, nothing)
    weight, _ = scale_inputs(replace(layer, weight=weight), ranges.input_scale, nothing)
    write(edit, layer, weight, None if layer.bias is None else bias)
