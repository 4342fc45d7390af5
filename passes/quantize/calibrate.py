"""Calibrate: the second of the three passes of static quantization. It measures ranges and fixes scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fxopt.graph.ops import fake_quantize, observe
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import Edit, argument, constant
from fxopt.passes.quantize.choose_ranges import FirstItems, choose_ranges
from fxopt.passes.quantize.clips import absorbing_levels
from fxopt.passes.quantize.joint_observers import join, share_of
from fxopt.passes.quantize.nodes import insert
from fxopt.passes.quantize.observe_data import observe_data
from fxopt.passes.quantize.observers import HistogramObserver, Observer, RangeObserver, check_observer, make_observer
from fxopt.passes.quantize.range_search import Range
from fxopt.passes.quantize.rules import QUANTIZE_RULES, Bounds, Role, clip_bounds
from fxopt.passes.quantize.scheme import Levels, Scheme
from fxopt.passes.quantize.weight_scales import largest_integer, symmetric_scales
from fxopt.target import find_target

# A bias is stored in steps of input scale × weight scale; this bound keeps it inside int32 with a bit to spare.
BIAS_MAX = 2**30


@dataclass
class KnownRanges:
    """What calibration found, by the names of float nodes.

    - `ranges`: of each set of values that share a scale. `extents`: the smallest and largest value of each node.
    """

    ranges: dict[frozenset[str], Range] = field(default_factory=dict)
    extents: dict[str, Range] = field(default_factory=dict)

    def whole(self) -> KnownRanges:
        """Return what the observer "minmax" finds on the same data."""
        ends = {names: [self.extents.get(name, (0.0, 0.0)) for name in names] for names in self.ranges}
        ranges = {
            names: (min(0.0, *(low for low, _ in pairs)), max(0.0, *(high for _, high in pairs)))
            for names, pairs in ends.items()
        }
        return KnownRanges(ranges, self.extents)


@dataclass(frozen=True)
class Calibrate:
    """Run calibration data through a Program with observers and replace each observer by `fake_quantize`.

    - `data`: any iterable of items like the example inputs (a Tensor, a tuple or a dict); read once, streamed.
    - `observer`: how the range of a value follows from the data.
      "minmax": smallest to largest value. "moving-average": exponential moving averages of each item's smallest and
      largest value (Jacob et al. 2018). The others use a histogram of 2048 bins, which a batch enters with at most
      65 536 elements a value, taken at a fixed stride, and with all of a long tail. "mse": least squared error.
      "percentile": the middle 99.99 %. "entropy": least Kullback-Leibler divergence (Migacz 2017). "auto": of mse,
      minmax, percentile and entropy, the one with the least error of the layers that read the value, see choose_ranges.
    - `target`: the target that the observers were inserted for.
    - `scheme`: bits, symmetry, form of the scales, clips of weights.
    - `processes`: "all": every process of torch.distributed, which all call this with the same data, runs its share of
      the items, and all get the same scales, those of all items; "this": this one runs all.
    - `known`: what was found before, for the same float Program, data and options; what is found now is added. With
      all ranges known, no data is run. "auto" finds its ranges anew.

    Activations get a range per tensor (scale, zero point), one for each group; weights a symmetric one, by default per
    output channel, as wide as bits and the target's kernels allow. Both are buffers: GROUP_scale, GROUP_zero_point.
    Where a clip (relu6, ...) comes before symmetric
    or power-of-two levels, they end where the clip does, so that their saturation does the same.

    Raises PassError for an observer that does not exist, DataError for data that is empty, does not fit, or holds NaN
    or infinity; TargetError.
    """

    data: Iterable[Any] = field(repr=False)
    observer: Observer = "mse"
    target: str = "x86"
    scheme: Scheme = field(default_factory=Scheme)
    known: KnownRanges | None = field(default=None, repr=False, compare=False)
    processes: Literal["this", "all"] = field(default="this", repr=False)

    def __post_init__(self) -> None:
        check_observer(self.observer)

    def __call__(self, program: Program) -> Program:
        """Return the calibrated Program."""
        weight_max = largest_integer(self.scheme, find_target(self.target))
        if not any(node.target is observe for node in program.graph.nodes):
            return Edit(program, by=self).finish()
        ranges = self._ranges(program.eval(), weight_max)
        edit = Edit(program, by=self)
        _quantize_values(edit, ranges, self.scheme)
        _quantize_weights(edit, self.scheme, weight_max)
        return edit.finish()

    def _ranges(self, program: Program, weight_max: int) -> dict[str, Range]:
        if self.observer == "auto":
            return self._chosen_ranges(program, weight_max)
        values, known = _values_by_group(program.graph), self.known or KnownRanges()
        new = {group: make_observer(self.observer) for group, names in values.items() if names not in known.ranges}
        if new:
            self._observe(program, new, known.extents)
        known.ranges |= {values[group]: observer.range(self.scheme) for group, observer in new.items()}
        return {group: known.ranges[names] for group, names in values.items()}

    def _chosen_ranges(self, program: Program, weight_max: int) -> dict[str, Range]:
        observers = {group: make_observer("auto") for group in _values_by_group(program.graph)}
        first = FirstItems()
        self._observe(program, observers, (self.known or KnownRanges()).extents, first.take)
        histograms = {group: o.histogram for group, o in observers.items() if isinstance(o, HistogramObserver)}
        return choose_ranges(program, first.items, histograms, self.scheme, weight_max)

    def _observe(
        self,
        program: Program,
        observers: Mapping[str, RangeObserver],
        extents: dict[str, Range],
        on_item: Callable[[tuple[Tensor, ...]], None] | None = None,
    ) -> None:
        share = share_of(self.processes)
        observe_data(program, self.data, observers, extents, on_item, share)
        if share.count > 1:
            names = _values_by_group(program.graph)
            join(observers, extents, set().union(*(names[group] for group in observers)))


def _values_by_group(graph: fx.Graph) -> dict[str, frozenset[str]]:
    """Return the names of the values that share a range, by the name of their group."""
    groups: dict[str, set[str]] = {}
    for node in _observed_values(graph):
        source = node.args[0]
        assert isinstance(source, fx.Node)
        groups.setdefault(str(argument(node, "name")), set()).add(source.name)
    return {group: frozenset(names) for group, names in groups.items()}


def _observed_values(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is observe and not is_constant(node.args[0])]


def _quantize_values(edit: Edit, ranges: Mapping[str, Range], scheme: Scheme) -> None:
    bounds: dict[str, list[Bounds]] = {group: [] for group in ranges}
    nodes = _observed_values(edit.graph)
    for node in nodes:
        source, group = node.args
        assert isinstance(source, fx.Node) and isinstance(group, str)
        if (limits := clip_bounds(source)) is not None:
            bounds[group].append(limits)
    start = next(node for node in edit.graph.nodes if node.op != "placeholder")
    parameters: dict[str, tuple[fx.Node, fx.Node, int, int]] = {}
    for group, (low, high) in ranges.items():
        scale, zero_point, levels = absorbing_levels(scheme.levels(low), low, high, bounds[group])
        zero = torch.tensor(zero_point, dtype=zero_point_dtype(levels))
        parameters[group] = (
            edit.add_constant(f"{group}_scale", torch.tensor(scale, dtype=torch.float32), before=start),
            edit.add_constant(f"{group}_zero_point", zero, before=start),
            levels.quant_min,
            levels.quant_max,
        )
    for node in nodes:
        source, group = node.args
        assert isinstance(source, fx.Node) and isinstance(group, str)
        scale_node, zero_node, low_level, high_level = parameters[group]
        fake = insert(
            edit, fake_quantize, source, scale_node, zero_node, None, low_level, high_level,
            before=node, name=node.name.replace("_observed", "_fake"), value=source.meta["val"], like=node,
        )  # fmt: skip
        edit.replace(node, fake)


def zero_point_dtype(levels: Levels) -> torch.dtype:
    """Return the 8-bit dtype that levels are part of; int32 where none is wide enough."""
    if levels.steps > 255:
        return torch.int32
    return torch.int8 if levels.quant_min < 0 else torch.uint8


def _quantize_weights(edit: Edit, scheme: Scheme, weight_max: int) -> None:
    for node in list(edit.calls(observe)):
        source = node.args[0]
        weight = edit.constant(source)
        if weight is None or not isinstance(source, fx.Node):
            continue
        scale = symmetric_scales(weight.detach(), weight_max, smallest_scales(edit, node, weight.shape[0]), scheme)
        scale_node = edit.add_constant(f"{source.target}_scale", scale, before=node)
        zeros = torch.zeros(scale.shape, dtype=torch.int8 if scheme.weight_bits <= 8 else torch.int32)
        zero_node = edit.add_constant(f"{source.target}_zero_point", zeros, before=node)
        axis = 0 if scheme.per_channel else None
        fake = insert(
            edit, fake_quantize, source, scale_node, zero_node, axis, -weight_max, weight_max,
            before=min(node.users), name=node.name.replace("_observed", "_fake"), value=source.meta["val"], like=node,
        )  # fmt: skip
        edit.replace(node, fake)


def smallest_scales(edit: Edit, quantized: fx.Node, channels: int) -> Tensor:
    """Return the weight scales below which the int32 bias of a layer with this weight would overflow.

    `quantized`: the node that observes or quantizes the weight; the activations have their scales already.
    """
    smallest = torch.zeros(channels, dtype=torch.float64)
    for user in quantized.users:
        rule = QUANTIZE_RULES.get(user.target)
        source = user.args[0]
        if rule is None or rule.role not in (Role.CONVOLUTION, Role.LINEAR) or not isinstance(source, fx.Node):
            continue
        bias = constant(edit.module, argument(user, "bias"))
        scale = constant(edit.module, source.args[1]) if source.target is fake_quantize else None
        if bias is not None and scale is not None:
            smallest = torch.maximum(smallest, bias.detach().double().abs() / (float(scale) * BIAS_MAX))
    return smallest
