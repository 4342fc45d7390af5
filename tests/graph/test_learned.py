"""learned_fake_quantize: the values of fake_quantize, the gradients of LSQ and LSQ+, and torch's rules for ops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxopt.graph.learned import FLOOR, learned_fake_quantize, learned_grid
from fxopt.graph.ops import fake_quantize

Grid = tuple[Tensor, Tensor, Tensor, Tensor | None]


def grid(axis: int | None, channels: int = 3, shift: bool = True) -> Grid:
    shape = [] if axis is None else [channels]
    return (
        torch.rand(shape) * 0.1 + 0.05,
        torch.full(shape, 6, dtype=torch.uint8),
        (torch.rand(shape) - 0.5).requires_grad_(),
        (0.2 * torch.rand(shape) - 0.1).requires_grad_() if shift else None,
    )


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("limits", [(0, 255), (-7, 7), (-128, 127), (0, 15)])
def test_it_gives_what_fake_quantize_gives_on_the_same_grid(axis: int | None, limits: tuple[int, int]) -> None:
    x = 5 * torch.randn(3, 4, 3)
    x.view(-1)[:8] = (torch.arange(8) - 3.5) * 0.25
    size = 3 if axis is None else x.shape[axis]
    values = grid(axis, size)
    step, zero = learned_grid(*values, *limits)
    assert zero.shape == step.shape and bool(((zero >= limits[0]) & (zero <= limits[1]) & (zero == zero.round())).all())
    expected = fake_quantize(x, step.detach(), zero.detach().int(), axis, *limits)
    assert torch.equal(learned_fake_quantize(x, *values, axis, *limits), expected)


def test_changes_of_zero_change_nothing() -> None:
    x, scale, zero = torch.randn(1000), torch.tensor(0.0371), torch.tensor(131, dtype=torch.uint8)
    untrained = learned_fake_quantize(x, scale, zero, torch.zeros(()), torch.zeros(()), None, 0, 255)
    assert torch.equal(untrained, fake_quantize(x, scale, zero, None, 0, 255))


def test_powers_of_two_stay_exact() -> None:
    scale, changes = torch.tensor(2.0**-4), torch.linspace(-12.4, 12.4, 249)
    found = torch.stack([learned_grid(scale, scale, change, None, 0, 255, True)[0] for change in changes])
    mantissa, exponent = torch.frexp(found)
    assert bool((mantissa == 0.5).all()) and torch.equal(exponent - 1 + 4, changes.round().int())


@pytest.mark.parametrize("change", [-1000.0, -100.0, 0.0, 100.0])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_scales_stay_positive_and_below_their_limit(change: float, power_of_two: bool) -> None:
    scale, _ = learned_grid(torch.tensor(0.25), torch.tensor(0), torch.tensor(change), None, 0, 255, power_of_two, 0.5)
    assert 0 < float(scale) <= 0.5


def test_gradients_by_hand() -> None:
    """Steps of 0.5 on [0, 15] with the zero point 4, that is values of -2 to 5.5; two are outside, two are rounded."""
    x = torch.tensor([-3.0, 0.6, 1.9, 7.0], requires_grad=True)
    change, shift = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
    y = learned_fake_quantize(x, torch.tensor(0.5), torch.tensor(4), change, shift, None, 0, 15)
    assert y.tolist() == [-2.0, 0.5, 2.0, 5.5]
    weights = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    (y * weights).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 10.0, 100.0, 0.0]
    factor = 1 / math.sqrt(4 * 15)
    of_scale = 1 * (0 - 4) + 10 * (1 - 1.2) + 100 * (4 - 3.8) + 1000 * (15 - 4)
    assert change.grad is not None and float(change.grad) == pytest.approx(factor * of_scale / (0.5 * math.log(2)))
    assert shift.grad is not None and float(shift.grad) == pytest.approx(factor * -(1 + 1000) / (0.5 * 15))


def smooth(x: Tensor, step: Tensor, zero: Tensor, rounding: Tensor, low: int, high: int) -> Tensor:
    """Fake quantization whose rounding errors do not change: what LSQ differentiates."""
    return (torch.clamp(x / step + rounding + zero, low, high) - zero) * step


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(0, 255), (0, 15), (-7, 7), (-8, 7)]), st.sampled_from([None, 0, 1]))
def test_gradients_are_those_of_the_smooth_parts(seed: int, limits: tuple[int, int], axis: int | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, high = limits
    x = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    size = [] if axis is None else [x.shape[axis]]
    scale = (torch.rand(size, generator=generator, dtype=torch.float64) + 0.1) * 3 / (high - low)
    zero = torch.randint(low, high + 1, size, generator=generator)
    upstream = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    change, shift = (torch.zeros(size, dtype=torch.float64, requires_grad=True) for _ in range(2))
    leaf = x.clone().requires_grad_()
    (learned_fake_quantize(leaf, scale, zero, change, shift, axis, low, high) * upstream).sum().backward()

    wide = scale if axis is None else scale.reshape([-1 if dim == axis else 1 for dim in range(2)])
    zeros = zero.double().reshape(wide.shape).requires_grad_()
    step, value = wide.clone().requires_grad_(), x.clone().requires_grad_()
    (smooth(value, step, zeros, (x / wide).round() - x / wide, low, high) * upstream).sum().backward()  # type: ignore[no-untyped-call]
    assert step.grad is not None and zeros.grad is not None and value.grad is not None
    factor = 1 / math.sqrt(x.numel() / scale.numel() * max(-low, high))
    floor = torch.maximum(scale, scale.max() * FLOOR)
    torch.testing.assert_close(leaf.grad, value.grad)
    torch.testing.assert_close(change.grad, factor * step.grad.reshape(scale.shape) / (floor * math.log(2)))
    torch.testing.assert_close(shift.grad, factor * zeros.grad.reshape(scale.shape) / scale / (floor * (high - low)))


def test_a_clipped_value_moves_with_the_ends_of_the_grid() -> None:
    """Outside, and but for LSQ's units, the gradients are true ones: finite differences of the op itself."""
    x = torch.tensor([-9.0, -8.0, 30.0], dtype=torch.float64)
    scale, zero = torch.tensor(0.1, dtype=torch.float64), torch.tensor(100)

    def total(change: float) -> Tensor:
        y = learned_fake_quantize(x, scale, zero, torch.tensor(change, dtype=torch.float64), None, None, 0, 200)
        result: Tensor = (y * torch.tensor([1.0, 2.0, 4.0])).sum()
        return result

    x[:2] = -11.0
    change = torch.zeros((), dtype=torch.float64, requires_grad=True)
    y = learned_fake_quantize(x, scale, zero, change, None, None, 0, 200)
    (y * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    slope = (total(1e-6) - total(-1e-6)) / 2e-6  # d/da
    units = (0.1 * math.log(2)) ** 2 * math.sqrt(3 * 200)  # the chain rule's ds/da against its inverse; the factor
    assert change.grad is not None and float(change.grad) * units == pytest.approx(float(slope), rel=1e-6)


def test_one_step_of_descent_changes_a_scale_as_lsq_does() -> None:
    x, scale, rate = torch.randn(500), torch.tensor(0.2), 1e-4
    change = torch.zeros((), requires_grad=True)
    (learned_fake_quantize(x, scale, torch.tensor(0), change, None, None, -7, 7) * x).sum().backward()
    assert change.grad is not None
    ours = 0.2 * 2 ** float(-rate * change.grad) - 0.2
    held = (x / 0.2).round().clamp(-7, 7)
    inside = held == (x / 0.2).round()
    theirs = -rate * float((x * (held - inside * x / 0.2)).sum()) / math.sqrt(500 * 7)
    assert ours == pytest.approx(theirs, rel=0.01)


def test_a_channel_of_tiny_weights_does_not_swamp_the_others() -> None:
    x = torch.tensor([[1.0, -1.0, 0.4], [1e-3, 1e-3, 1e-3]])
    scale = torch.tensor([0.2, 1e-20])
    change = torch.zeros(2, requires_grad=True)
    learned_fake_quantize(x, scale, torch.zeros(2, dtype=torch.int8), change, None, 0, -7, 7).sum().backward()
    assert change.grad is not None and bool((change.grad.abs() < 1e5).all())


def test_half_precision_is_quantized_in_float32() -> None:
    x = torch.linspace(-3, 3, 301).bfloat16().requires_grad_()
    values = grid(None)
    y = learned_fake_quantize(x, *values, None, 0, 255)
    assert y.dtype is torch.bfloat16
    assert torch.equal(y, learned_fake_quantize(x.float(), *values, None, 0, 255).bfloat16())
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype is torch.bfloat16


def samples() -> list[tuple[Any, ...]]:
    x = torch.randn(3, 4, requires_grad=True)
    return [
        (x, *grid(None), None, 0, 15),
        (x, *grid(0, shift=False), 0, -7, 7),
        (x, *grid(None, shift=False), None, -8, 7, True, 0.5),
    ]


@pytest.mark.parametrize("arguments", samples())
def test_torch_accepts_schema_fake_kernel_and_autograd(arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(learned_fake_quantize, arguments)


def test_nothing_has_no_gradient() -> None:
    change = torch.zeros((), requires_grad=True)
    learned_fake_quantize(
        torch.zeros(0, 3), torch.tensor(0.1), torch.tensor(0), change, None, None, 0, 255
    ).sum().backward()
    assert change.grad is not None and float(change.grad) == 0
