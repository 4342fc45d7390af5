"""Rounding with error feedback: each column's rounding error is made up for by the columns after it.

    W[:, j+1:] −= (W[:, j] − Ŵ[:, j]) / U[j, j] · U[j, j+1:]        U: the upper Cholesky factor of (H + damping)⁻¹

with H = E[x xᵀ] of the layer's inputs: the error Σ‖(W − Ŵ)x‖² of the layer's output falls, though that of the weights
rises. (Frantar et al. 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
algorithm 1, with lazy updates in blocks of columns.) On a coarse grid each column is then rounded anew to what is best
while all others stay as they are, SWEEPS times over (coordinate descent): the first did not know what the last could
make up for. With 7 or 8 bits that took a third of the time and moved outputs by less than a few samples can tell.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Of the columns [N, g] from a group's start on: scale and zero point, [N] each.
Grid = Callable[[Tensor, int], tuple[Tensor, Tensor]]
COLUMNS = 128  # rounded before the columns after them are updated
ATTEMPTS = 8
SWEEPS, COARSE = 2, 100  # times over, on grids of fewer steps


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

    - `hessian`: [K, K], the mean of x xᵀ; or [G, K, K], one for every N / G rows. `damping`: what share of its mean
      diagonal is added to the diagonal.
    - `grid(columns, start)`: the grid of the group that starts at column `start`; it sees the weights with the errors
      so far made up for, or with `ordered` as they were.
    - `limits`: the smallest and largest step. `group`: how many columns share a grid; a divisor of 128, or all.
    - `ordered`: round the columns with the largest inputs first, while all others can still make up for them; with a
      single `hessian`.
    """
    size = weight.shape[1]
    grids = {start: grid(weight[:, start : start + group], start) for start in range(0, size, group)} if ordered else {}
    matrices = hessian.reshape(-1, size, size)
    order = hessian.diagonal().argsort(descending=True) if ordered else torch.arange(size)
    rest = _columns(weight[:, order].float(), len(matrices))
    factor = _factors(matrices[:, order][:, :, order] if ordered else matrices, damping)
    result = torch.empty_like(rest)
    for start in range(0, size, COLUMNS):
        end = min(start + COLUMNS, size)
        errors = torch.empty_like(rest[:, start:end])
        for position, column in enumerate(range(start, end)):
            source = int(order[column])
            first = source // group * group
            if first not in grids:
                grids[first] = grid(_rows(rest[:, first : first + group]), first)
            scale, zero = (value.view(len(matrices), -1) for value in grids[first])
            value = rest[:, column]
            steps = torch.round(value / scale).add_(zero).clamp_(*limits)
            error = (value - (steps - zero) * scale) / factor[:, column, column, None]
            rest[:, column:end].baddbmm_(factor[:, column, column:end, None], error[:, None], alpha=-1)
            result[:, source], errors[:, position] = steps, error
        rest[:, end:].baddbmm_(factor[:, start:end, end:].mT, errors, alpha=-1)
    del rest, factor
    starts = range(0, size, group)
    scales, zeros = (torch.stack([grids[start][index] for start in starts], 1) for index in range(2))
    if limits[1] - limits[0] < COARSE:
        _descend(_columns(weight.float(), len(matrices)), matrices, result, (scales, zeros), limits, group, damping)
    return _rows(result), scales, zeros


def _columns(rows: Tensor, count: int) -> Tensor:
    """Lay rows [N, K] out column by column, [G, K, N / G]: what is done is done to whole columns."""
    return rows.reshape(count, -1, rows.shape[1]).mT.contiguous()


def _rows(columns: Tensor) -> Tensor:
    return columns.mT.flatten(0, 1)


def _descend(
    weight: Tensor,
    hessians: Tensor,
    steps: Tensor,
    grids: tuple[Tensor, Tensor],
    limits: tuple[int, int],
    group: int,
    damping: float,
) -> None:
    """Change steps[G, K, n] in place, a column at a time, to those with the least output error given the others."""
    size = weight.shape[1]
    scales, zeros = (_columns(grid.repeat_interleave(group, 1)[:, :size], len(hessians)) for grid in grids)
    matrices = hessians.clone()
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    diagonal.add_(damping * diagonal.mean(1, keepdim=True) + torch.finfo(matrices.dtype).tiny)
    low, high = limits[0] - zeros, limits[1] - zeros
    rounded = (steps - zeros) * scales
    errors = rounded - weight
    for start in [*range(0, size, COLUMNS)] * SWEEPS:
        end = min(start + COLUMNS, size)
        slopes = matrices[:, start:end] @ errors
        for column in range(start, end):
            before = rounded[:, column]
            best = before - slopes[:, column - start] / diagonal[:, column, None]
            found = (best / scales[:, column]).round_().clamp_(low[:, column], high[:, column]) * scales[:, column]
            slopes.baddbmm_(matrices[:, start:end, column, None], (found - before)[:, None])
            rounded[:, column] = found
        torch.sub(rounded[:, start:end], weight[:, start:end], out=errors[:, start:end])
    steps.copy_((rounded / scales).round_().add_(zeros))


def _factors(hessians: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factors U of inverses of damped matrices, (H + damping)⁻¹ = Uᵀ U.

    Near singular ones are damped more. H, with its rows and columns reversed, is L Lᵀ; so U is the inverse of L, that
    way reversed again.
    """
    matrices = hessians.double()
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1)
    mean = torch.where(mean > 0, mean, 1.0)
    diagonal.copy_(torch.where(diagonal > 0, diagonal, mean[:, None]))  # always zero inputs: any rounding will do
    unit = torch.eye(hessians.shape[1], dtype=matrices.dtype)
    result = unit.float().repeat(len(matrices), 1, 1)  # only for a matrix with huge outliers; plain rounding then
    left = torch.arange(len(matrices))
    for attempt in range(ATTEMPTS):
        damped = matrices[left].flip(1, 2)
        damped.diagonal(dim1=1, dim2=2).add_(damping * 10**attempt * mean[left, None])
        lower, info = torch.linalg.cholesky_ex(damped)
        del damped  # each of these takes twice the memory of the layer's matrix
        good = info == 0
        lower = lower[good].flip(1, 2)
        result[left[good]] = torch.linalg.solve_triangular(lower, unit, upper=True).float()
        left = left[~good]
        if not len(left):
            break
    return result


def output_error(difference: Tensor, hessian: Tensor) -> Tensor:
    """Return E[(d·x)²] of each row d of a weight difference [N, K]: how much of it reaches the layer's output.

    `hessian`: as for round_with_feedback.
    """
    rows = difference.reshape(len(hessian) if hessian.ndim == 3 else 1, -1, difference.shape[1])
    error: Tensor = (rows @ hessian * rows).sum(2).flatten()
    return error
