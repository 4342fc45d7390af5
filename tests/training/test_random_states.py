"""Random numbers of torch, numpy and Python."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from fxopt.training.random_states import own_random_states, random_states, restore_random_states, start_epoch


def draw() -> tuple[float, ...]:
    return random.random(), random.gauss(), float(np.random.randn()), *torch.randn(3).tolist()


def test_states_survive_json() -> None:
    draw()
    states = json.loads(json.dumps(random_states()))
    expected = draw(), draw()
    restore_random_states(states)
    assert (draw(), draw()) == expected


def test_an_epoch_has_numbers_of_its_own() -> None:
    class Loader:
        generator = torch.Generator()

    found = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 1)):
        start_epoch(seed, epoch, Loader)
        found.append((draw(), torch.randn((), generator=Loader.generator).item()))
    assert found[1] == found[3] and len(set(found)) == 3


def test_the_callers_numbers_go_on() -> None:
    start_epoch(5, 0, None)
    expected = draw(), draw()
    start_epoch(5, 0, None)
    first = draw()
    with own_random_states():
        start_epoch(9, 9, None)
    assert (first, draw()) == expected
