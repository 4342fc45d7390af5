"""What a training step reads: the inputs, labels and ids of an item, and which shares of it count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxopt.data import Data, item_inputs
from fxopt.errors import DataError
from fxopt.graph.padding import MASK
from fxopt.graph.program import Program

EXTRAS = ("labels", "ids")


@dataclass(frozen=True)
class Item:
    """One item of the data: the tensor inputs of a Program in order, labels and ids of samples where it has them."""

    inputs: tuple[Tensor, ...]
    labels: Any = None
    ids: Tensor | None = None

    def to(self, device: torch.device) -> Item:
        """Return the item on a device."""
        move = [pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), part) for part in self._parts()]
        return Item(*move)

    def _parts(self) -> tuple[Any, ...]:
        return self.inputs, self.labels, self.ids


@dataclass(frozen=True)
class Shares:
    """What an item counts among those of one step, by what a loss is a mean of."""

    samples: float = 1.0
    tokens: float = 1.0
    labels: float = 1.0

    def times(self, factor: float) -> Shares:
        """Return all of them times a factor."""
        return Shares(self.samples * factor, self.tokens * factor, self.labels * factor)


def check_data(data: Data) -> None:
    """Raise DataError for what cannot be read again and again."""
    if isinstance(data, Tensor):
        raise DataError("The training data is one Tensor; give items: a DataLoader, or a list of (inputs, labels).")
    if isinstance(data, Iterator):
        raise DataError(
            f"The training data is a {type(data).__name__}, which can be read once only; each epoch reads it again. "
            "Give a list, a DataLoader, or an object whose __iter__ starts anew."
        )
    if not isinstance(data, Iterable):
        raise DataError(f"Training data must be iterable, got {type(data).__name__}.")


def item_count(data: Data) -> int | None:
    """Return how many items the data has, or None if it does not say. Raises DataError if it has none."""
    try:
        count = len(data)  # type: ignore[arg-type]
    except TypeError:
        return None
    if count == 0:
        raise DataError("The training data is empty; a DataLoader with drop_last needs at least one whole batch.")
    return count


@dataclass(frozen=True)
class Reader:
    """Reads items for a Program; raises DataError, naming the item, for what does not fit or is missing.

    `needs`: which of "labels" and "ids" there must be, and what needs them.
    """

    program: Program
    needs: Mapping[str, str]

    def __call__(self, item: Any, number: int) -> Item:
        """Return what the item with this number holds."""
        try:
            return self._read(item)
        except DataError as error:
            raise DataError(f"Training item {number}: {error}") from None

    def _read(self, item: Any) -> Item:
        extras = self._extras(item)
        names = {spec.name for spec in self.program.inputs}
        if isinstance(item, Mapping):
            item = {name: value for name, value in item.items() if name not in EXTRAS or name in names}
        for name, reader in self.needs.items():
            if extras.get(name) is None:
                raise DataError(f"it has no {name}, which {reader} needs. Give {self._form(name)}.")
        # channels last would come in here again where training_layout() keeps it out
        inputs = tuple(tensor.contiguous() for tensor in item_inputs(item, self.program))
        return Item(inputs, extras.get("labels"), extras.get("ids"))

    def _extras(self, item: Any) -> dict[str, Any]:
        if isinstance(item, Mapping):
            return {name: item[name] for name in EXTRAS if name in item}
        if isinstance(item, (tuple, list)):
            extras = item[self._inputs() :]
            if len(extras) == 1 and "ids" in self.needs and "labels" not in self.needs:
                return {"ids": extras[0]}  # as with_ids() gives them for data without labels
            return dict(zip(EXTRAS, extras, strict=False))
        return {}

    def _inputs(self) -> int:
        return max(sum(part.num_children for part in self.program.in_spec.children()), 1)

    def _form(self, name: str) -> str:
        inputs = ", ".join(spec.name for spec in self.program.inputs)
        last = ", ids" if name == "ids" else ""
        return f"tuples ({inputs}, labels{last}), or dicts with the key '{name}'"


def token_mask(item: Item, program: Program) -> Tensor | None:
    """Return the input [batch, tokens] that says where tokens are, if there is one."""
    mask = next((value for spec, value in zip(program.inputs, item.inputs, strict=True) if spec.name == MASK), None)
    return mask if mask is not None and mask.ndim == 2 else None


def shares_of(items: Sequence[Item], parts: Sequence[Item], program: Program) -> list[Shares]:
    """Return what each part counts among the items of a step. Shares of one kind add up to one over all parts."""
    counts = [_counts(item, program) for item in items]
    totals = [max(sum(kind), 1) for kind in zip(*counts, strict=True)]
    return [
        Shares(*(count / total for count, total in zip(_counts(part, program), totals, strict=True))) for part in parts
    ]


def _counts(item: Item, program: Program) -> tuple[int, int, int]:
    """Return the number of samples, of tokens that are no padding, and of labels that are a class."""
    samples = item.inputs[0].shape[0] if item.inputs and item.inputs[0].ndim else 1
    mask = token_mask(item, program)
    real = None if mask is None else mask > 0
    tokens = samples if real is None else int(real.sum())
    labels = item.labels
    if not isinstance(labels, Tensor):
        return samples, tokens, samples
    counted = torch.ones_like(labels, dtype=torch.bool) if labels.is_floating_point() else labels >= 0
    if real is not None and labels.shape[:2] == real.shape:
        counted = counted & real.reshape(*real.shape, *[1] * (labels.ndim - 2))
    return samples, tokens, int(counted.sum())
