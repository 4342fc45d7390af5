"""The random numbers of torch, numpy and Python: seeding, saving and restoring them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

APART = 10_007  # seeds this far apart share no epoch's numbers


def start_epoch(seed: int, epoch: int, data: object) -> None:
    """Seed all generators for an epoch, and the data's own, if it has one as a DataLoader does."""
    number = (seed * APART + epoch) % 2**32
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    generator = getattr(data, "generator", None)
    if isinstance(generator, torch.Generator):
        generator.manual_seed(number)


def random_states() -> dict[str, Any]:
    """Return the states of all generators, in types that JSON has."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, numbers, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [name, np.asarray(keys).tolist(), position, has_gauss, cached],
        "python": [version, list(numbers), gauss],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Put all generators back into states that random_states() gave."""
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))


@contextmanager
def own_random_states() -> Iterator[None]:
    """Leave the caller's random numbers as they were."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)
