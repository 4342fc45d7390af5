"""EqualizeLayers: equal channel ranges on both sides, the same function, and less noise behind quantization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor, nn
from torch.nn import functional

from fxopt.graph.capture import capture
from fxopt.graph.interpret import sqnr
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import EqualizeLayers, Quantize, Scheme
from tests.conftest import Golden
from tests.passes.cleanup.checks import FLOAT32_BOUND, check, program_of, refuses, tensors
from tests.passes.quantize.nets import Encoder, images
from tests.strategies import Drawn, networks

equalize = EqualizeLayers()


def chain(*modules: nn.Module, x: Tensor) -> Program:
    return program_of(lambda m, x: m.chain(x), x, chain=nn.Sequential(*modules), dynamic="batch")


def uneven(layer: Any) -> Any:
    """Give the output channels of a layer ranges from 0.01 to 100."""
    factor = torch.logspace(-2, 2, len(layer.weight))
    layer.weight.data *= factor.reshape(-1, *[1] * (layer.weight.ndim - 1))
    if layer.bias is not None:
        layer.bias.data *= factor
    return layer


def rows(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).abs().amax(1)


def columns(weight: Tensor) -> Tensor:
    return weight.detach().transpose(0, 1).flatten(1).abs().amax(1)


def assert_proportional(*ranges: Tensor) -> None:
    """Assert that the ranges of channels are the same, up to a factor and the 1 % at which scales are settled."""
    for found in ranges[1:]:
        ratio = found / ranges[0]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=0.02, atol=0)


def test_the_scales_of_two_linears_by_hand() -> None:
    first, second = nn.Linear(1, 2), nn.Linear(2, 1, bias=False)
    first.weight.data, first.bias.data = torch.tensor([[4.0], [0.25]]), torch.tensor([-8.0, 0.125])
    second.weight.data = torch.tensor([[2.0, 0.25]])
    x = torch.tensor([[1.5], [-3.0]])
    found = tensors(check(equalize, chain(first, nn.ReLU(), second, x=x), x))
    # sqrt(8 / 2) = 2 and sqrt(0.25 / 0.25) = 1; their geometric mean is sqrt 2.
    scale = torch.tensor([2.0, 1.0]) / 2**0.5
    torch.testing.assert_close(found["chain.0.weight"], torch.tensor([[4.0], [0.25]]) / scale[:, None])
    torch.testing.assert_close(found["chain.0.bias"], torch.tensor([-8.0, 0.125]) / scale)
    torch.testing.assert_close(found["chain.2.weight"], torch.tensor([[2.0, 0.25]]) * scale)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.LeakyReLU(0.1), nn.PReLU(8), nn.MaxPool2d(2), nn.ZeroPad2d(1)])
def test_case_1_convolutions(act: nn.Module) -> None:
    x = images(size=16)
    first = uneven(nn.Conv2d(3, 8, 3, padding=1, bias=False))
    found = tensors(check(equalize, chain(first, act, nn.Conv2d(8, 6, 3), x=x), x))
    assert_proportional(rows(found["chain.0.weight"]), columns(found["chain.2.weight"]))


@pytest.mark.parametrize("second", [nn.Conv2d(8, 8, 1, groups=2), nn.ConvTranspose2d(8, 4, 3, groups=2)])
@pytest.mark.parametrize("first", [nn.Conv2d(6, 8, 3, groups=2), nn.ConvTranspose2d(6, 8, 3, groups=2)])
def test_case_1_groups_and_transposed(first: nn.Module, second: nn.Module) -> None:
    for parameter in (*first.parameters(), *second.parameters()):
        parameter.data *= torch.rand(parameter.shape) ** 8
    x = torch.randn(2, 6, 9, 9)
    check(equalize, chain(first, nn.ReLU(), second, x=x), x)


def test_case_1_several_readers() -> None:
    """As in a fire module, and in squeeze-and-excitation: the gate keeps its value, for its first layer is scaled."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.relu(m.stem(x))
        gate = torch.sigmoid(m.gate(y.mean([2, 3], keepdim=True)))
        z: Tensor = m.left(y) + m.right(y * gate)
        return z

    x = images(size=16)
    layers: dict[str, Any] = {"gate": nn.Conv2d(8, 8, 1), "left": nn.Conv2d(8, 4, 1), "right": nn.Conv2d(8, 4, 1)}
    program = program_of(forward, x, stem=uneven(nn.Conv2d(3, 8, 3, bias=False)), **layers)
    found = tensors(check(equalize, program, x))
    readers = torch.stack([columns(found[f"{name}.weight"]) for name in layers]).amax(0)
    assert_proportional(rows(found["stem.weight"]), readers)


