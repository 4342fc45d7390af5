"""FoldRestoredBatchNorm: the batch norms of RestoreBatchNorm go into their layers again.

batch_norm(conv(x, q(W · f)) / f + b)  ->  conv(x, q(W f), beta + (b - running mean) f)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxopt.errors import PassError, where
from fxopt.graph.batch_norm_factor import batch_norm_factor
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, argument, set_attribute
from fxopt.passes.cleanup.fold_batch_norm import channel_scale
from fxopt.passes.cleanup.layers import LAYERS, Layer, bias_name, like, scale_outputs, set_arguments
from fxopt.passes.quantize.restored import Restored, restored_at

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldRestoredBatchNorm:
    """Fold what RestoreBatchNorm has restored: the result has the form and the names of the calibrated Program.

    Weights and biases are computed in float64 and rounded once, as FoldBatchNorm does it. In inference the result
    computes the same but for rounding errors, which move few values to the next integer. Other batch norms stay.

    Raises PassError for statistics that are not finite.
    """

    def __call__(self, program: Program) -> Program:
        """Return the Program in inference mode, or `program` itself if no batch norm was restored."""
        if not program.graph.find_nodes(op="call_function", target=batch_norm_factor):
            return program
        edit = Edit(program.eval(), by=self)
        for norm in list(edit.calls(aten.batch_norm.default)):
            restored = restored_at(norm)
            if restored is not None:
                _fold(edit, restored)
        return edit.finish()


def _fold(edit: Edit, restored: Restored) -> None:
    affine = channel_scale(edit.module, restored.norm)
    if affine is None:
        raise PassError(f"{where(restored.norm)} has statistics that are not finite. Take an earlier checkpoint.")
    node, kind = restored.layer, LAYERS[restored.layer.target]
    weight, bias = edit.constant(restored.weight), edit.constant(restored.bias)
    assert weight is not None
    groups = argument(node, "groups") if kind.spatial else 1
    folded, shift = scale_outputs(Layer(node, kind, weight, bias, groups), *affine)
    set_attribute(edit.module, str(restored.weight.target), like(weight, folded))
    restored.product.replace_all_uses_with(restored.weight)
    value = like(weight if bias is None else bias, shift)
    if restored.bias is None:
        stored = edit.add_constant(bias_name(str(restored.weight.target)), value, before=node)
    else:
        stored = restored.bias
        set_attribute(edit.module, str(stored.target), value)
    set_arguments(node, bias=stored)
    restored.norm.replace_all_uses_with(node)
