"""Rounding with error feedback: each column's rounding error is made up for by the columns after it.

    W[:, j+1:] −= (W[:, j] − Ŵ[:, j]) / U[j, j] · U[j, j+1:]        U: the upper Cholesky factor of (H + damping)⁻¹

with H = E[x xᵀ] of the layer's inputs: the error Σ‖(W − Ŵ)x‖² of the layer's output falls, though that of the weights
rises. (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
algorithm 1, with lazy updates in blocks of columns.) Then each column is rounded anew to what is best while all others
stay as they are, SWEEPS times over (coordinate descent): the first did not know what the last could make up for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Of the columns [N, g] from a group's start on: scale and zero point, [N] each.
Grid = Callable[[Tensor, int], tuple[Tensor, Tensor]]
COLUMNS = 128  # rounded before the columns after them are updated
ATTEMPTS = 8
SWEEPS = 2


def round_with_feedback(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    limits: tuple[int, int],
    *,
    group: int,
    damping: float,
    ordered: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Round weight[N, K] to whole steps; returns them as floats [N, K], and scale and zero point, [N, groups] each.

    - `hessian`: [K, K], the mean of x xᵀ. `damping`: what share of its mean diagonal is added to the diagonal.
    - `grid(columns, start)`: the grid of the group that starts at column `start`; it sees the weights with the errors
      so far made up for, or with `ordered` as they were.
    - `limits`: the smallest and largest step. `group`: how many columns share a grid; a divisor of 128, or all.
    - `ordered`: round the columns with the largest inputs first, while all others can still make up for them.
    """
    size = weight.shape[1]
    grids = {start: grid(weight[:, start : start + group], start) for start in range(0, size, group)} if ordered else {}
    order = hessian.diagonal().argsort(descending=True) if ordered else torch.arange(size)
    rest = weight[:, order].float()
    factor = _factor(hessian[order][:, order], damping)
    result = torch.empty_like(rest)
    for start in range(0, size, COLUMNS):
        end = min(start + COLUMNS, size)
        errors = torch.empty(len(rest), end - start)
        for position, column in enumerate(range(start, end)):
            source = int(order[column])
            first = source // group * group
            if first not in grids:
                grids[first] = grid(rest[:, first : first + group], first)
            scale, zero = grids[first]
            value = rest[:, column]
            steps = torch.round(value / scale).add_(zero).clamp_(*limits)
            error = (value - (steps - zero) * scale) / factor[column, column]
            rest[:, column:end].addr_(error, factor[column, column:end], alpha=-1)
            result[:, source], errors[:, position] = steps, error
        rest[:, end:].addmm_(errors, factor[start:end, end:], alpha=-1)
    starts = range(0, size, group)
    scales, zeros = (torch.stack([grids[start][index] for start in starts], 1) for index in range(2))
    _descend(weight.float(), hessian, result, (scales, zeros), limits, group, damping)
    return result, scales, zeros


def _descend(
    weight: Tensor,
    hessian: Tensor,
    steps: Tensor,
    grids: tuple[Tensor, Tensor],
    limits: tuple[int, int],
    group: int,
    damping: float,
) -> None:
    """Change steps[N, K] in place, a column at a time, to those with the least output error given the other columns."""
    scales, zeros = (value.repeat_interleave(group, 1)[:, : weight.shape[1]] for value in grids)
    matrix = hessian.clone()
    matrix.diagonal().add_(damping * matrix.diagonal().mean() + torch.finfo(matrix.dtype).tiny)
    errors = (steps - zeros) * scales - weight
    for start in [*range(0, weight.shape[1], COLUMNS)] * SWEEPS:
        end = min(start + COLUMNS, weight.shape[1])
        slopes = errors @ matrix[:, start:end]
        for column in range(start, end):
            scale, zero = scales[:, column], zeros[:, column]
            best = weight[:, column] + errors[:, column] - slopes[:, column - start] / matrix[column, column]
            found = torch.round(best / scale).add_(zero).clamp_(*limits)
            error = (found - zero) * scale - weight[:, column]
            slopes.addr_(error - errors[:, column], matrix[column, start:end])
            errors[:, column], steps[:, column] = error, found


def _factor(hessian: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of the inverse of a damped matrix; more damping where it is near singular."""
    matrix = hessian.double()
    mean = float(matrix.diagonal().mean())
    matrix.diagonal()[matrix.diagonal() <= 0] = mean or 1.0  # inputs that are always zero: any rounding will do
    for attempt in range(ATTEMPTS):
        damped = matrix + torch.eye(len(matrix), dtype=matrix.dtype) * (damping * 10**attempt * (mean or 1.0))
        lower, info = torch.linalg.cholesky_ex(damped)
        if int(info) == 0:
            upper, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if int(info) == 0:
                factor: Tensor = upper.float()
                return factor
    return torch.eye(len(matrix))  # only for a matrix with huge outliers; plain rounding then


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """Return E[(d·x)²] of each row d of a weight difference [N, K]: how much of it reaches the layer's output."""
    error: Tensor = (difference @ hessian * difference).sum(1)
    return error
