"""The options of a training: their ranges, and how they are spelled."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxopt.errors import TrainingError
from fxopt.training.optimizers import AdamW
from fxopt.training.options import Training
from fxopt.training.schedules import Cosine


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"epochs": -1},
        {"epochs": float("nan")},
        {"epochs": float("inf")},
        {"steps": 0},
        {"steps": 2.5},
        {"steps": True},
        {"accumulate": 0},
        {"patience": 0},
        {"log_every": 0},
        {"save_every": -3},
        {"clip_gradients": 0},
        {"clip_weights": -1.0},
        {"clip_weights": float("nan")},
        {"precision": "fp16"},
        {"seed": -1},
        {"seed": 2**31},
        {"changes": {1.0: None}},
        {"changes": {-0.1: None}},
        {"penalties": lambda program: 0},
    ],
)
def test_bad_options_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=next(iter(wrong))):
        Training(**wrong)


def test_the_history_has_what_is_not_the_default() -> None:
    assert Training().entry == "train()"
    training = Training(epochs=3, schedule=Cosine(), optimizer=lambda parameters: torch.optim.SGD(parameters))
    assert training.entry == (
        "train(epochs=3, optimizer=<function test_the_history_has_what_is_not_the_default.<locals>.<lambda>>, "
        "schedule=Cosine(end=0.0, warm_up=0.0))"
    )


def test_only_weights_of_two_dimensions_decay() -> None:
    values = {
        "bias": torch.zeros(3),
        "weight": torch.zeros(3, 2),
        "kernel": torch.zeros(3, 2, 1, 1),
        "step": torch.ones(()),
    }
    optimizer = AdamW(rate=0.1, weight_decay=0.2)([(name, torch.nn.Parameter(v)) for name, v in values.items()])
    found = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}
    assert found == {"weight": 0.2, "kernel": 0.2, "bias": 0.0, "step": 0.0}
    assert len(AdamW()([("bias", torch.nn.Parameter(torch.zeros(3)))]).param_groups) == 1
