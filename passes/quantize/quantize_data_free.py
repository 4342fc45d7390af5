"""QuantizeDataFree: static int8 quantization without data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from torch import fx

from fxopt.graph.program import Program
from fxopt.graph.rewrite import GETITEM
from fxopt.passes.quantize.calibrate import Calibrate, KnownRanges
from fxopt.passes.quantize.concatenations import keep_apart
from fxopt.passes.quantize.convert import Convert
from fxopt.passes.quantize.correct_bias_by_moments import CorrectBiasByMoments
from fxopt.passes.quantize.insert import InsertObservers
from fxopt.passes.quantize.moments import Moments
from fxopt.passes.quantize.placement import Placement, place, reasons_of
from fxopt.passes.quantize.range_search import Range
from fxopt.passes.quantize.rules import clip_bounds
from fxopt.passes.quantize.scheme import Scheme
from fxopt.target import Target, find_target

NOTE = "Ranges come from batch-norm statistics, not from data: check the accuracy, or give calibration data."


@dataclass(frozen=True)
class QuantizeDataFree:
    """Quantize to int8 with static ranges that follow from batch-norm statistics.

    - `moments`: of the values of the float Program, by node name, see moments_of(). A range goes from the
      smallest to the largest end of a channel: WIDEST deviations from the mean, or where a clip is.
    - `target`: the name of a row of fxopt.target.TARGETS, or "auto" for this machine.
    - `keep_float`: names of nodes that stay float, or {name: reason}.
    - `correct_bias`: whether to take out of the biases what rounding of weights adds, see CorrectBiasByMoments.
    - `scheme`: bits, symmetry, form of the scales, clips of weights.

    Nodes that read or make a value with unknown moments stay float. What stays float and why is in the notes of the
    result. Raises TargetError or PassError.
    """

    moments: Mapping[str, Moments] = field(repr=False)
    target: str = "x86"
    keep_float: Mapping[str, str] | Collection[str] = ()
    correct_bias: bool = True
    scheme: Scheme = field(default_factory=Scheme)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))

    def __call__(self, program: Program) -> Program:
        """Return the quantized Program."""
        target = find_target(self.target)
        placement, kept = self._placed(program, target)
        known = KnownRanges(self.ranges(placement), self._extents())
        observed = InsertObservers(self.target, kept)(program)
        result = Calibrate((), "minmax", self.target, self.scheme, known)(observed)
        if self.correct_bias:
            result = CorrectBiasByMoments(self.moments)(result)
        result = Convert(self.target)(result)
        return replace(result, history=(*program.history, repr(self)), notes=(*result.notes, NOTE))

    def placement(self, program: Program) -> Placement:
        """Return what becomes integer."""
        return self._placed(program, find_target(self.target))[0]

    def ranges(self, placement: Placement) -> dict[frozenset[str], Range]:
        """Return the range of each set of values that share a scale, with zero included."""
        groups, extents = defaultdict(set), self._extents()
        for point in placement.points.values():
            groups[point.group].add(point.value)
        return {frozenset(names): _union(names, extents) for names in groups.values()}

    def _extents(self) -> dict[str, Range]:
        return {name: (float(found.low.min()), float(found.high.max())) for name, found in self.moments.items()}

    def _placed(self, program: Program, target: Target) -> tuple[Placement, dict[str, str]]:
        """Place until no value with unknown moments is quantized."""
        kept, extents = dict(reasons_of(self.keep_float)), self._extents()
        nodes = {node.name: node for node in program.graph.nodes}
        while True:
            kept = keep_apart(program, target, kept, extents)
            placement = place(program, target, kept)
            unknown = [name for name in placement.points if name not in extents]
            if not unknown:
                return placement, kept
            for name in unknown:
                reason = f"no batch norm tells the range of {name}"
                kept |= dict.fromkeys(_around(nodes[name]) & placement.integer.keys(), reason)


def _around(node: fx.Node) -> set[str]:
    """Return the names of a value, of what reads it, and of what makes it before clips."""
    found = {node.name, *(user.name for user in node.users)}
    while clip_bounds(node) is not None or node.target is GETITEM:
        node = node.all_input_nodes[0]
        found.add(node.name)
    return found


def _union(names: Collection[str], extents: Mapping[str, Range]) -> Range:
    """Return the range of several values, with zero included."""
    ends = [extents[name] for name in names]
    return min(0.0, *(low for low, _ in ends)), max(0.0, *(high for _, high in ends))
