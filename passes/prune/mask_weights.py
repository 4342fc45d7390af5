"""Put masks on weights: what they take is zero, and stays zero while the Program is trained.

y = W x  ->  y = (W * mask) x
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, set_attribute
from fxopt.passes.prune.gradients import Loss
from fxopt.passes.prune.patterns import Magnitude, Pattern
from fxopt.passes.prune.weight_scores import ScoreOptions, weight_scores
from fxopt.passes.prune.weights import Weight, masked, weights_of, without_kept

aten = torch.ops.aten
SHOWN = 8


@dataclass(frozen=True)
class MaskWeights:
    """Mask the weights that products read directly (see WEIGHT_RULES), by a pattern and a score.

    - `pattern`: Magnitude(threshold), Sparsity(share), NofM(n, m) or Blocks(shape, sparsity).
    - `score`: "magnitude"; "taylor" and "wanda", which need `data` (any iterable of items like the example inputs);
      "random", by `seed`. `loss(outputs, batch)` is for "taylor"; without it, no labels are needed.
    - `keep`: names of tensors or modules that get no mask ("head", "layer1.0.weight").

    1. A mask is a bool buffer beside its weight, and all that read the weight reads the product: masked weights get no
       gradient. Biases, norms and tables that are only looked up get none; a tied weight has one mask.
    2. A weight that has a mask keeps it: more goes, nothing comes back. So masks grow when the pass runs again with
       a higher share (see Gradually).
    3. What a pattern leaves whole, because a weight is too small for it, is named in a note.

    FoldMasks() makes ordinary weights of it, and so does the cleanup: run that before, where training is to follow, and
    FoldMasks() before RemoveChannels and Quantize, which look at what is stored.
    Raises PassError for names and scores that do not exist, and where data is missing.
    """

    pattern: Pattern
    score: Literal["magnitude", "taylor", "wanda", "random"] = "magnitude"
    keep: tuple[str, ...] = ()
    data: Iterable[Any] | None = field(default=None, repr=False, compare=False)
    loss: Loss | None = field(default=None, repr=False, compare=False)
    seed: int = 0

    def __call__(self, program: Program) -> Program:
        """Return the masked Program, or `program` itself if nothing more goes. Weights are shared."""
        if isinstance(self.pattern, Magnitude) and self.score != "magnitude":
            raise PassError(f"Magnitude compares |w| with its threshold; score='{self.score}' goes with Sparsity.")
        names = [str(node.target) for node in program.graph.find_nodes(op="get_attr")]
        weights = without_kept(weights_of(program), self.keep, names)
        if not weights:
            return program
        scores = weight_scores(program, weights, self.score, ScoreOptions(self.data, self.loss, self.seed))
        pairs = zip(weights, self.pattern(weights, scores), strict=True)
        masks = [weight.mask & stays for weight, stays in pairs]
        if all(torch.equal(weight.mask, mask) for weight, mask in zip(weights, masks, strict=True)):
            return program
        edit = Edit(program, by=self)
        for weight, mask in zip(weights, masks, strict=True):
            if not mask.all():
                _put(edit, weight, mask)
        _note_whole(edit, weights, masks)
        return edit.finish()


def _put(edit: Edit, weight: Weight, mask: Tensor) -> None:
    if weight.product is not None:
        pair = masked(edit.program, weight.product)
        assert pair is not None
        set_attribute(edit.module, str(pair[1].target), mask)
        return
    reads = [node for node in edit.graph.find_nodes(op="get_attr") if edit.constant(node) is weight.value]
    first = min(reads)
    stored = edit.add_constant(f"{weight.name}_mask", mask, before=first.next)
    product = edit.call(aten.mul.Tensor, first, stored, before=stored.next, name=f"{first.name}_masked")
    for node in reads:
        edit.replace(node, product)


def _note_whole(edit: Edit, weights: Sequence[Weight], masks: Sequence[Tensor]) -> None:
    whole = [weight.name for weight, mask in zip(weights, masks, strict=True) if mask.all()]
    if whole:
        more = f" and {len(whole) - SHOWN} more" if len(whole) > SHOWN else ""
        edit.note(f"Weights that no mask takes anything from: {', '.join(whole[:SHOWN])}{more}.")
