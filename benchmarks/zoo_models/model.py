"""What one model of a zoo is: how to build it, and which inputs it takes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...] | dict[str, Tensor]  # positional arguments, or keyword arguments


@dataclass(frozen=True)
class ZooModel:
    """One architecture with random weights, built locally.

    Attributes:
        name: Unique in its suite.
        family: What the model stands for: a timm module, a transformers model type, a kind of recurrent network.
        build: Returns the float32 model in eval mode; the same weights in every process.
        inputs: Batch size -> example inputs; the same values in every call.
        dynamic: "batch", or for every input its named dimensions: {"input_ids": {0: "batch", 1: "sequence"}}; a
            positional input goes by the name of `forward`'s argument.
        other_inputs: Batch size -> inputs of the same structure with other values, and of other lengths along every
            dynamic dimension but the batch.
        is_cnn: Whether convolutions do most of the work.
    """

    name: str
    family: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[int], Inputs]
    dynamic: str | dict[str, dict[int, str]]
    other_inputs: Callable[[int], Inputs]
    is_cnn: bool
