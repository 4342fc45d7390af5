"""dynamic_lstm: one layer of an LSTM with int8 weights, whose inputs get their uint8 range anew on every run.

The arithmetic is that of onnxruntime's DynamicQuantizeLSTM on one thread, bit for bit. With q(·) one uint8 quantization
of a whole tensor (dynamic_quantize) and ⊙ the product of elements:

    (i, f, g, o) = q(x)·Wᵀ + q(h)·Rᵀ + b      the products exact in integers, then one rounding to float32 for each
    c' = σ(f)⊙c + σ(i)⊙tanh(g),  h' = σ(o)⊙tanh(c')                       factor, sum and function

All steps of x are quantized as one tensor, the states h of all sequences as one tensor a step. (With several threads,
onnxruntime shares a batch out among them and quantizes each share by itself, which moves the result by less than the
quantization does.) In float64 the functions are torch's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxopt.graph import logistic
from fxopt.graph.ops import dynamic_quantize

States = tuple[Tensor, Tensor]


@torch.library.custom_op(
    "fxopt::dynamic_lstm",
    mutates_args=(),
    schema="(Tensor input, Tensor? hidden, Tensor? cell, Tensor weight_ih, Tensor weight_hh, Tensor scale_ih, "
    "Tensor scale_hh, Tensor? bias) -> (Tensor, Tensor, Tensor)",
)
def _dynamic_lstm(
    input: Tensor,
    hidden: Tensor | None,
    cell: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    scale_ih: Tensor,
    scale_hh: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    zeros = input.new_zeros([weight_ih.shape[0], input.shape[1], weight_hh.shape[2]])
    first = (zeros if hidden is None else hidden, zeros if cell is None else cell)
    sequences, lasts = [], []
    for direction in range(weight_ih.shape[0]):
        product = _scaled_product(input.flatten(0, 1), weight_ih[direction].double().t(), scale_ih[direction])
        gates = product.reshape([*input.shape[:2], product.shape[-1]])
        weights = (weight_hh[direction].double().t(), scale_hh[direction], None if bias is None else bias[direction])
        sequence, last = _run(
            gates.flip(0) if direction else gates, (first[0][direction], first[1][direction]), weights
        )
        sequences.append(sequence.flip(0) if direction else sequence)
        lasts.append(last)
    return torch.cat(sequences, -1), torch.stack([h for h, _ in lasts]), torch.stack([c for _, c in lasts])


@_dynamic_lstm.register_fake
def _(
    input: Tensor,
    hidden: Tensor | None,
    cell: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    scale_ih: Tensor,
    scale_hh: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    directions, _, units = weight_hh.shape
    last = input.new_empty([directions, input.shape[1], units])
    return input.new_empty([*input.shape[:2], directions * units]), last, torch.empty_like(last)


def _run(gates: Tensor, states: States, weights: tuple[Tensor, Tensor, Tensor | None]) -> tuple[Tensor, States]:
    """Run over all steps of one direction, given the inputs' part of the gates [time, batch, 4·units]."""
    h, c = states
    weight, scale, bias = weights
    sigmoid, tanh = (logistic.logistic, logistic.tanh) if gates.dtype is torch.float32 else (torch.sigmoid, torch.tanh)
    outputs = []
    for step in gates:
        total = step + _scaled_product(h, weight, scale)
        i, f, g, o = (total if bias is None else total + bias).chunk(4, -1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = tanh(c) * sigmoid(o)
        outputs.append(h)
    return torch.stack(outputs) if outputs else gates.new_empty([0, *h.shape]), (h, c)


def _scaled_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Return q(x)·W, given the integers W [inputs, 4·units] as float64, in which the product is exact."""
    q, step, zero_point = dynamic_quantize(x)
    result: Tensor = ((q.double() - zero_point.double()) @ weight).to(x.dtype) * (step * scale)
    return result


# x[T, B, I], h and c [D, B, H] or None (zeros), int8 [D, 4H, I] and [D, 4H, H] with a scale for each of their rows
# [D, 4H], bias [D, 4H] or None -> x[T, B, D·H], h[D, B, H], c[D, B, H]. Gates lie in torch's order: i, f, g, o.
dynamic_lstm = torch.ops.fxopt.dynamic_lstm.default
