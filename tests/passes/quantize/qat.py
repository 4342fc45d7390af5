"""A few steps of training for quantized Programs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.graph.capture import capture
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import Calibrate, InsertObservers, Scheme


def calibrated(module: nn.Module, x: Tensor, scheme: Scheme | None = None, target: str = "x86") -> Program:
    """Capture a module with a dynamic batch and put its values and weights on a grid; the weights are its own."""
    calibrate = Calibrate([x], target=target, scheme=scheme or Scheme())
    return Pipeline((*CLEANUP, InsertObservers(target), calibrate))(capture(module.eval(), x, dynamic="batch"))


def train(program: Program, x: Tensor, steps: int = 3, rate: float = 0.02, seed: int = 0) -> list[float]:
    """Train all parameters, in place, towards random outputs; returns the losses."""
    module = program.train().module
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    with torch.no_grad():
        goal = module(x)[0]
    goal = goal + goal.std() * torch.randn(goal.shape, generator=torch.Generator().manual_seed(seed))
    losses = []
    for _ in range(steps):
        loss = functional.mse_loss(module(x)[0], goal)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def learned(program: Program) -> dict[str, Tensor]:
    """Return what LearnScales added, by name."""
    return {name: value for name, value in program.module.named_parameters() if name.endswith(("_log2", "_shift"))}


def attribute(program: Program, name: str) -> Tensor:
    """Return a tensor of a Program by its dotted name."""
    value = get_attribute(program.module, name)
    assert isinstance(value, Tensor)
    return value
