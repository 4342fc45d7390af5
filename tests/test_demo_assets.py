"""The demo's embedded model and data: what the documentation says of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

import fxopt.demo
from fxopt.demo import SPLIT_SIZES, TEST_CORRECT, demo_data, demo_model, read_arrays

FOLDER = Path(fxopt.demo.__file__).parent


def test_the_model_gets_the_documented_accuracy() -> None:
    images, labels = demo_data("test")
    with torch.inference_mode():
        correct = int((demo_model()(images).argmax(1) == labels).sum())
    assert correct == TEST_CORRECT
    assert correct / len(labels) >= 0.98


@pytest.mark.parametrize(("split", "size"), SPLIT_SIZES.items())
def test_a_split_has_the_documented_form(split: fxopt.demo.Split, size: int) -> None:
    images, labels = demo_data(split)
    assert images.shape == (size, 1, 32, 32)
    assert images.dtype == torch.float32
    assert images.min() == 0 and 0.9 < images.max() <= 1
    assert labels.shape == (size,)
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(10))


def test_the_splits_share_no_image_and_are_all_of_the_digits() -> None:
    arrays = read_arrays("digits.npz")
    images = np.concatenate([arrays[f"{split}_images"] for split in SPLIT_SIZES])
    assert images.shape == (1797, 8, 8)
    assert images.dtype == np.uint8
    assert images.max() == 16
    assert len({image.tobytes() for image in images}) == 1797


def test_enlarging_keeps_the_picture() -> None:
    images, _ = demo_data("calibration")
    pixels = torch.from_numpy(read_arrays("digits.npz")["calibration_images"]) / 16
    averages = torch.nn.functional.avg_pool2d(images, 4).squeeze(1)
    assert (averages - pixels).abs().mean() < 0.1


def test_loading_twice_gives_the_same_and_shares_nothing() -> None:
    first, second = demo_model(), demo_model()
    assert not first.training
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32), name
    with torch.no_grad():
        first.head.bias.add_(1)
    assert not torch.equal(first.head.bias, second.head.bias)
    assert torch.equal(demo_data("test")[0], demo_data("test")[0])


def test_sizes() -> None:
    assert 300_000 <= sum(parameter.numel() for parameter in demo_model().parameters()) <= 450_000
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.npz")) < 2_000_000
