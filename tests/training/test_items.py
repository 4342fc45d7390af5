"""Items of training data: their forms, and what of them counts."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from fxopt.errors import DataError
from fxopt.graph.program import Program
from fxopt.training.items import Item, Reader, Shares, shares_of
from tests.training.cases import sentences, tagger
from tests.training.models import batches, network

IMAGES, LABELS = batches(1)[0]
IDS = torch.arange(8)


@pytest.fixture(scope="module")
def tokens() -> Program:
    return tagger()


@pytest.mark.parametrize(
    "item",
    [
        (IMAGES, LABELS, IDS),
        [IMAGES, LABELS, IDS],
        {"x": IMAGES, "labels": LABELS, "ids": IDS},
        (IMAGES, LABELS, IDS, "more"),
    ],
)
def test_the_forms_of_an_item(item: Any) -> None:
    found = Reader(network()[1], {"labels": "a", "ids": "b"})(item, 0)
    assert len(found.inputs) == 1 and found.inputs[0] is IMAGES and found.labels is LABELS and found.ids is IDS


@pytest.mark.parametrize("item", [IMAGES, (IMAGES,), {"x": IMAGES}])
def test_labels_may_be_absent(item: Any) -> None:
    assert Reader(network()[1], {})(item, 0).labels is None


@pytest.mark.parametrize(
    ("item", "needs"),
    [
        ((IMAGES, LABELS), ("labels", "ids")),
        ((IMAGES,), ("ids",)),
        ({"x": IMAGES, "labels": LABELS}, ("ids",)),
    ],
)
def test_missing_ids_are_named(item: Any, needs: tuple[str, ...]) -> None:
    text = r"Training item 4: it has no ids, which the tap 'logits' needs\. Give tuples \(x, labels, ids\), or dicts"
    with pytest.raises(DataError, match=text):
        Reader(network()[1], dict.fromkeys(needs, "the tap 'logits'"))(item, 4)


def test_the_layout_of_an_input_is_the_plain_one() -> None:
    found = Reader(network()[1], {})(IMAGES.to(memory_format=torch.channels_last), 0).inputs[0]
    assert found.is_contiguous() and torch.equal(found, IMAGES)


def test_data_without_labels_may_have_ids_behind_the_inputs() -> None:
    found = Reader(network()[1], {"ids": "the tap 'logits'"})((IMAGES, IDS), 0)
    assert found.labels is None and found.ids is IDS


def test_a_tuple_has_all_inputs_first(tokens: Program) -> None:
    item = sentences()[0]
    found = Reader(tokens, {})((item["tokens"], item["attention_mask"], item["labels"]), 0)
    assert len(found.inputs) == 2 and found.labels is item["labels"]


def test_an_input_that_is_called_labels_is_both() -> None:
    _, program = network()
    spec = dataclasses.replace(program.inputs[0], name="labels")
    renamed = dataclasses.replace(program, inputs=(spec,), parameters_of_call=("labels",))
    found = Reader(renamed, {"labels": "a"})({"labels": IMAGES}, 0)
    assert found.inputs[0] is IMAGES and found.labels is IMAGES


def test_shares_by_hand(tokens: Program) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    labels = torch.tensor([[2, -100, 3], [-100, 1, 1]])  # padding counts nowhere
    first = Item((mask, mask), labels)
    second = Item((torch.ones(1, 3).long(), torch.ones(1, 3).long()), torch.tensor([[1, 1, -1]]))
    assert shares_of([first, second], [first, second], tokens) == [
        Shares(samples=2 / 3, tokens=3 / 6, labels=1 / 3),
        Shares(samples=1 / 3, tokens=3 / 6, labels=2 / 3),
    ]
    assert Shares(0.5, 0.25, 1.0).times(2) == Shares(1.0, 0.5, 2.0)


def test_labels_that_are_real_numbers_count_each() -> None:
    _, program = network()
    items = [Item((IMAGES[:2],), -torch.ones(2)), Item((IMAGES[:6],), -torch.ones(6)), Item((IMAGES,), {"a": 1})]
    first, second, third = shares_of(items, items, program)
    assert (first.labels, second.labels, third.labels) == (2 / 16, 6 / 16, 8 / 16)


def test_a_step_without_labels_has_no_shares_of_them() -> None:
    _, program = network()
    items = [Item((IMAGES,), torch.full((8,), -1))]
    assert shares_of(items, items, program) == [Shares(1.0, 1.0, 0.0)]
