"""SmoothQuant: move the outlier channels of a linear's input into its weight, where each output has a scale of its own.

    (X S^-1) (S W^T) = X W^T,    s_j = c max|X_j|^a / max|W_j|^(1 - a)    or    s_j = max(1, max|X_j| / t)

X S^-1 costs nothing: the op that makes X (a norm, a multiplication by a constant, another layer) makes it scaled.
(Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", eq. 3 and
4; with the strength a searched for each group of linears, as no one value suits all of them. The second form touches
only the channels above a threshold t: where one channel alone stands out, as behind the gelu of a BERT, the first form
spoils the weights of the others.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxopt.data import calibration_inputs
from fxopt.graph.memory import return_free_memory
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument, constant
from fxopt.passes.cleanup.layers import (
    LAYERS,
    Layer,
    layer_at,
    like,
    replace_tensor,
    scale_inputs,
    scale_outputs,
    set_arguments,
    write,
)
from fxopt.passes.quantize.channel_paths import Channels, Reader, owns_tensors, readers
from fxopt.passes.quantize.correct_bias import SAMPLES
from fxopt.passes.quantize.smoothing import Activations, best_scale, watch

aten = torch.ops.aten
LINEAR = aten.linear.default
# The share of the squared error that may be left: less can be had by fitting the few rows, and time must pay.
WORTH_IT, WORTH_A_MULTIPLICATION = 0.95, 0.75
# The arguments of each op that are one number a channel of the last dimension, and scale its result.
NORMS: dict[Any, tuple[str, ...]] = {
    aten.layer_norm.default: ("weight", "bias"),
    aten.rms_norm.default: ("weight",),
}


@dataclass(frozen=True)
class SmoothQuant:
    """Smooth the inputs of linears for quantization with one scale a tensor, before Quantize or QuantizeDynamic.

    - `data`: any iterable of items like the example inputs; read once, streamed. The ranges of channels are those of
      all items; rows of the first `samples` samples, at most 256 for each value, are kept for the search.
    - `dynamic`: whether the inputs will be quantized with the range of each item (QuantizeDynamic) or with one for all.
    - `multiply`: whether inputs that nothing can scale for free may cost a multiplication of each element.
    - `known`: where the scales found are kept, to smooth the same Program again without another search.

    Smoothed, group by group of all the linears that read one value, also behind ops that keep channels apart (PATHS):
    1. layer_norm or rms_norm with a weight -> linears: the scale goes into the weight and bias of the norm.
    2. a multiplication by a constant for each channel -> linears: into the constant.
    3. a layer -> linears, such as the up projection of a gated MLP or the values of attention: into its outputs.
    Left alone:
    4. A value that anything else reads (a norm that a residual addition reads too), and one behind an op that bends the
       scale (gelu). With `multiply`, such inputs of linears are multiplied by a constant at run time.
    5. Linears that share a tensor with others.
    6. Groups whose outputs get no nearer to the float ones with any scale: by a twentieth of the squared error, by
       a quarter for a multiplication at run time.

    The scale of a group is the one with the least squared error of the group's outputs, each row relative to its own
    power, inputs in uint8 and weights in int8 per channel: of strengths a = 0.2, 0.4 ... 1, and of thresholds t = 1/8,
    1/2, 2 and 8 times the median channel. Scaling is float64, rounded once for each tensor: the Program computes what
    it did, as closely as two runs with differently ordered sums. Raises DataError for data that is empty, does not fit,
    or holds NaN or infinity.
    """

    data: Iterable[Any] = field(repr=False)
    samples: int = SAMPLES
    dynamic: bool = False
    multiply: bool = False
    known: dict[str, Tensor | None] | None = field(default=None, repr=False, compare=False)

    def __call__(self, program: Program) -> Program:
        """Return the smoothed Program, or `program` itself if it has no group to smooth."""
        prepared, added = _with_multiplications(program) if self.multiply else (program, frozenset[str]())
        groups = find_groups(prepared)
        if not groups:
            return program
        sources = {reader.layer.source for group in groups for reader in group.readers}
        scales = self.known if self.known is not None else {}
        if not scales:
            seen = watch(prepared, calibration_inputs(self.data, prepared), sources, self.samples)
            for group in groups:
                worth_it = WORTH_A_MULTIPLICATION if group.maker.name in added else WORTH_IT
                scales[group.maker.name] = _best_scale(group, seen, self.dynamic, worth_it)
                return_free_memory()  # left alone, the pieces that weights were scaled in take as much as all weights
        edit = Edit(prepared, by=self)
        for group in groups:
            scale = scales[group.maker.name]
            if scale is not None:
                _smooth(edit, group, scale)
                return_free_memory()
            elif group.maker.name in added:
                product = edit.copies[group.maker]
                edit.replace(product, product.all_input_nodes[0])
        edit.note(_describe([scale is not None for scale in scales.values()]))
        return edit.finish()


@dataclass(frozen=True)
class Group:
    """Linears whose inputs can be scaled in the op that makes them."""

    maker: fx.Node
    readers: tuple[Reader, ...]


def find_groups(program: Program) -> tuple[Group, ...]:
    """Find the groups of linears, in graph order; a linear is in the group of the nearest maker before it."""
    groups: list[Group] = []
    taken: set[fx.Node] = set()
    for node in reversed(program.graph.nodes):
        channels = _channels(program.module, node)
        found = readers(program.module, node, channels) if channels is not None else ()
        linears = {reader.layer.node for reader in found}
        if linears and linears.isdisjoint(taken) and all(linear.target is LINEAR for linear in linears):
            groups.append(Group(node, found))
            taken |= linears
    return tuple(reversed(groups))


def _channels(module: nn.Module, node: fx.Node) -> Channels | None:
    """Return where the channels are that a node can scale at no cost; None if it cannot."""
    if node.target in LAYERS:
        layer = layer_at(module, node)
        return Channels((layer.channel_dim,)) if layer is not None and owns_tensors(layer) else None
    if node.target in NORMS:
        tensors = [argument(node, name) for name in NORMS[node.target]]
        known = all(tensor is None or constant(module, tensor) is not None for tensor in tensors)
        scalable = known and tensors[0] is not None and len(argument(node, "normalized_shape")) == 1
        return Channels((node.meta["val"].ndim - 1,)) if scalable else None
    return Channels((node.meta["val"].ndim - 1,)) if _vector(module, node) is not None else None


def _vector(module: nn.Module, node: fx.Node) -> fx.Node | None:
    """Return the constant of a multiplication by one number for each channel of the last dimension."""
    if node.target is not aten.mul.Tensor:
        return None
    for operand, other in (node.args[:2], node.args[1::-1]):
        value = constant(module, operand)
        if value is not None and constant(module, other) is None and value.is_floating_point() and value.ndim:
            whole = value.numel() == value.shape[-1] == node.meta["val"].shape[-1]
            return operand if whole and isinstance(operand, fx.Node) else None
    return None


def _with_multiplications(program: Program) -> tuple[Program, frozenset[str]]:
    """Multiply the inputs of linears that are in no group, so far by one; returns the names of the products too."""
    grouped = {reader.layer.node for group in find_groups(program) for reader in group.readers}
    inputs: defaultdict[fx.Node, list[Layer]] = defaultdict(list)
    for node in program.graph.find_nodes(op="call_function", target=LINEAR):
        layer = layer_at(program.module, node)
        if layer is not None and node not in grouped and owns_tensors(layer) and layer.source.op != "get_attr":
            inputs[layer.source].append(layer)
    edit, names = Edit(program, by=None), set()
    for source, layers in inputs.items():
        value, first = edit.copies[source], edit.copies[layers[0].node]
        ones = torch.ones(layers[0].inputs, dtype=layers[0].weight.dtype)
        vector = edit.add_constant(f"{source.name}_smoothing", ones, before=first)
        product = edit.call(aten.mul.Tensor, value, vector, before=first, name=f"{source.name}_smooth")
        names.add(product.name)
        for layer in layers:
            edit.copies[layer.node].replace_input_with(value, product)
    return edit.finish(), frozenset(names)


def _best_scale(group: Group, seen: Mapping[fx.Node, Activations], dynamic: bool, worth_it: float) -> Tensor | None:
    """Return the scale that a group is best smoothed with; None if it is better left as it is."""
    found = [(reader, seen[reader.layer.source]) for reader in group.readers if reader.layer.source in seen]
    if len(found) < len(group.readers):
        return None  # no item had an element of it
    return best_scale(found, dynamic, worth_it)


def _smooth(edit: Edit, group: Group, scale: Tensor) -> None:
    """Divide what a group's linears read by a scale of the channels, and multiply their weights by it."""
    _scale_maker(edit, edit.copies[group.maker], 1 / scale)
    for reader in group.readers:
        layer = layer_at(edit.module, edit.copies[reader.layer.node])
        assert layer is not None
        write(edit, layer, *scale_inputs(layer, reader.spread(scale), torch.zeros(())))