def test_case_1_the_values_of_attention() -> None:
    x = torch.randn(2, 5, 32)
    model = Encoder()
    uneven(model.value)
    result = tensors(check(equalize, capture(model, x, dynamic="batch"), x))
    assert_proportional(rows(result["value.weight"]), columns(result["out.weight"]))
    assert torch.equal(result["up.weight"], model.up.weight)


def test_case_2_depthwise_triples() -> None:
    layers = (nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 4, 1))
    uneven(layers[0]), uneven(layers[1])
    mean = (rows(layers[0].weight) * rows(layers[1].weight) * columns(layers[2].weight)) ** (1 / 3)
    x = images(size=16)
    found = tensors(check(equalize, chain(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], x=x), x))
    ranges = [rows(found["chain.0.weight"]), rows(found["chain.2.weight"]), columns(found["chain.4.weight"])]
    assert_proportional(mean, *ranges)


def test_case_3_a_channel_is_a_run_of_inputs() -> None:
    x = images(size=8)
    layers = (uneven(nn.Conv2d(3, 8, 3, bias=False)), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5))
    found = tensors(check(equalize, chain(*layers, x=x), x))
    assert_proportional(rows(found["chain.0.weight"]), columns(found["chain.4.weight"]).reshape(8, 9).amax(1))


@pytest.mark.parametrize("act", [nn.ReLU6(), nn.Hardtanh(-2, 2), nn.GELU(), nn.Sigmoid(), nn.LayerNorm(6)])
def test_case_4_ops_that_bend_the_scale(act: nn.Module) -> None:
    x = torch.randn(2, 4)
    refuses(equalize, chain(uneven(nn.Linear(4, 6)), act, nn.Linear(6, 3), x=x))


@pytest.mark.parametrize("use", [lambda y: y + 1, lambda y: y, lambda y: y.sum(), lambda y: torch.relu(y) + y])
def test_case_4_another_reader(use: Callable[[Tensor], Tensor]) -> None:
    def forward(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = m.first(x)
        return m.second(torch.relu(y)), use(y)

    x = torch.randn(2, 4)
    refuses(equalize, program_of(forward, x, first=uneven(nn.Linear(4, 8)), second=nn.Linear(8, 4)))


def test_case_5_dead_channels_stay_as_they_are() -> None:
    first, second = uneven(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 4, 1)
    first.weight.data[2] = 0
    first.bias.data[3] = 1e-38
    first.weight.data[3] = 1e-38
    second.weight.data[:, 5] = 0
    x = images(size=8)
    found = tensors(check(equalize, chain(first, nn.ReLU(), second, x=x), x))
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert torch.equal(found["chain.0.weight"][2], torch.zeros(3, 3, 3))
    assert torch.equal(found["chain.2.weight"][:, 5], torch.zeros(4, 1, 1))
    for channel in (2, 5):
        assert torch.equal(found["chain.0.bias"][channel], first.bias[channel])


def test_case_5_a_layer_of_zeros_alone() -> None:
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
    nn.init.zeros_(second.weight)
    refuses(equalize, chain(first, nn.ReLU(), second, x=images(size=8)))


def test_case_6_tied_weights() -> None:
    layer = uneven(nn.Linear(4, 4))
    x = torch.randn(2, 4)
    refuses(equalize, chain(layer, nn.ReLU(), nn.Linear(4, 4), nn.GELU(), layer, x=x))


def test_a_large_bias_is_not_blown_up() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2, bias=False)
    first.weight.data, first.bias.data = torch.tensor([[1.0, 1.0], [1e-6, 1e-6]]), torch.tensor([0.0, 1.0])
    second.weight.data = torch.ones(2, 2)
    refuses(equalize, chain(first, nn.ReLU(), second, x=torch.randn(3, 2)))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 0.05)])
