"""The three networks of the MTCNN face detector, scored as face classifiers on labelled crops."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.real_models.model import Inputs, RealModel, batches, output_tensors, take
from benchmarks.real_models.packages import import_alone, package_folder
from benchmarks.zoo_models import shim

SIZES = {"PNet": 12, "RNet": 24, "ONet": 48}  # pixels on a side that each network classifies
ASTRONAUT_FACE = (105, 222, 85)  # centre row, centre column and width in pixels of the face in astronaut.png


def build(network: str) -> nn.Module:
    """Load one network: [n, 3, side, side] in [-1, 1] → box [n, 4], (landmarks [n, 10],) probabilities [n, 2]."""
    shim.declare_torchvision_ops()  # the module imports torchvision
    model: nn.Module = getattr(import_alone("facenet_pytorch.models.mtcnn"), network)()
    return model.eval()


def resized(images: Tensor, network: str) -> Tensor:
    """Turn grey images in [0, 1], [n, height, width], into the network's input, [n, 3, side, side] in [-1, 1]."""
    side = SIZES[network]
    images = functional.interpolate(images[:, None], (side, side), mode="bilinear", align_corners=False, antialias=True)
    return (images.expand(-1, 3, -1, -1) * 255 - 127.5) / 128


@functools.cache
def labelled_crops() -> tuple[Tensor, Tensor]:
    """Return the crops of scikit-image's lfw_subset, [200, 25, 25] in [0, 1], and whether each is a face, [200]."""
    import numpy as np

    crops = torch.from_numpy(np.load(package_folder("skimage") / "data" / "lfw_subset.npy")).float()
    return crops, torch.arange(len(crops)) < 100  # the file holds 100 faces, then 100 others


@functools.cache
def calibration_crops() -> Tensor:
    """Return crops of scikit-image's photos, half of them around the astronaut's face: [256, 25, 25] in [0, 1]."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    folder = package_folder("skimage") / "data"
    names = ["astronaut.png"] * 128 + [
        f"{name}.png" for name in ("chelsea", "coffee", "motorcycle_left", "camera")
    ] * 32
    photos = {name: Image.open(folder / name).convert("L") for name in set(names)}
    crops = []
    for index, name in enumerate(names):
        photo = photos[name]
        if index < 128:
            row, column, side = np.array(ASTRONAUT_FACE) + random.integers(-12, 13, 3)
            left, top = column - side / 2, row - side / 2
        else:
            side = random.integers(25, 200)
            left, top = random.integers(0, photo.width - side), random.integers(0, photo.height - side)
        crop = photo.resize((25, 25), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        crops.append(torch.from_numpy(np.array(crop)).float() / 255)
    return torch.stack(crops)[torch.from_numpy(random.permutation(len(crops)))]


def evaluate(network: str, model: Callable[..., Any]) -> float:
    """Return the accuracy of "face, or not" at probability 0.5."""
    crops, is_face = labelled_crops()
    with torch.no_grad():
        found = [
            output_tensors(model(batch))[-1].flatten(1)[:, 1] > 0.5 for batch in batches(resized(crops, network), 50)
        ]
    return (torch.cat(found) == is_face).float().mean().item()


def face_network(network: str) -> RealModel:
    """Describe one of the three networks."""

    def calibration() -> list[Inputs]:
        return [(batch,) for batch in batches(resized(calibration_crops(), network), 32)]

    return RealModel(
        name=f"mtcnn_{network.lower()}",
        build=functools.partial(build, network),
        inputs=lambda batch: (resized(take(calibration_crops(), batch), network),),
        dynamic="batch",
        calibration=calibration,
        evaluate=functools.partial(evaluate, network),
        metric="face / non-face accuracy",
        data="200 crops of lfw_subset (scikit-image), half of them faces; calibrated on 256 crops of its photos",
    )


FACE_NETWORKS = tuple(face_network(network) for network in SIZES)
