"""RepairWeights: make up for removed channels with the weights that are left, by least squares and without training.

    min over W, b:  Σ ‖y − W x − b‖² + λ ‖W − W₀‖²

y is what the original computes at the positions that are left, x what the layer reads behind the repaired layers
before it. (He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3; here for every
layer and norm whose input has changed, with the ridge towards the present weights W₀ chosen on other samples.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fxopt.data import samples_of, split_items
from fxopt.graph.interpret import relative_noise
from fxopt.graph.memory import release_memory
from fxopt.graph.padding import run_without_padding
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.passes.prune.ancestor import counterparts
from fxopt.passes.prune.linear_maps import write_map
from fxopt.passes.prune.repaired import JUDGED, is_judged, repaired_weights, targets_of

SAMPLES, AT_ONCE = 512, 32


@dataclass(frozen=True)
class RepairWeights:
    """Fit the weights of a pruned Program to what the original computed, layer after layer.

    - `original`: the Program that RemoveChannels got.
    - `data`: any iterable of items like the example inputs, no labels. `samples`: how many samples of it are used;
      they are in memory together, with the values that the layer at hand needs.

    1. Linears, convolutions (plain, grouped, depthwise, transposed) and norms with weights are fitted where what they
       read has changed; a layer without a bias gets one. Others stay as they are.
    2. The layer that ends a branch into a sum is fitted to what the whole sum was, so that it also makes up for the
       other branch.
    3. A quarter of the samples is not fitted to (of the positions, if there is but one sample). On it every layer is
       fitted better than before, or left alone, and the whole is kept only if it brings the outputs nearer to the
       original's.

    Raises PassError if the Program was not made of `original` by removals, and DataError for data that is empty, does
    not fit, or holds NaN or infinity.
    """

    original: Program = field(repr=False)
    data: Iterable[Any] = field(repr=False)
    samples: int = SAMPLES

    def __call__(self, program: Program) -> Program:
        """Return the repaired Program."""
        running, original = program.eval(), self.original.eval()
        targets, without = targets_of(running, counterparts(original, running))
        items = _apart(samples_of(self.data, program, self.samples, AT_ONCE), program)
        if not targets and not without:
            return program
        weights = repaired_weights(running, original, targets, items)
        release_memory()
        judged = [item for number, item in enumerate(items) if is_judged(number, len(items))]
        notes = [f"Not repaired: {name}: {reason}." for name, reason in without.items()]
        repaired = self._with(program, weights)
        if not weights or _error(original, repaired, judged) < _error(original, program, judged):
            return repaired.with_note(*notes)
        notes.append("Fitting weights does not bring the outputs nearer to the original ones; they stay as they were.")
        return self._with(program, {}).with_note(*notes)

    def _with(self, program: Program, weights: Mapping[str, tuple[Tensor, Tensor]]) -> Program:
        edit = Edit(program, by=self)
        nodes = {node.name: node for node in edit.graph.nodes}
        for name, (weight, bias) in weights.items():
            write_map(edit, nodes[name], weight, bias)
        return edit.finish()


def _apart(items: list[tuple[Tensor, ...]], program: Program) -> list[tuple[Tensor, ...]]:
    """Split few items, where their batch can be split, so that there are some to judge by."""
    if len(items) >= JUDGED:
        return items
    samples = sum(len(item[0]) if item and item[0].ndim else 1 for item in items)
    return split_items(items, program, max(1, samples // (2 * JUDGED)))


def _error(original: Program, program: Program, items: Sequence[tuple[Tensor, ...]]) -> float:
    """Return the power of the outputs' difference over that of the original's."""
    exact, found = (run_without_padding(which.eval(), items) for which in (original, program))
    return relative_noise(exact, found)