def test_the_function_is_the_same_to_the_rounding_of_its_dtype(dtype: torch.dtype, bound: float) -> None:
    x = torch.randn(4, 6, dtype=dtype)
    layers = [uneven(nn.Linear(6, 6)).to(dtype) for _ in range(3)]
    check(equalize, chain(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], x=x), x, bound=bound)


def test_more_iterations_come_nearer() -> None:
    x = torch.randn(2, 8)
    layers = [m for _ in range(5) for m in (uneven(nn.Linear(8, 8)), nn.ReLU())]
    program = chain(*layers, nn.Linear(8, 8), x=x)

    def spread(result: Program) -> float:
        found = tensors(result)
        ratios = [rows(found[f"chain.{i}.weight"]) / columns(found[f"chain.{i + 2}.weight"]) for i in range(0, 10, 2)]
        return max(float(ratio.log().std()) for ratio in ratios)

    once, often = EqualizeLayers(iterations=1)(program), equalize(program)
    assert spread(program) > 2 * spread(once) > 20 * spread(often)
    assert EqualizeLayers(iterations=0)(program) is program


class InvertedRelu(nn.Module):
    """Inverted residuals with relu, whose expanded channels have ranges from 0.02 to 50: x[N, 3, 32, 32] -> [N, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.expand, self.wide = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 32, 3, 1, 1, groups=32)
        self.narrow = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 8)
        for first, second in ((self.expand, self.wide), (self.wide, self.narrow)):
            factor = torch.logspace(-1.7, 1.7, 32)[torch.randperm(32)]
            assert first.bias is not None
            first.weight.data *= factor.reshape(-1, 1, 1, 1)
            first.bias.data *= factor
            second.weight.data /= factor.reshape((-1, 1, 1, 1) if second is self.wide else (1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        y = torch.relu(self.wide(torch.relu(self.expand(x))))
        z: Tensor = self.head((self.narrow(y) + x).mean([2, 3]))
        return z


@pytest.mark.parametrize(("per_channel", "gain"), [(True, 4), (False, 10)])
def test_quantization_of_uneven_channels_gets_more_exact(per_channel: bool, gain: float) -> None:
    x = images(8)
    program = Pipeline(CLEANUP)(capture(InvertedRelu().eval(), x, dynamic="batch"))
    equalized = equalize(program)
    held_out = images(16, seed=1)
    quantize = Quantize([x], scheme=Scheme(per_channel=per_channel))
    before, after = (sqnr(program(held_out), quantize(p)(held_out)) for p in (program, equalized))
    assert after > before + gain
    assert functional.mse_loss(program(held_out), equalized(held_out)) < 1e-10


@given(networks(kinds=("conv", "conv", "conv_transpose", "act", "norm", "pad", "shuffle", "branch")))
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
def test_random_networks(drawn: Drawn) -> None:
    program = Pipeline(CLEANUP)(capture(drawn.build(), drawn.inputs(), dynamic="batch"))
    if equalize(program) is not program:
        check(equalize, program, *drawn.inputs(batch=3), bound=FLOAT32_BOUND * (2 + len(drawn.blocks)))


def test_golden_equalize_layers(golden: Golden) -> None:
    x = images(size=8)
    layers = (nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5))
    program = chain(uneven(layers[0]), *layers[1:], x=x)
    result = equalize(program)
    golden(program, result)
    assert result.history[-1] == "EqualizeLayers(iterations=20)"
