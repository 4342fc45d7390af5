"""observe_data: calibration data runs through a Program whose observe nodes feed observers, one item at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxopt.errors import CaptureError, DataError, where
from fxopt.graph.capture import call_of
from fxopt.graph.ops import observe
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.passes.quantize.joint_observers import ALL, Share
from fxopt.passes.quantize.observers import RangeObserver
from fxopt.passes.quantize.range_search import Range


def observe_data(
    program: Program,
    data: Iterable[Any],
    observers: Mapping[str, RangeObserver],
    extents: dict[str, Range],
    on_item: Callable[[tuple[Tensor, ...]], None] | None = None,
    share: Share = ALL,
) -> int:
    """Run every item through a Program with observe nodes and let the observers see the values; returns how many.

    `extents` gets the smallest and largest value of each observed node, by name, also where several share an observer.
    `on_item` gets the inputs of each item, after its run. Of `share` are the items that are run; all are read.
    Raises DataError, naming the item.
    """
    try:
        items = iter(data)
    except TypeError:
        raise DataError(f"Calibration data must be an iterable of items, got {type(data).__name__}.") from None
    if isinstance(data, (Tensor, Mapping)):
        raise DataError(
            f"Calibration data must be an iterable of items like the example inputs, got one {type(data).__name__}. "
            "Put it into a list."
        )
    count = 0
    for number, item in enumerate(items):
        tensors = _tensors_of(program, number, item)
        if share.has(number):
            with torch.no_grad():
                _ObservedRun(program.module, number, observers, extents).run(*tensors)
            for observer in observers.values():
                observer.end_item()
        if on_item is not None:
            on_item(tensors)
        count += 1
    if count == 0:
        raise DataError("The calibration data is empty: give at least one item (a one-shot iterator may be used up).")
    return count


def _tensors_of(program: Program, number: int, item: Any) -> tuple[Tensor, ...]:
    try:
        args, kwargs = call_of(item)
        tensors = program.flatten(*args, **kwargs)
    except (DataError, CaptureError) as error:
        text = str(error).replace("example_inputs must be", "It must be")
        raise DataError(f"Calibration item {number} does not fit the Program. {text}") from None
    for spec, tensor in zip(program.inputs, tensors, strict=True):
        if tensor.is_floating_point() and tensor.numel() and not _is_finite(tensor):
            raise DataError(
                f"Calibration item {number}: input '{spec.name}' holds NaN or infinity. Remove or repair that item."
            )
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    low, high = torch.aminmax(tensor)
    return math.isfinite(float(low)) and math.isfinite(float(high))


class _ObservedRun(fx.Interpreter):
    """One run of a Program whose observe nodes feed observers; each value is dropped after its last use."""

    def __init__(
        self, module: fx.GraphModule, item: int, observers: Mapping[str, RangeObserver], extents: dict[str, Range]
    ) -> None:
        super().__init__(module, graph=module.graph)
        self.item = item
        self.observers = observers
        self.extents = extents

    def run_node(self, n: fx.Node) -> Any:
        if n.target is not observe:
            return super().run_node(n)
        source, group = n.args
        assert isinstance(source, fx.Node)
        value = self.env[source]
        if isinstance(group, str) and group in self.observers and value.numel() and not is_constant(source):
            low, high = (float(end) for end in torch.aminmax(value))
            if not (math.isfinite(low) and math.isfinite(high)):
                raise DataError(
                    f"Calibration item {self.item} makes {where(source)} give NaN or infinity, though its inputs are "
                    "finite. Keep such a node float or scale the inputs as in training."
                )
            self.observers[group].update(value, low, high)
            before = self.extents.get(source.name, (low, high))
            self.extents[source.name] = min(before[0], low), max(before[1], high)
        return value
