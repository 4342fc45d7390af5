"""Images with the statistics of photographs: smooth at large scales, a few edges, never white noise."""

import torch
from torch import Tensor
from torch.nn import functional

LIMIT = 2.0  # about where ImageNet's normalisation puts black and white
FIELD_CELLS = (2, 4, 8, 16)  # cells a side of the random fields that are summed
BLOBS = 4


def structured_images(batch: int, channels: int, height: int, width: int, seed: int) -> Tensor:
    """Draw (batch, channels, height, width) float32 images in [-2, 2].

    Each is a sum of smooth random fields, whose amplitude falls with their frequency, soft blobs and one sharp-edged
    rectangle. Image i depends on `seed` and i only, so a smaller batch is the beginning of a larger one.
    """
    return torch.stack([_image(channels, height, width, seed * 100_003 + index) for index in range(batch)])


def image_inputs(batch: int, size: int, seed: int) -> tuple[Tensor, ...]:
    """Give a model of square colour images its one positional argument, (batch, 3, size, size)."""
    return (structured_images(batch, 3, size, size, seed=seed),)


def _image(channels: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image: Tensor = 0.6 * torch.randn(channels, 1, 1, generator=generator).expand(channels, height, width)
    for cells in FIELD_CELLS:
        field = torch.randn(1, channels, cells, cells, generator=generator)
        smooth = functional.interpolate(field, size=(height, width), mode="bicubic", align_corners=True)[0]
        image = image + smooth * (1.2 / cells**0.5)
    down = torch.linspace(0, 1, height)[:, None]
    right = torch.linspace(0, 1, width)[None, :]
    for _ in range(BLOBS):
        y, x, radius = torch.rand(3, generator=generator)
        blob = torch.exp(-((down - y) ** 2 + (right - x) ** 2) / (0.02 + 0.05 * radius))
        image = image + blob * torch.randn(channels, 1, 1, generator=generator)
    top, left = 0.7 * torch.rand(2, generator=generator)
    inside = (down > top) & (down < top + 0.3) & (right > left) & (right < left + 0.3)
    image = image + inside * torch.randn(channels, 1, 1, generator=generator)
    return image.clamp(-LIMIT, LIMIT)
