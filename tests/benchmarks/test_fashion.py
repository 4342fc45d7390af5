"""The Fashion-MNIST models: the reader of their data, their shapes, their weights."""

import gzip
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.real_models import packages, real_models
from benchmarks.real_models.fashion import (
    INSTALLED,
    NETWORKS,
    WEIGHTS,
    evaluate,
    fashion_data,
    fashion_folder,
    load,
    read_idx,
)
from benchmarks.real_models.packages import MissingPackageError
from benchmarks.train_fashion import augment
from fxopt.errors import DataError


def idx_file(folder: Path, content: bytes) -> Path:
    path = folder / "images.gz"
    path.write_bytes(gzip.compress(content))
    return path


def test_an_idx_file_written_by_hand(tmp_path: Path) -> None:
    header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3])
    found = read_idx(idx_file(tmp_path, header + bytes([1, 2, 255, 0, 128, 7])))
    assert found.dtype == torch.uint8
    assert found.tolist() == [[[1, 2, 255]], [[0, 128, 7]]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no idx file"),
        (bytes([0, 0, 13, 1, 0, 0, 0, 1, 0, 0, 0, 0]), "no idx file of bytes"),  # floats
        (bytes([0, 0, 8, 1, 0, 0, 0, 3, 1, 2]), r"not those of \[3\]"),
        (bytes([0, 0, 8, 2, 0, 0, 0, 3]), "8 bytes, not those"),  # the header itself is cut
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_idx(idx_file(tmp_path, content))


def test_where_the_data_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (Path("/") / INSTALLED).is_dir():
        pytest.skip("the package is installed")
    monkeypatch.setenv("FXOPT_BENCH_DATA", str(tmp_path))
    with pytest.raises(MissingPackageError, match="apt-get download dataset-fashion-mnist && dpkg-deb -x"):
        fashion_folder()
    folder = packages.data_folder() / "fashion-mnist" / INSTALLED
    folder.mkdir(parents=True)
    (folder / "t10k-labels-idx1-ubyte.gz").touch()
    assert fashion_folder() == folder


def test_augmented_images_are_shifted_and_mirrored_ones() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 6, 5)
    both = (nn.functional.pad(side, (2, 2, 2, 2), value=-1.0)[0, 0] for side in (image, image.flip(3)))
    possible = torch.stack([wide[i : i + 6, j : j + 5] for wide in both for i in range(5) for j in range(5)])
    found = augment(image.expand(200, 1, 6, 5))
    which = (found == possible).flatten(2).all(2)
    assert found.shape == (200, 1, 6, 5) and bool((which.sum(1) == 1).all())
    assert int(which.any(0).sum()) > 40  # of 50


@pytest.mark.parametrize("name", NETWORKS)
def test_committed_weights(name: str) -> None:
    assert (WEIGHTS / f"{name}.npz").stat().st_size < 2**20
    model = load(name)
    with torch.no_grad():
        logits = model(torch.zeros(3, 1, 28, 28))
    assert logits.shape == (3, 10) and logits.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert 150_000 < sum(parameter.numel() for parameter in model.parameters()) < 400_000


@pytest.mark.parametrize("name", NETWORKS)
def test_accuracy_on_some_test_images(name: str) -> None:
    try:
        fashion_data("t10k")
    except MissingPackageError as error:
        pytest.skip(str(error))
    (model,) = (model for model in real_models() if model.name == f"fashion_{name}")
    assert evaluate(model.build(), 500) > 0.88
    assert [item[0].shape for item in model.calibration()] == [(16, 1, 28, 28)] * 8  # type: ignore[index]
