"""Make torchvision importable beside a torch build that cannot load torchvision's compiled operators.

torchvision registers shape functions for `nms` and `qnms` while it is imported, which fails if nothing has declared the
two. No classification or segmentation model calls them, so a declaration without a kernel is enough.
"""

import functools
from importlib.util import find_spec
from pathlib import Path

import torch

NMS_ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache  # also keeps the library alive: a declaration lives only as long as its library
def declare_torchvision_ops() -> torch.library.Library | None:
    """Declare torchvision's `nms` and `qnms` where its own library is absent; call before importing torchvision.

    timm and transformers import torchvision, so call it before those too. Does nothing, and returns None, where
    torchvision is not installed or brings operators that load.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None or _loads_own_ops(Path(spec.origin).parent):
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(name + NMS_ARGUMENTS)  # type: ignore[no-untyped-call]
    return library


def _loads_own_ops(package: Path) -> bool:
    """Load torchvision's compiled operators, from its package folder; False if there are none for this torch."""
    for extension in (*package.glob("_C*.so"), *package.glob("_C*.pyd")):
        try:
            torch.ops.load_library(extension)  # type: ignore[no-untyped-call]
        except OSError:
            continue
        return True
    return False
