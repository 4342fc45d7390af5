"""Fashion-MNIST: photos of clothes in ten classes, and the two small models that were trained on them.

The images are those of Xiao et al. 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
Algorithms". The weights beside this file were made by `python -m benchmarks.train_fashion`.
"""

import functools
import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.real_models.fashion_models import FashionCnn, FashionVit
from benchmarks.real_models.model import RealModel, batches, output_tensors, take
from benchmarks.real_models.packages import MissingPackageError, data_folder
from fxopt.errors import DataError

PACKAGE = "dataset-fashion-mnist"  # of Debian and Ubuntu
INSTALLED = Path("usr/share/datasets/fashion-mnist")  # where the package has its files, below its root
NETWORKS: dict[str, Callable[[], nn.Module]] = {"cnn": FashionCnn, "vit": FashionVit}
WEIGHTS = Path(__file__).parent / "fashion"
CALIBRATION, BATCH = 128, 16
UNSIGNED_BYTES = 0x08  # the code of an idx file for elements of type uint8

Split = Literal["train", "t10k"]


def fashion_folder() -> Path:
    """Return the folder of the four idx files: that of the installed package, else of one unpacked in data_folder().

    Raises:
        MissingPackageError: neither is there; the message has the command that unpacks the package, without root.
    """
    unpacked = data_folder() / "fashion-mnist"
    for root in (Path("/"), unpacked):
        if (root / INSTALLED / "t10k-labels-idx1-ubyte.gz").is_file():
            return root / INSTALLED
    raise MissingPackageError(
        f"Fashion-MNIST is neither in /{INSTALLED} nor in {unpacked / INSTALLED}. Fetch it with: "
        f"mkdir -p {unpacked} && cd {unpacked} && apt-get download {PACKAGE} && dpkg-deb -x {PACKAGE}_*.deb ."
    )


def read_idx(path: Path) -> Tensor:
    """Read a gzipped idx file of bytes: uint8 in the shape that its header gives.

    The format: two zero bytes, the code of the type, the number of dimensions, their sizes as big-endian int32, data.

    Raises:
        DataError: the file is no such file, or its length is not that of its shape.
    """
    content = gzip.decompress(path.read_bytes())
    if len(content) < 4 or content[:3] != bytes((0, 0, UNSIGNED_BYTES)):
        raise DataError(f"{path} is no idx file of bytes. Unpack the package {PACKAGE} again.")
    header = 4 + 4 * content[3]
    shape = [int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        raise DataError(f"{path} has {len(content)} bytes, not those of {shape}. Unpack the package {PACKAGE} again.")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy()).reshape(shape)


@functools.cache
def fashion_data(split: Split) -> tuple[Tensor, Tensor]:
    """Return images [n, 1, 28, 28], float32 in [-1, 1], and classes [n], 0 to 9; n is 60,000 or 10,000."""
    folder = fashion_folder()
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    return images.unsqueeze(1).float() / 127.5 - 1, labels.long()


def calibration_images() -> Tensor:
    """Return training images, [128, 1, 28, 28]; they come in random order."""
    return fashion_data("train")[0][:CALIBRATION]


def load(name: str) -> nn.Module:
    """Build the "cnn" or the "vit" with its trained weights, kept as float16 and computed with as float32."""
    model = NETWORKS[name]()
    with np.load(WEIGHTS / f"{name}.npz") as arrays:
        model.load_state_dict({key: torch.from_numpy(arrays[key]) for key in arrays})
    return model.eval()


def evaluate(model: Callable[..., Any], count: int | None = None) -> float:
    """Return the top-1 accuracy on the test images, or on the first `count` of them."""
    images, labels = fashion_data("t10k")
    with torch.no_grad():
        predicted = torch.cat([output_tensors(model(batch))[0].argmax(1) for batch in batches(images[:count], 100)])
    return (predicted == labels[:count]).double().mean().item()


def fashion_model(name: str) -> RealModel:
    """Describe one of the two models."""
    return RealModel(
        name=f"fashion_{name}",
        build=functools.partial(load, name),
        inputs=lambda batch: (take(calibration_images(), batch),),
        dynamic="batch",
        calibration=lambda: [(batch,) for batch in batches(calibration_images(), BATCH)],
        evaluate=evaluate,
        metric="top-1 accuracy",
        data=f"10,000 test images of Fashion-MNIST; calibrated on {CALIBRATION} training images",
    )


FASHION = tuple(fashion_model(name) for name in NETWORKS)
