"""Give an untrained model weights and statistics under which every layer matters to the output.

Training recipes start many parameters at exactly zero or one (residual gains, layer scales, classifiers), and BatchNorm
starts with mean 0 and variance 1. Left so, whole branches vanish, and wrong folding or quantization goes unseen. Many
transformers start with weights so small that their attention is uniform and all inputs give the same logits.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.zoo_models.images import image_inputs

TINY = 0.1  # constant gains up to this (layer scales start at 1e-6 to 0.1) all but switch their branch off


def seeded(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Build a model with seed 0, leave no parameter at a degenerate start value, and return it in eval mode."""
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _spread(name.rpartition(".")[2], parameter)
    return model


def _spread(name: str, parameter: Tensor) -> None:
    """Give a constant zero, one or tiny parameter random values of a usual size; widen a much too narrow weight."""
    if parameter.numel() < 2 or not parameter.is_floating_point():
        return
    low, high = (float(value) for value in parameter.aminmax())
    per_channel = parameter.numel() == max(parameter.shape)
    unit_gain = (parameter.shape[0] / parameter.numel()) ** 0.5  # 1 / sqrt(fan-in)
    if low != high:
        if name.endswith("weight") and not per_channel and float(parameter.std()) < 0.6 * unit_gain:
            parameter.mul_(
                unit_gain / parameter.std()
            )  # attention would be uniform, and logits the same for all inputs
    elif low == 1 and per_channel:
        parameter.uniform_(0.8, 1.2)
    elif low == 0 and per_channel and "bias" in name:
        parameter.normal_(0, 0.1)
    elif low == 0 and not per_channel and name.endswith("weight"):
        parameter.normal_(0, unit_gain)
    elif abs(low) <= TINY:
        parameter.uniform_(0.3, 0.7)


def calibrate_batch_norm(model: torch.nn.Module, batches: Sequence[tuple[Tensor, ...]]) -> torch.nn.Module:
    """Set the statistics of every BatchNorm to the mean over training-mode passes on `batches`; return the model.

    Only the BatchNorms are in training mode meanwhile: dropout stays off, and so do auxiliary outputs.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the passes: converged by definition
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return model


def prepared_image_model(build: Callable[[], torch.nn.Module], size: int) -> torch.nn.Module:
    """Build a model of (batch, 3, size, size) images with seed 0 and BatchNorm statistics of structured images."""
    batch, passes = (8, 3) if size <= 128 else (4, 2)
    batches = [image_inputs(batch, size, seed=1000 + index) for index in range(passes)]
    return calibrate_batch_norm(seeded(build), batches)
