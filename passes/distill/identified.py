"""Samples with ids: data that says which sample is which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fxopt.data import Data, item_inputs
from fxopt.errors import DataError
from fxopt.graph.program import Program

IDS = "ids"
LABELS = "labels"


def with_ids(dataset: Dataset[Any]) -> Dataset[Any]:
    """Return a data set whose items carry their index: a tuple as its last element, a dict as "ids".

    Any other item becomes (item, index). Raises DataError for a data set without a length or indices.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise DataError(f"with_ids() needs a data set with a length and indices, got {type(dataset).__name__}.")
    return _Identified(dataset)


class _Identified(Dataset[Any]):
    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        if isinstance(item, Mapping):
            return {**item, IDS: index}
        return (*item, index) if isinstance(item, (tuple, list)) else (item, index)


def identified_items(data: Data, program: Program) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """Stream the ids [batch] of items, each with the tensor inputs of a Program.

    An item is a tuple (inputs..., ids), with labels or others between them, or a dict with "ids". Raises DataError,
    naming the item, where it has none or does not fit.
    """
    for number, item in enumerate(data):
        try:
            ids, call = _split(item, program)
            yield _checked(ids), item_inputs(call, program)
        except DataError as error:
            raise DataError(f"Item {number}: {error}") from None


def _split(item: Any, program: Program) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        if IDS not in item:
            raise DataError(f'it has {", ".join(map(str, item))}, but no "{IDS}"; see with_ids().')
        named = {spec.name for spec in program.inputs}
        return item[IDS], {name: value for name, value in item.items() if name in named or name not in (IDS, LABELS)}
    wanted = sum(part.num_children for part in program.in_spec.children())
    if not isinstance(item, (tuple, list)) or len(item) <= wanted:
        raise DataError("it has nothing after the inputs; the ids must be its last element, see with_ids().")
    return item[-1], item


def _checked(ids: Any) -> Tensor:
    try:
        found = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(f"its ids are {type(ids).__name__}; give integers, one a sample.") from None
    if found.ndim != 1 or found.is_floating_point() or found.is_complex() or found.dtype is torch.bool:
        raise DataError(f"its ids are {found.dtype} {list(found.shape)}; give integers [batch], see with_ids().")
    return found.cpu().long()
