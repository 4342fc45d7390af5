"""A small real model and the real data that it was trained on, for the demo, documentation and tests.

digits.npz    1,797 handwritten digits of 13 writers, 8x8 pixels of 0 to 16: the part of E. Alpaydin and C. Kaynak,
              "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998, doi 10.24432/C50P49,
              CC BY 4.0, that scikit-learn ships (load_digits); shuffled and split once.
weights.npz   the state of `DigitsNet` in float16, trained on the `train` split by `python -m benchmarks.train_demo`.

Both are plain arrays: nothing is unpickled.
"""

from importlib.resources import files
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fxopt.demo.model import DigitsNet

Split = Literal["train", "calibration", "test"]

SPLIT_SIZES: dict[Split, int] = {"test": 800, "calibration": 200, "train": 797}
PIXEL_MAXIMUM = 16
IMAGE_SIZE = 32  # enlarged from 8, so that the network has work enough for its latency to mean something
TEST_CORRECT = 795  # of the 800 test images, by the float model: 99.4 %


def demo_model() -> DigitsNet:
    """Return the trained classifier in evaluation mode: float32 images [n, 1, 32, 32] to logits [n, 10]."""
    model = DigitsNet()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in read_arrays("weights.npz").items()})
    return model.eval()


def demo_data(split: Split) -> tuple[Tensor, Tensor]:
    """Return a split's images [n, 1, 32, 32] float32 in [0, 1], and labels [n] int64 in 0..9.

    The splits share no image; SPLIT_SIZES has their sizes.
    """
    arrays = read_arrays("digits.npz")
    pixels = torch.from_numpy(arrays[f"{split}_images"]).float().div(PIXEL_MAXIMUM).unsqueeze(1)
    images = nn.functional.interpolate(pixels, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    return images, torch.from_numpy(arrays[f"{split}_labels"]).long()


def read_arrays(name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of an embedded .npz file by name."""
    with files("fxopt.demo").joinpath(name).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}
