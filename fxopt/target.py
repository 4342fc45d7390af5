"""Targets: what a runtime runs fast, as data.

The rows come from measurements of onnxruntime's fusions (docs/benchmarks.md): which dtype pair has fast kernels,
which channel counts they take, and which ops may be integer at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from fxopt.errors import TargetError


@dataclass(frozen=True)
class Target:
    """One runtime on one kind of machine.

    - `activation`, `weight`: the dtypes of integer activations and weights.
    - `contrib_ops`: whether onnxruntime's com.microsoft ops may be emitted.
    - `attention`: whether a whole scaled_dot_product_attention is worth opset 23's Attention op.
    - `session`: onnxruntime session options under which its fusions hold (on this machine, for checking).
    """

    name: str
    activation: torch.dtype
    weight: torch.dtype
    contrib_ops: bool
    attention: bool
    session: Mapping[str, str] = field(default_factory=dict)


TARGETS: dict[str, Target] = {
    "x86": Target("x86", torch.uint8, torch.int8, contrib_ops=True, attention=True),
    "arm64": Target(
        "arm64", torch.int8, torch.int8, contrib_ops=True, attention=True, session={"session.qdqisint8allowed": "1"}
    ),
    "portable": Target("portable", torch.uint8, torch.int8, contrib_ops=False, attention=False),
}
OPSETS = range(18, 24)


def find_target(target: str | Target) -> Target:
    """Return the Target of a name. Raises TargetError, with the names there are."""
    if isinstance(target, Target):
        return target
    if target not in TARGETS:
        raise TargetError(f"There is no target '{target}'. Choose one of {', '.join(TARGETS)}.")
    return TARGETS[target]
