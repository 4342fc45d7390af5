"""RealModel: a trained network, example inputs, calibration data and a scored task."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
Dynamic = str | dict[str, dict[int, str]]


@dataclass(frozen=True)
class RealModel:
    """A trained model and the task that it is scored on.

    `inputs(n)` makes example inputs of batch size n; `calibration()` makes unlabelled items of the same structure,
    disjoint from what is scored. `evaluate(model)` calls its argument as the module itself is called (positional for a
    tuple, keywords for a dict) and returns the metric, in [-1, 1], higher is better. All of them, and `build`, raise
    MissingPackageError when the package that holds the weights or the data is not installed.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    dynamic: Dynamic
    calibration: Callable[[], list[Inputs]]
    evaluate: Callable[[Callable[..., Any]], float]
    metric: str
    data: str


def output_tensors(result: Any) -> tuple[Tensor, ...]:
    """Return the outputs of a model call as a flat tuple, whether it gave one value, a sequence or a mapping."""
    if isinstance(result, Mapping):
        return tuple(torch.as_tensor(value) for value in result.values())
    if isinstance(result, (tuple, list)):
        return tuple(torch.as_tensor(value) for value in result)
    return (torch.as_tensor(result),)


def batches(items: Tensor, size: int) -> Iterator[Tensor]:
    """Yield consecutive slices of at most `size` along dimension 0."""
    return (items[start : start + size] for start in range(0, len(items), size))


def take(items: Tensor, count: int) -> Tensor:
    """Return the first `count` items along dimension 0, starting over when there are fewer."""
    return items[torch.arange(count) % len(items)]
