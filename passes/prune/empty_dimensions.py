"""No dimension of any value may lose all of its positions. Units that are alike can still meet in a small one."""

from __future__ import annotations

import numpy as np

from fxopt.passes.prune.coordinates import Coordinates, Removal, flat_labels
from fxopt.passes.prune.symbols import Mask


def without_empty(found: Coordinates, removed: Mask) -> Mask:
    """Return the atoms to remove without those that the first position of an emptied dimension needs."""
    removed = removed.copy()
    while True:
        removal = Removal(found, removed)
        labels = [label for value in found.labels.values() for label in flat_labels(value) if len(label)]
        empty = next((label for label in labels if not removal.keep(label).any()), None)
        if empty is None:
            return removed
        removed[np.unique(found.leaves(empty)[0])] = False
