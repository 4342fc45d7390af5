"""The models of the comparison: those of benchmarks.peers, and a classifier with trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from benchmarks.peer_tools.cases import CASES, Case, Split
from benchmarks.real_models import efficientnet
from benchmarks.real_models.model import batches, take
from benchmarks.zoo_models.model import Inputs


def _photos(split: Split, count: int) -> Iterator[Inputs]:
    """Give photos of batch 1: labelled ones of ImageNet, of which there are 20, or others for calibration (32)."""
    photos = efficientnet.labelled_photos()[0] if split == "held-out" else efficientnet.calibration_photos()
    return ((photo,) for photo in batches(take(photos, count), 1))


ALL_CASES: Mapping[str, Case] = {
    **CASES,
    "efficientnet_lite0": Case("efficientnet_lite0", "cnn", efficientnet.build, _photos),
}
