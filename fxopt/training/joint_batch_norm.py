"""Batch norm in training over several processes: the statistics are those of the joint batch.

Ioffe and Szegedy 2015, "Batch Normalization", algorithm 1, with sums over all processes; gradients go through them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit

aten = torch.ops.aten


def with_joint_statistics(program: Program) -> Program:
    """Return the Program with the batch norms that are in training mode reading all processes' batches."""
    edit = Edit(program, by=None)
    for node in edit.calls(aten.batch_norm.default):
        if node.args[5]:
            node.target = joint_batch_norm
    return edit.finish()


def joint_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Normalise x [batch, channels, ...] as aten.batch_norm does in training, by what all processes have."""
    rest = [dim for dim in range(x.ndim) if dim != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    values = x.float()
    count = _sum_over_processes(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
    mean = _sum_over_processes(values.sum(rest)) / count
    centered = values - mean.reshape(shape)
    var = _sum_over_processes(centered.square().sum(rest)) / count
    if running_mean is not None and running_var is not None:
        with torch.no_grad():  # the running variance is the unbiased one
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * count / (count - 1)).to(running_var.dtype), momentum)
    result = centered * (var + eps).rsqrt().reshape(shape)
    if weight is not None:
        result = result * weight.reshape(shape)
    if bias is not None:
        result = result + bias.reshape(shape)
    return result.to(x.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; so is the gradient, since each process reads all of it."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


def _sum_over_processes(value: Tensor) -> Tensor:
    result: Tensor = _SumOverProcesses.apply(value)  # type: ignore[no-untyped-call]
    return result