def _scale_maker(edit: Edit, maker: fx.Node, scale: Tensor) -> None:
    """Let the op that makes a value scale its channels."""
    layer = layer_at(edit.module, maker)
    if layer is not None:
        weight, bias = scale_outputs(layer, scale, torch.zeros((), dtype=torch.float64))
        write(edit, layer, weight, None if layer.bias is None else bias)
    elif maker.target in NORMS:
        tensors = {name: argument(maker, name) for name in NORMS[maker.target]}
        changes = {name: _scaled(edit, maker, node, scale) for name, node in tensors.items() if node is not None}
        set_arguments(maker, **changes)
    else:
        vector = _vector(edit.module, maker)
        assert vector is not None
        scaled = _scaled(edit, maker, vector, scale)
        maker.args = tuple(scaled if operand is vector else operand for operand in maker.args)


def _scaled(edit: Edit, user: fx.Node, node: fx.Node, scale: Tensor) -> fx.Node:
    old = edit.constant(node)
    assert old is not None
    return replace_tensor(edit, user, node, like(old, old.detach().double() * scale))


def _describe(smoothed: Sequence[bool]) -> str:
    if not any(smoothed):
        return f"SmoothQuant makes none of {len(smoothed)} groups of linears more exact; it is left out."
    return f"SmoothQuant in {sum(smoothed)} of {len(smoothed)} groups of linears."
