"""Put masks on weights: what they take is zero, and stays zero while the Program is trained.

y = W x  ->  y = (W * mask) x
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, set_attribute
from fxopt.passes.prune.names import check_names, is_below
from fxopt.passes.prune.patterns import Magnitude, Pattern
from fxopt.passes.prune.scores import L1, L2, Score, named_score
from fxopt.passes.prune.weight_scores import weight_scores
from fxopt.passes.prune.weights import Weight, masked, weights_of

aten = torch.ops.aten
SHOWN = 8


@dataclass(frozen=True)
class MaskWeights:
    """Mask the weights that products read directly (see WEIGHT_RULES), by a pattern and a score.

    - `pattern`: Magnitude(threshold), Sparsity(share), NofM(n, m) or Blocks(shape, sparsity).
    - `score`: what matters, an object with a row in WEIGHT_SCORES: L2(), L1(), Taylor(data), HessianDiagonal(data),
      ActivationTimesWeight(data), Lamp() (for shares of the model), Random(seed); or the name "l2" or "l1". These two
      differ in blocks only.
    - `keep`: names of tensors or modules that get no mask ("head", "layer1.0.weight").

    1. A mask is a bool buffer beside its weight, and all that read the weight reads the product: masked weights get no
       gradient. Biases, norms and tables that are only looked up get none; a tied weight has one mask.
    2. A weight that has a mask keeps it: more goes, nothing comes back. So masks grow when the pass runs again with
       a higher share (see Gradually).
    3. What a pattern leaves whole, because a weight is too small for it, is named in a note.

    FoldMasks() makes ordinary weights of it, and so does the cleanup: run that before, where training is to follow, and
    FoldMasks() before RemoveChannels and Quantize, which look at what is stored.
    Raises PassError for names that do not exist and scores that say nothing of weights, DataError for data that does
    not fit.
    """

    pattern: Pattern
    score: Score | Literal["l2", "l1"] = "l2"
    keep: tuple[str, ...] = ()

    def __call__(self, program: Program) -> Program:
        """Return the masked Program, or `program` itself if nothing more goes. Weights are shared."""
        score = named_score(self.score)
        if isinstance(self.pattern, Magnitude) and not isinstance(score, (L1, L2)):
            raise PassError(f"Magnitude compares |w| with its threshold; score={score!r} goes with Sparsity.")
        check_names(program, "keep", self.keep)
        found = weights_of(program)
        weights = [weight for weight in found if not any(is_below(weight.name, path) for path in self.keep)]
        if not weights:
            return program
        pairs = zip(weights, self.pattern(weights, weight_scores(program, weights, score)), strict=True)
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
