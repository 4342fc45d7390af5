"""Multiply masks into their weights.

y = (W * mask) x  ->  y = W' x, W' = W * mask
"""

from __future__ import annotations

from dataclasses import dataclass

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, constant, same_kind
from fxopt.passes.cleanup.layers import replace_tensor
from fxopt.passes.prune.weights import masked


@dataclass(frozen=True)
class FoldMasks:
    """Make ordinary weights, with zeros, of weights and masks; they keep their names.

    The result computes the same, bit for bit. A note counts the zeros, and says what onnxruntime makes of them.
    """

    def __call__(self, program: Program) -> Program:
        """Return the Program without masks, or `program` itself if it has none."""
        pairs = [(node, pair) for node in program.graph.nodes if (pair := masked(program, node)) is not None]
        if not pairs:
            return program
        edit = Edit(program, by=self)
        zeros = count = 0
        for node, (weight, mask) in pairs:
            old, stays = constant(program.module, weight), constant(program.module, mask)
            assert old is not None and stays is not None
            value, copy = old.detach() * stays, edit.copies[node]
            zeros, count = zeros + int((value == 0).sum()), count + value.numel()
            edit.replace(copy, replace_tensor(edit, copy, edit.copies[weight], same_kind(old, value)))
        edit.note(
            f"{zeros:,} of {count:,} weights in {len(pairs)} masked tensors are zero ({zeros / count:.1%}). "
            "onnxruntime multiplies zeros like any other number: the model is not faster for them, and its file is "
            "smaller only once it is compressed. RemoveChannels makes both smaller."
        )
        return edit.finish()
