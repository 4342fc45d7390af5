"""FoldAffine, case by case as its docstring numbers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.passes import FoldAffine
from tests.conftest import Golden
from tests.passes.cleanup.checks import check, ops, program_of, refuses, tensors
from tests.passes.cleanup.test_fold_batch_norm import norm

fold = FoldAffine()
Affine = Callable[[Tensor, Tensor], Tensor]
SCALES: dict[str, Affine] = {
    "x * c": lambda x, c: x * c,
    "c * x": lambda x, c: c * x,
    "x / c": lambda x, c: x / c,
    "x * 3": lambda x, c: x * 3,
    "x / 3": lambda x, c: x / 3,
}
SHIFTS: dict[str, Affine] = {
    "x + c": lambda x, c: x + c,
    "c + 2 x": lambda x, c: torch.add(c, x, alpha=2),
    "x - 3 c": lambda x, c: torch.sub(x, c, alpha=3),
    "c - x": lambda x, c: c - x,
    "1 - x": lambda x, c: 1 - x,
    "x - 1": lambda x, c: x - 1,
}
EVERY = {**SCALES, **SHIFTS}


def channels(count: int, spatial: int = 2) -> Tensor:
    return torch.rand(count, *[1] * spatial) + 0.5


LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), torch.randn(2, 4, 5, 5)),
    "conv_transpose": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)),
    "linear": (lambda: nn.Linear(4, 6), torch.randn(2, 3, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_case_1_after_a_layer(kind: str) -> None:
    build, x = LAYERS[kind]
    c = channels(6, 0 if kind == "linear" else 2)

    def forward(m: Any, x: Tensor) -> list[Tensor]:
        return [affine(layer(x), m.c) for affine, layer in zip(EVERY.values(), m.layers, strict=True)]

    result = check(fold, program_of(forward, x, layers=nn.ModuleList(build() for _ in EVERY), c=c), x)
    assert len(ops(result)) == len(EVERY)
    assert all(name.startswith("layers.") for name in tensors(result))


def test_case_1_several_in_a_row() -> None:
    x = torch.randn(2, 4)
    program = program_of(lambda m, x: 1 - (m.layer(x) * m.c + 2) / 3, x, layer=nn.Linear(4, 6), c=channels(6, 0))
    assert ops(check(fold, program, x)) == ["linear"]


@pytest.mark.parametrize("affine", [True, False])
def test_case_2_after_batch_norm(affine: bool) -> None:
    def forward(m: Any, x: Tensor) -> list[Tensor]:
        return [affine(bn(x), m.c) for affine, bn in zip(EVERY.values(), m.norms, strict=True)]

    x = torch.randn(2, 4, 5, 5)
    norms = nn.ModuleList(norm(4, affine=affine) for _ in EVERY)
    result = check(fold, program_of(forward, x, norms=norms, c=channels(4)), x)
    assert ops(result) == ["batch_norm"] * len(EVERY)
    names = ("weight", "bias", "running_mean", "running_var")
    assert set(tensors(result)) == {f"norms.{number}.{name}" for number in range(len(EVERY)) for name in names}


@pytest.mark.parametrize("kind", LAYERS)
def test_case_3_scale_before_a_layer(kind: str) -> None:
    build, x = LAYERS[kind]
    c = channels(4, 0 if kind == "linear" else 2)

    def forward(m: Any, x: Tensor) -> list[Tensor]:
        return [layer(scale(x, m.c)) for scale, layer in zip(SCALES.values(), m.layers, strict=True)]

    result = check(fold, program_of(forward, x, layers=nn.ModuleList(build() for _ in SCALES), c=c), x)
    assert len(ops(result)) == len(SCALES)


@pytest.mark.parametrize("build", [lambda: nn.Conv2d(4, 6, 3, groups=2, bias=False), lambda: nn.Conv2d(4, 6, 1)])
def test_case_4_shift_before_a_layer(build: Callable[[], nn.Module]) -> None:
    def forward(m: Any, x: Tensor) -> list[Tensor]:
        return [layer(shift(x, m.c)) for shift, layer in zip(SHIFTS.values(), m.layers, strict=True)]

    x = torch.randn(2, 4, 5, 5)
    result = check(fold, program_of(forward, x, layers=nn.ModuleList(build() for _ in SHIFTS), c=channels(4)), x)
    assert ops(result) == ["conv2d"] * len(SHIFTS)


def test_case_5_another_use() -> None:
    def after(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x)
        return y * m.c, y

    def before(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * m.c
        return m.conv(y), y

    for forward in (after, before):
        refuses(fold, program_of(forward, torch.randn(2, 4, 5, 5), conv=nn.Conv2d(4, 4, 1), c=channels(4)))


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 4, 3)])
def test_case_6_shift_before_padding(layer: nn.Module) -> None:
    refuses(fold, program_of(lambda m, x: m.layer(x + m.c), torch.randn(2, 4, 5, 5), layer=layer, c=channels(4)))


@pytest.mark.parametrize(
    "shape", [(5,), (5, 1), (4, 5, 5), (2, 1, 1, 1), (3, 1, 1, 1, 1)], ids=["columns", "rows", "all", "batch", "rank"]
)
def test_case_7_another_dimension(shape: tuple[int, ...]) -> None:
    program = program_of(
        lambda m, x: m.conv(x) * m.c, torch.randn(2, 4, 5, 5), conv=nn.Conv2d(4, 4, 1), c=torch.ones(shape)
    )
    refuses(fold, program)


def test_case_7_another_dtype() -> None:
    c = channels(4).double()
    refuses(fold, program_of(lambda m, x: m.conv(x) * m.c, torch.randn(2, 4, 5, 5), conv=nn.Conv2d(4, 4, 1), c=c))


def test_case_7_one_channel_that_broadcasts() -> None:
    x = torch.randn(2, 4, 5, 5)
    refuses(fold, program_of(lambda m, x: m.conv(x) * m.c, x, conv=nn.Conv2d(4, 1, 1), c=channels(6)))


def test_case_8_computed_operand() -> None:
    x = torch.randn(2, 4)
    refuses(fold, program_of(lambda m, x: m.layer(x) * x.mean(), x, layer=nn.Linear(4, 6)))
    refuses(fold, program_of(lambda m, x: functional.linear(x, m.w + x.mean()) * 2, x, w=torch.randn(6, 4)))


def test_case_8_not_finite() -> None:
    x = torch.randn(2, 4)
    refuses(fold, program_of(lambda m, x: m.layer(x) / m.c, x, layer=nn.Linear(4, 2), c=torch.tensor([0.0, 1.0])))


def test_a_square_is_no_scale() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.layer(x)
        return torch.mul(y, y)

    refuses(fold, program_of(forward, torch.randn(2, 4), layer=nn.Linear(4, 2)))


def test_golden_fold_affine(golden: Golden) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        scaled = m.conv((x - 0.5) / m.c) * m.gamma
        return torch.add(m.head(scaled.relu().mean((2, 3))), 1)

    conv, head = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 5, bias=False)
    gamma = nn.Parameter(channels(6))
    program = program_of(forward, torch.randn(2, 4, 8, 8), gamma=gamma, c=channels(4), conv=conv, head=head)
    golden(program, fold(program))
