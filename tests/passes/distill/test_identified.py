"""Samples with ids: what a data set gives, and what is read off an item."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from fxopt.errors import DataError
from fxopt.graph.capture import capture
from fxopt.graph.program import Program
from fxopt.passes.distill import with_ids
from fxopt.passes.distill.identified import identified_items


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(nn.Linear(4, 2), torch.randn(3, 4))


class Items(Dataset[Any]):
    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ((1.5, 7), (1.5, 7, 1)),
        ([1.5, 7], (1.5, 7, 1)),
        (1.5, (1.5, 1)),
        ({"x": 1.5, "labels": 7}, {"x": 1.5, "labels": 7, "ids": 1}),
    ],
)
def test_an_item_carries_its_index(item: Any, expected: Any) -> None:
    items = with_ids(Items([None, item]))
    assert items[1] == expected
    assert len(items) == 2  # type: ignore[arg-type]


def test_a_shuffling_loader_keeps_samples_and_ids_together() -> None:
    values = torch.randn(10, 4)
    loader = DataLoader(with_ids(TensorDataset(values, torch.arange(10))), batch_size=4, shuffle=True)
    batches = list(loader)
    assert torch.cat([ids for *_, ids in batches]).sort().values.tolist() == list(range(10))
    for x, labels, ids in batches:
        assert torch.equal(x, values[ids]) and torch.equal(labels, ids)


def test_a_data_set_without_indices() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(DataError, match="indices, got Stream"):
        with_ids(Stream())


X = torch.randn(3, 4)
IDS = torch.tensor([5, 2, 9])


@pytest.mark.parametrize(
    "item",
    [
        (X, IDS),
        [X, IDS],
        (X, torch.zeros(3), IDS.int()),
        {"input": X, "ids": IDS},
        {"labels": torch.zeros(3), "input": X, "ids": [5, 2, 9]},
    ],
)
def test_ids_and_inputs_of_an_item(item: Any, program: Program) -> None:
    ((ids, inputs),) = identified_items([item], program)
    assert ids.dtype is torch.int64 and ids.tolist() == [5, 2, 9]
    assert len(inputs) == 1 and inputs[0] is X


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (X, "nothing after the inputs"),
        ((X,), "nothing after the inputs"),
        ({"input": X, "labels": IDS}, 'it has input, labels, but no "ids"'),
        ((X, X), r"ids are torch.float32 \[3, 4\]"),
        ((X, torch.tensor(1)), r"ids are torch.int64 \[\]"),
        ((X, ["a", "b", "c"]), "ids are list; give integers"),
        ((X[:, :2], IDS), "dimension 1 has size 2"),
        ({"y": X, "ids": IDS}, "another structure"),
    ],
)
def test_items_that_do_not_fit(item: Any, text: str, program: Program) -> None:
    with pytest.raises(DataError, match=f"Item 1: .*{text}"):
        list(identified_items([(X, IDS), item], program))


def test_one_item_at_a_time(program: Program) -> None:
    read: list[Tensor] = []

    def items() -> Any:
        for _ in range(3):
            read.append(X)
            yield X, IDS

    next(identified_items(items(), program))
    assert len(read) == 1
