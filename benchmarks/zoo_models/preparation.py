"""Give an untrained model weights and statistics under which every layer matters to the output.

Training recipes start many parameters at exactly zero or one (residual gains, layer scales, classifiers), and BatchNorm
starts with mean 0 and variance 1. Left so, whole branches vanish, and wrong folding or quantization goes unseen. Many
transformers start with weights so small that their attention is uniform and all inputs give the same logits.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from benchmarks.zoo_models.images import image_inputs

TINY = 0.1  # constant gains up to this (layer scales start at 1e-6 to 0.1) all but switch their branch off
# Of BatchNorm: mean gain, deviation of the offsets; from lively to calm.
GAINS_AND_OFFSETS = ((1.0, 0.3), (1.0, 0.0), (0.6, 1.0), (0.35, 1.0))
VARIANCE_FLOOR = 0.02  # least variance of a channel, as a part of its layer's mean variance
EVEN = 3.0  # largest over median distance of outputs from the median output: no more is asked than this
GOOD_SCORE = 0.04

STABLE_ERROR = 1e-5  # of the output's range, float32 against float64
STABILITY_SAMPLES = 3
UNSTABLE = 0.01  # what the score of unstable settings is multiplied by


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


def calibrate_batch_norm(
    model: torch.nn.Module, batch: tuple[Tensor, ...], fresh: tuple[Tensor, ...]
) -> torch.nn.Module:
    """Give every BatchNorm random gains and the statistics of `batch`, such that `fresh` inputs do well too.

    Through a hundred layers of SiLU and the like, a random network amplifies whatever is larger than usual: in the end
    one input in ten has all the variance, and a new one may be a thousand times as large. Low gains and large offsets
    calm it, and make it deaf if they go too far. So several are tried, until the outputs of the fresh inputs vary well.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return model
    scores = []
    for gain, offset in GAINS_AND_OFFSETS:
        _set_batch_norms(model, norms, gain, offset, batch)
        scores.append(_variation_score(model, fresh))
        if not _is_stable(model, fresh):
            scores[-1] *= UNSTABLE
            continue
        if scores[-1] >= GOOD_SCORE:
            return model
    _set_batch_norms(model, norms, *GAINS_AND_OFFSETS[scores.index(max(scores))], batch)
    return model


@torch.no_grad()
def _set_batch_norms(
    model: torch.nn.Module, norms: Sequence[_BatchNorm], gain: float, offset: float, batch: tuple[Tensor, ...]
) -> None:
    """Draw the norms' parameters, and set their statistics in one training-mode pass over one large batch.

    One pass, since means over several passes belong to none of them. Only the norms are in training mode: dropout stays
    off, and so do auxiliary outputs.
    """
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if norm.affine:
            norm.weight.uniform_(0.7 * gain, 1.3 * gain)
            norm.bias.normal_(0, offset)
        norm.reset_running_stats()
        norm.momentum = 1.0  # keep nothing of the start values
        norm.train()
    model(*batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:  # a channel dead in this batch must not come to life a thousandfold in another
            norm.running_var.clamp_(min=float(norm.running_var.mean()) * VARIANCE_FLOOR)
        norm.eval()


@torch.no_grad()
def _is_stable(model: torch.nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Say whether float32 is exact enough for a model: to 1e-5 of the range its outputs are what they are in float64.

    A hundred random layers may amplify rounding errors so much that two right implementations differ visibly.
    """
    few = [tensor[:STABILITY_SAMPLES] for tensor in inputs]
    narrow = _largest_output(model(*few))
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in few]
    try:
        exact = _largest_output(model.double()(*wide))
    finally:
        model.float()
    spread = float(exact.max() - exact.min())
    return float((narrow - exact).abs().max()) <= STABLE_ERROR * spread


def _largest_output(outputs: object) -> Tensor:
    return max((leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)), key=Tensor.numel)


@torch.no_grad()
def _variation_score(model: torch.nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Measure how much the output depends on the input, relative to its size, less if that is due to few inputs."""
    output = _largest_output(model(*inputs)).flatten(1)
    middle = output.median(dim=0).values
    distances = (output - middle).norm(dim=1)
    typical, largest = float(distances.median()), float(distances.max())
    if not (typical > 0 and largest < float("inf")):  # NaN, too
        return 0.0
    return typical / float(middle.norm()) / max(EVEN, largest / typical)


def prepared_image_model(build: Callable[[], torch.nn.Module], size: int) -> torch.nn.Module:
    """Build a model of (batch, 3, size, size) images with seed 0 and BatchNorm statistics of structured images."""
    batch = 32 if size <= 128 else 8
    return calibrate_batch_norm(
        seeded(build), image_inputs(batch, size, seed=1000), image_inputs(batch, size, seed=2000)
    )
