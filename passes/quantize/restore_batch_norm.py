"""RestoreBatchNorm: batch norms that the cleanup folded come back for quantization-aware training.

    conv(x, q(W f), b')  ->  batch_norm(conv(x, q(W · f)) / f + b),  f = gamma / sqrt(running variance + eps)

q is the fake quantization of the folded weight. In inference both compute the same; in training the batch norm has the
statistics of the batch, while weights are rounded as they are when it is folded again.

Sources: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", section 3.2; Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference: A
whitepaper", section 3.2.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import PassError
from fxopt.graph.batch_norm_factor import batch_norm_factor
from fxopt.graph.learned import learned_fake_quantize
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument, argument_names, constant, set_attribute
from fxopt.passes.cleanup.fold_batch_norm import Match, match_norm
from fxopt.passes.cleanup.layers import Layer, scale_outputs, set_arguments

aten = torch.ops.aten
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
SHOWN = 8
TOLERANCE = 1e-5  # of the largest folded weight; folding rounds once


@dataclass(frozen=True)
class RestoreBatchNorm:
    """Put the batch norms of `source`, the Program before the cleanup, behind the quantized layers they went into.

    - `source`: the captured Program that the calibrated one was made of, with the same weights.

    1. Weights, biases and norms are those of `source`, under the names that they have there, and shared with it.
       The scales of the calibrated Program stay: they are of the folded weights, and so is the rounding.
    2. Only norms behind a layer whose weight is fake-quantized come back. Those that went into float layers or into
       the layer after them stay folded, and so do those whose layer has other weights now than folding gives
       (equalization, AdaRound); a note names them.
    3. A gamma of 0, or close to it, does no harm.

    Then train; FreezeBatchNorm() after a while makes training and inference the same; FoldRestoredBatchNorm() gives the
    form of the calibrated Program back. LearnScales may run before or after this pass; FixScales runs after the fold.

    Raises PassError if no batch norm of `source` was folded into a quantized layer of the Program.
    """

    source: Program = field(repr=False)

    def __call__(self, program: Program) -> Program:
        """Return the Program with batch norms, in the mode (training or inference) of inference."""
        source = self.source.eval()
        edit = Edit(program, by=self)
        nodes = {node.name: node for node in edit.graph.nodes}
        left = []
        count = 0
        for norm in source.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
            match = match_norm(source.module, norm)
            if match is None or norm.name in nodes:
                continue
            layer = _folded_layer(edit, nodes, match, norm)
            if layer is None:
                left.append(norm.name)
            else:
                _restore(edit, layer, match.layer, source, norm)
                count += 1
        if not count:
            raise PassError(
                "RestoreBatchNorm finds no batch norm of its source that was folded into a quantized layer of this "
                "Program. Give it the captured Program that this one was made of, and calibrate before."
            )
        if left:
            more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
            edit.note(f"Batch norms that stay folded: {', '.join(left[:SHOWN])}{more}.")
        return edit.finish()


def _folded_layer(edit: Edit, nodes: dict[str, fx.Node], match: Match, norm: fx.Node) -> fx.Node | None:
    """Return the quantized layer that a norm of the source was folded into, if it has the weights of that fold."""
    node = nodes.get(match.layer.node.name)
    if not match.before or norm.args[0] is not match.layer.node or node is None:
        return None
    if node.target is not match.layer.node.target or match.layer.kind.transposed:
        return None
    quantizer = argument(node, "weight")
    if quantizer.target not in (fake_quantize, learned_fake_quantize) or len(quantizer.users) > 1:
        return None
    source = argument(quantizer, "x")
    folded, bias = edit.constant(source), edit.constant(argument(node, "bias"))
    if folded is None or bias is None or len(source.users) > 1:
        return None
    weight, expected = scale_outputs(match.layer, match.scale, match.shift)
    return node if _is_close(folded, weight) and _is_close(bias, expected) else None


def _is_close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    difference = (found.detach().double() - expected).abs().amax() if found.numel() else torch.zeros(())
    return bool(difference <= TOLERANCE * expected.abs().amax().clamp(min=1e-30))


def _restore(edit: Edit, node: fx.Node, layer: Layer, source: Program, norm: fx.Node) -> None:
    quantizer = argument(node, "weight")
    stored, bias = argument(quantizer, "x"), argument(node, "bias")
    set_attribute(edit.module, str(stored.target), layer.weight)
    wide = [1] * layer.kind.spatial
    tensors = {name: _read(edit, source, argument(norm, name), quantizer) for name in NORM_TENSORS}
    factor = edit.call(
        batch_norm_factor, tensors["weight"], tensors["running_var"], argument(norm, "eps"),
        before=quantizer, name=f"{norm.name}_factor",
    )  # fmt: skip
    rows = edit.call(aten.reshape.default, factor, [-1, 1, *wide], before=quantizer)
    quantizer.update_arg(0, edit.call(aten.mul.Tensor, stored, rows, before=quantizer, name=f"{stored.name}_scaled"))
    after = node.next
    columns = edit.call(aten.reshape.default, factor, [-1, *wide], before=after)
    value = first = edit.call(aten.div.Tensor, node, columns, before=after, name=f"{node.name}_unscaled")
    if layer.bias is not None:
        set_attribute(edit.module, str(bias.target), layer.bias)
        shift = edit.call(aten.reshape.default, bias, [-1, *wide], before=after)
        value = edit.call(aten.add.Tensor, value, shift, before=after, name=f"{node.name}_biased")
    set_arguments(node, bias=None)
    values = [tensors.get(name, argument(norm, name)) for name in argument_names(norm)]
    restored = edit.call(aten.batch_norm.default, value, *values[1:], before=after, name=norm.name)
    node.replace_all_uses_with(restored, delete_user_cb=lambda user: user is not first)


def _read(edit: Edit, source: Program, node: Any, before: fx.Node) -> fx.Node | None:
    """Return a node that reads a tensor of the source, under its name there."""
    tensor = constant(source.module, node)
    return None if tensor is None else edit.add_constant(str(node.target), tensor, before=before)
