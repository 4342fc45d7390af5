"""The processes that train together: what `accelerate launch` or `torchrun` has started, one otherwise."""

from __future__ import annotations

from typing import Any

import torch

from fxopt.errors import TrainingError
from fxopt.graph.program import Program


def accelerator_for(program: Program) -> Any:
    """Return the Accelerator to train a Program with: on the CPU, unless its tensors are elsewhere.

    Raises TrainingError if accelerate is not installed, or was set up otherwise in this process.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise TrainingError(f'Training needs accelerate ({error}); run: pip install "fxopt[train]"') from None
    devices = {tensor.device.type for tensor in program.module.parameters()}
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
    try:
        # what is autocast and accumulated is the loop's own business
        return Accelerator(mixed_precision="no", cpu=devices <= {"cpu"}, kwargs_handlers=[ddp])
    except ValueError as error:
        raise TrainingError(f"This process has set up accelerate in another way: {error}") from None


def device_of(program: Program) -> torch.device:
    """Return the device that a Program's parameters are on."""
    return next((value.device for value in program.module.parameters()), torch.device("cpu"))
