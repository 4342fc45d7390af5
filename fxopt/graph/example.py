"""Example inputs of a Program, made from its specs."""

from __future__ import annotations

import torch
from torch import Tensor

from fxopt.graph.program import Program


def example_of(program: Program) -> tuple[Tensor, ...]:
    """Make example inputs from the specs: normal values for floats, 0 and 1 for integers; 2 for dynamic sizes."""
    generator = torch.Generator().manual_seed(0)
    result = []
    for spec, node in zip(program.inputs, program.placeholders, strict=True):
        shape = [size if isinstance(size, int) else int(size.node.hint or 2) for size in node.meta["val"].shape]
        if spec.dtype.is_floating_point:
            result.append(torch.randn(shape, generator=generator).to(spec.dtype))
        else:
            result.append(torch.randint(0, 2, shape, generator=generator).to(spec.dtype))
    return tuple(result)
