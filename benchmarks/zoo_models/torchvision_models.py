"""Every classification and segmentation model of torchvision, on small images.

Only the largest are shortened: a stage keeps its first blocks, so that every kind of block and every width stays.
"""

import functools
from collections.abc import Mapping

import torch

from benchmarks.zoo_models.images import image_inputs
from benchmarks.zoo_models.model import ZooModel
from benchmarks.zoo_models.preparation import prepared_image_model
from benchmarks.zoo_models.shim import declare_torchvision_ops

SIZE = 64
SIZES: Mapping[str, int] = {  # what the architecture dictates
    "alexnet": 224,  # its 6 × 6 adaptive pooling and its classifier are made for 224
    "inception_v3": 128,  # 75 at least
    "maxvit_t": 224,  # every stage is divided into 7 × 7 windows
    **{f"vgg{depth}{norm}": 224 for depth in (11, 13, 16, 19) for norm in ("", "_bn")},  # 7 × 7 adaptive pooling
    "vit_b_32": 96,
    "vit_l_32": 96,
    "vit_h_14": 56,
}
# Model -> {its torch.nn.Sequential: blocks kept}: what would have more than 400 MB of weights. VGG does, and is kept
# whole: three quarters are one linear layer, and there is no block to drop.
SHORTENED: Mapping[str, Mapping[str, int]] = {
    "convnext_large": {"features.5": 6},
    "efficientnet_v2_l": {"features.5": 8, "features.6": 10},
    "regnet_x_32gf": {"trunk_output.block3": 4},
    "regnet_y_32gf": {"trunk_output.block3": 4},
    "regnet_y_128gf": {"trunk_output.block2": 2, "trunk_output.block3": 1},
    "vit_h_14": {"encoder.layers": 4},
    "vit_l_16": {"encoder.layers": 6},
    "vit_l_32": {"encoder.layers": 6},
    "wide_resnet101_2": {"layer3": 10},
}
ATTENTION = ("vit_", "swin_", "maxvit_")


def torchvision_models() -> tuple[ZooModel, ...]:
    """List the classification models, then the segmentation models, each in torchvision's order."""
    declare_torchvision_ops()
    from torchvision import models

    classifiers = [_zoo_model(name, "classification") for name in models.list_models(module=models)]
    segmenters = [_zoo_model(name, "segmentation") for name in models.list_models(module=models.segmentation)]
    return (*classifiers, *segmenters)


def _zoo_model(name: str, family: str) -> ZooModel:
    size = SIZES.get(name, SIZE)
    return ZooModel(
        name=name,
        family=family,
        build=functools.partial(_build, name, family, size),
        inputs=functools.partial(image_inputs, size=size, seed=0),
        dynamic="batch",
        other_inputs=functools.partial(image_inputs, size=size, seed=1),
        is_cnn=not name.startswith(ATTENTION),
    )


def _build(name: str, family: str, size: int) -> torch.nn.Module:
    return prepared_image_model(functools.partial(_construct, name, family, size), size)


def _construct(name: str, family: str, size: int) -> torch.nn.Module:
    declare_torchvision_ops()
    from torchvision import models

    arguments: dict[str, object] = {"weights": None}
    if family == "segmentation":
        arguments["weights_backbone"] = None
    if name.startswith("vit_"):
        arguments["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        arguments["init_weights"] = True
    model: torch.nn.Module = models.get_model(name, **arguments)
    for path, kept in SHORTENED.get(name, {}).items():
        blocks = model.get_submodule(path)
        if not isinstance(blocks, torch.nn.Sequential) or len(blocks) <= kept:
            raise ValueError(f"{name}: {path} is no Sequential of more than {kept} blocks; torchvision has changed it")
        del blocks[kept:]
    return model
