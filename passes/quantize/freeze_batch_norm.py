"""FreezeBatchNorm: batch norms keep their running statistics, and use them in training too."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fxopt.graph.program import Program, is_frozen
from fxopt.graph.rewrite import Edit

aten = torch.ops.aten


@dataclass(frozen=True)
class FreezeBatchNorm:
    """Freeze the statistics of all batch norms that have running ones; gamma and beta are trained on.

    In quantization-aware training it follows some epochs with the statistics of the batches, when these have settled,
    so that training ends with what inference computes: Krishnamoorthi 2018, "Quantizing deep convolutional networks for
    efficient inference: A whitepaper", section 3.2.2. As a change under way: `Training(changes={0.5:
    FreezeBatchNorm()})`.

    A frozen batch norm is in inference mode with a momentum of 0, which Program.train() leaves alone. All that folds or
    exports batch norms takes it as any other.
    """

    def __call__(self, program: Program) -> Program:
        """Return the Program with frozen batch norms, or `program` itself if there is nothing to freeze."""
        edit = Edit(program, by=self)
        norms = [
            node for node in edit.calls(aten.batch_norm.default) if node.args[3] is not None and not is_frozen(node)
        ]
        if not norms:
            return program
        for norm in norms:
            norm.update_arg(5, False)
            norm.update_arg(6, 0.0)
        return edit.finish()
