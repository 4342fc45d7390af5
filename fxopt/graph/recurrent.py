"""Recurrent ops stay whole for fake tensors: their shapes are stated here instead of found by running every step.

torch computes lstm, gru and rnn on fake tensors by a Python loop over the time steps, which fixes the sequence length
and takes long. Inside `whole_recurrent_ops()` a call of one gives results of the right shape at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten
KEY = torch._C.DispatchKey.CompositeImplicitAutograd


def _sequence(input: Tensor, state: Tensor, bidirectional: bool) -> Tensor:
    """Return the results of all steps: [time, batch, features] (or batch first, like the input)."""
    features = state.shape[2] * (2 if bidirectional else 1)
    return input.new_empty([input.shape[0], input.shape[1], features])


def _lstm(
    input: Tensor, hx: Sequence[Tensor], params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    hidden, cell = hx
    return _sequence(input, hidden, bidirectional), torch.empty_like(hidden), torch.empty_like(cell)


def _gru(
    input: Tensor, hx: Tensor, params: Any, has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _sequence(input, hx, bidirectional), torch.empty_like(hx)


RECURRENT_SHAPES: dict[Any, Callable[..., tuple[Tensor, ...]]] = {
    aten.lstm.input: _lstm,
    aten.gru.input: _gru,
    aten.rnn_tanh.input: _gru,
    aten.rnn_relu.input: _gru,
}


@contextmanager
def whole_recurrent_ops() -> Iterator[None]:
    """Give recurrent ops their shape functions as kernels. Nothing real may be computed with them meanwhile."""
    before = {op: op.py_kernels.get(KEY) for op in RECURRENT_SHAPES}
    _install(RECURRENT_SHAPES)
    try:
        yield
    finally:
        _install(before)


def _install(kernels: dict[Any, Any]) -> None:
    for op, kernel in kernels.items():
        if kernel is None:
            op.py_kernels.pop(KEY, None)
        else:
            op.py_kernels[KEY] = kernel
        op._dispatch_cache.clear()
