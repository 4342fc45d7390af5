"""FoldBatchNorm, case by case as its docstring numbers them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.graph.program import Program
from fxopt.passes import FoldBatchNorm
from tests.conftest import Golden
from tests.passes.cleanup.checks import check, ops, program_of, refuses, tensors

fold = FoldBatchNorm()


Norm = nn.modules.batchnorm._BatchNorm


def norm(channels: int, spatial: int = 2, **settings: Any) -> Norm:
    """Return a batch norm whose every tensor has an effect."""
    kinds = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
    module = kinds[spatial](channels, **settings)
    if module.running_mean is not None:
        module.running_mean = torch.randn(channels)
        module.running_var = torch.rand(channels) + 0.5
    if module.affine:
        nn.init.uniform_(module.weight, 0.5, 2)
        nn.init.normal_(module.bias)
    return module


def chain(*modules: nn.Module, x: Tensor) -> Program:
    return program_of(lambda m, x: m.chain(x), x, chain=nn.Sequential(*modules))


def image(channels: int, spatial: int = 2) -> Tensor:
    return torch.randn(2, channels, *[7] * spatial)


CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_case_1_conv_before(spatial: int, bias: bool, groups: int) -> None:
    conv = CONVOLUTIONS[spatial](4, 8, 3, padding=1, stride=2, groups=groups, bias=bias)
    x = image(4, spatial)
    result = check(fold, chain(conv, norm(8, spatial), x=x), x)
    assert ops(result) == [f"conv{spatial}d"]
    assert set(tensors(result)) == {"chain.0.weight", "chain.0.bias"}


def test_case_1_linear_before() -> None:
    x = torch.randn(5, 4)
    result = check(fold, chain(nn.Linear(4, 6), norm(6, 0, affine=False), x=x), x)
    assert ops(result) == ["linear"]


def test_case_1_linear_with_flattened_rows() -> None:
    x = torch.randn(2, 5, 4)
    program = chain(nn.Linear(4, 6, bias=False), nn.Flatten(0, 1), norm(6, 0), x=x)
    assert ops(check(fold, program, x)) == ["linear", "flatten"]


def test_case_1_conv_with_padding_by_name() -> None:
    x = image(3)
    assert ops(check(fold, chain(nn.Conv2d(3, 4, 3, padding="same"), norm(4), x=x), x)) == ["conv2d"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_case_2_transposed_conv_before(spatial: int, groups: int) -> None:
    conv = TRANSPOSED[spatial](4, 8, 3, stride=2, padding=1, output_padding=1, groups=groups, bias=spatial == 1)
    x = image(4, spatial)
    assert ops(check(fold, chain(conv, norm(8, spatial), x=x), x)) == [f"conv_transpose{spatial}d"]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padding", [0, "valid"])
def test_case_3_conv_after(padding: int | str, groups: int) -> None:
    x = image(4)
    conv = nn.Conv2d(4, 8, 3, padding=padding, groups=groups, bias=groups == 2)
    assert ops(check(fold, chain(norm(4), conv, x=x), x)) == ["conv2d"]


def test_case_3_linear_after() -> None:
    x = torch.randn(5, 4)
    assert ops(check(fold, chain(norm(4, 0), nn.Linear(4, 3, bias=False), x=x), x)) == ["linear"]


def test_case_3_two_norms_in_a_row() -> None:
    x = image(3)
    assert ops(check(fold, chain(norm(3), norm(3), nn.Conv2d(3, 4, 1), x=x), x)) == ["conv2d"]
    assert ops(check(fold, chain(nn.Conv2d(3, 4, 1), norm(4), norm(4), x=x), x)) == ["conv2d"]


@pytest.mark.parametrize("conv", [nn.Conv2d(4, 6, 3, padding=1), nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)])
def test_case_4_norm_without_shift_before_padding(conv: nn.Module) -> None:
    without_shift = norm(4)
    nn.init.zeros_(without_shift.bias)
    without_shift.running_mean = torch.zeros(4)
    x = image(4)
    result = check(fold, chain(without_shift, conv, x=x), x)
    assert len(ops(result)) == 1


def test_case_5_shared_weight() -> None:
    conv = nn.Conv2d(3, 3, 3)

    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(functional.conv2d(x, m.conv.weight))
        return functional.conv2d(y, m.conv.weight)

    x = image(3)
    result = check(fold, program_of(forward, x, conv=conv, norm=norm(3)), x)
    assert ops(result) == ["conv2d", "conv2d"]
    assert torch.equal(tensors(result)["conv.weight"], conv.weight)  # the second convolution still has its own
    assert not torch.equal(tensors(result)["conv.weight_1"], conv.weight)


def test_case_6_training_mode() -> None:
    x = image(3)
    refuses(fold, chain(nn.Conv2d(3, 4, 1), norm(4), x=x).train())


def test_case_6_no_running_statistics() -> None:
    x = image(3)
    refuses(fold, chain(nn.Conv2d(3, 4, 1), norm(4, track_running_stats=False), x=x))


def test_case_7_layer_output_used_twice() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.conv(x)
        return torch.add(m.norm(y), y)

    refuses(fold, program_of(forward, image(3), conv=nn.Conv2d(3, 3, 1), norm=norm(3)))


def test_case_7_layer_output_is_an_output() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.conv(x)
        return y, m.norm(y)

    refuses(fold, program_of(forward, image(3), conv=nn.Conv2d(3, 3, 1), norm=norm(3)))


def test_case_7_norm_used_twice() -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.norm(x)
        return m.conv(y), y.relu()

    refuses(fold, program_of(forward, image(3), conv=nn.Conv2d(3, 3, 1), norm=norm(3)))


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding="same"), nn.ConvTranspose2d(4, 4, 3)]
)
def test_case_8_shift_before_padding(layer: nn.Module) -> None:
    refuses(fold, chain(norm(4), layer, x=image(4)))


def test_case_9_other_dimension() -> None:
    x = torch.randn(2, 4, 6)
    refuses(fold, chain(nn.Linear(6, 4), norm(4, 1), x=x))
    refuses(fold, chain(norm(4, 1), nn.Linear(6, 4), x=x))


def test_case_9_rows_flattened_into_channels() -> None:
    x = torch.randn(2, 3, 4)
    refuses(fold, chain(nn.Linear(4, 2), nn.Flatten(1), norm(6, 0), x=x))


def test_case_9_convolution_without_batch() -> None:
    x = torch.randn(3, 6)
    refuses(fold, chain(nn.Conv1d(3, 4, 1), norm(6, 0), x=x))


def test_case_10_computed_weight() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return torch.relu(m.norm(functional.conv2d(x, m.conv.weight * x.mean())))

    refuses(fold, program_of(forward, image(3), conv=nn.Conv2d(3, 3, 1), norm=norm(3)))


def test_case_10_scale_that_is_not_finite() -> None:
    broken = norm(3, eps=0.0)
    broken.running_var = torch.tensor([1.0, 0.0, 1.0])
    refuses(fold, chain(nn.Conv2d(3, 3, 1), broken, x=image(3)))


def test_parameters_stay_parameters() -> None:
    conv = nn.Conv2d(3, 4, 1, bias=False)
    conv.weight.requires_grad_(False)
    folded = tensors(fold(chain(conv, norm(4), x=image(3))))
    assert all(isinstance(value, nn.Parameter) and not value.requires_grad for value in folded.values())
    trainable = tensors(fold(chain(nn.Conv2d(3, 4, 1), norm(4), x=image(3))))
    assert all(isinstance(value, nn.Parameter) and value.requires_grad for value in trainable.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_weights_are_the_float64_result_rounded_once(dtype: torch.dtype) -> None:
    conv, bn = nn.Conv2d(3, 4, 3).to(dtype), norm(4).to(dtype)
    folded = tensors(fold(chain(conv, bn, x=image(3).to(dtype))))
    assert bn.running_var is not None
    gain = (bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt())[:, None, None, None]
    expected = (conv.weight.double() * gain).to(dtype)
    rtol = 1e-15 if dtype is torch.float64 else 0
    torch.testing.assert_close(folded["chain.0.weight"].detach(), expected.detach(), rtol=rtol, atol=0)


def test_golden_fold_batch_norm(golden: Golden) -> None:
    x = image(4)
    after, before = nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.Conv2d(8, 6, 1)
    program = chain(after, norm(8), nn.ReLU(), norm(8), before, nn.ReLU(), norm(6), x=x)
    golden(program, fold(program))
