"""SmoothQuant: outlier channels move into the weights, the function stays, and quantization gets more exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fxopt.errors import DataError
from fxopt.graph.capture import capture
from fxopt.graph.interpret import run, sqnr
from fxopt.graph.program import Program
from fxopt.graph.verify import verify
from fxopt.passes.quantize import Quantize, QuantizeDynamic, SmoothQuant
from fxopt.passes.quantize.smooth_quant import find_groups
from fxopt.passes.quantize.smoothing import Activations, outlier_scale, rounded, smoothing_scale
from tests.conftest import Golden
from tests.passes.cleanup.checks import assert_same_outputs, ops, program_of, snapshot, tensors
from tests.passes.quantize.nets import Encoder
from tests.passes.quantize.nets import program_of as captured

BOUND = 1e-5  # of the output's range


def tokens(batch: int = 4, seed: int = 0, length: int = 9) -> Tensor:
    return torch.randn(batch, length, 32, generator=torch.Generator().manual_seed(seed))


def with_outliers(model: Encoder) -> Encoder:
    """Let both norms make two channels 40 and 100 times as large as the others."""
    for norm in (model.norm, model.norm2):
        norm.weight.data[3], norm.weight.data[17] = 40.0, 100.0
    for linear in (model.query, model.key, model.value, model.up):
        linear.weight.data[:, [3, 17]] *= 0.1
    return model


def groups(program: Program) -> dict[str, list[str]]:
    return {group.maker.name: [reader.layer.node.name for reader in group.readers] for group in find_groups(program)}


def unchanged(by: SmoothQuant, program: Program, *inputs: Tensor) -> Program:
    """Run the pass and check that the function, and the Program that went in, are what they were."""
    text, values = snapshot(program)
    result = verify(by(program), full=True)
    assert_same_outputs(program, result, inputs, BOUND)
    after_text, after_values = snapshot(program)
    assert text == after_text and all(torch.equal(values[name], after_values[name]) for name in values)
    return result


@pytest.mark.parametrize("dynamic", [False, True])
def test_quantization_of_outlier_channels_gets_more_exact(dynamic: bool) -> None:
    program = captured(with_outliers(Encoder()), tokens())
    data, held_out = [tokens(seed=seed) for seed in range(4)], tokens(16, seed=9)
    smoothed = unchanged(SmoothQuant(data, dynamic=dynamic), program, held_out)
    quantize = QuantizeDynamic() if dynamic else Quantize(data, observer="minmax")
    before, after = (sqnr(program(held_out), quantize(p)(held_out)) for p in (program, smoothed))
    assert after > before + 6
    assert smoothed.notes[-1].startswith("SmoothQuant in 3 of 3 groups of linears.")


def test_case_1_norms_and_case_3_values_of_attention() -> None:
    program = captured(Encoder(), tokens())
    assert groups(program) == {
        "layer_norm": ["linear", "linear_1", "linear_2"],
        "linear_2": ["linear_3"],
        "layer_norm_1": ["linear_4"],
    }


def test_case_1_rms_norm_behind_views_and_case_3_gated_mlp() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x).view(-1, 32).unsqueeze(0)
        z: Tensor = m.down(functional.silu(m.gate(y)) * m.up(y))
        return z

    x = 5 * tokens()
    members: dict[str, Any] = {
        "gate": nn.Linear(32, 64),
        "up": nn.Linear(32, 64),
        "down": nn.Linear(64, 32),
        "norm": nn.RMSNorm(32),
    }
    members["norm"].weight.data[:4] = 50.0
    members["up"].weight.data[:3] *= 50.0
    program = program_of(forward, x, dynamic="batch", **members)
    assert groups(program) == {"rms_norm": ["linear", "linear_1"], "linear_1": ["linear_2"]}
    result = unchanged(SmoothQuant([x]), program, x)
    assert "in 2 of 2" in result.notes[-1]
    changed = {name for name, value in tensors(result).items() if not torch.equal(value, tensors(program)[name])}
    assert changed == {"norm.weight", "gate.weight", "up.weight", "up.bias", "down.weight"}


@pytest.mark.parametrize("shape", [(32,), (1, 1, 32)])
def test_case_2_a_multiplication_by_a_constant(shape: tuple[int, ...]) -> None:
    weight = nn.Parameter(torch.rand(shape) ** 8 * 50 + 0.1)

    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.linear(m.weight * torch.tanh(x))
        return y

    program = program_of(forward, tokens(), dynamic="batch", linear=nn.Linear(32, 16), weight=weight)
    assert groups(program) == {"mul": ["linear"]}
    result = unchanged(SmoothQuant([tokens()]), program, tokens(2, seed=3))
    assert "in 1 of 1" in result.notes[-1]
    assert ops(result) == ["tanh", "mul", "linear"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.first(y := m.norm(x)) + y,
        lambda m, x: m.first(functional.gelu(m.norm(x))),
        lambda m, x: (m.first(y := m.norm(x)), y),
        lambda m, x: m.first(m.norm(x)).relu() + m.first(x),
        lambda m, x: torch.cumsum(m.norm(x), 1) @ m.first.weight,
        lambda m, x: m.first(functional.layer_norm(x, (32,))),
        lambda m, x: m.first(functional.layer_norm(x, x.shape[1:], m.table, m.table)),
    ],
)
def test_cases_4_and_5_what_is_left_alone(forward: Callable[..., Any]) -> None:
    members: dict[str, Any] = {"first": nn.Linear(32, 32), "norm": nn.LayerNorm(32), "table": torch.rand(9, 32)}
    program = program_of(forward, tokens(), dynamic="batch", **members)
    assert SmoothQuant(iter(()))(program) is program


@pytest.mark.parametrize("multiply", [False, True])
def test_case_6_what_does_not_help_is_left_out(multiply: bool) -> None:
    """All channels have the same ranges already: every strength is no strength."""
    linear = nn.Linear(8, 4)
    linear.weight.data = torch.randint(0, 2, (4, 8)).float() * 2 - 1
    x = torch.stack([torch.arange(8.0).roll(shift) for shift in range(8)])

    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.linear(x.sin() if multiply else m.norm(x))
        return y

    program = program_of(forward, x, linear=linear, norm=nn.LayerNorm(8))
    result = verify(SmoothQuant([x], multiply=multiply)(program), full=True)
    assert result.notes == ("SmoothQuant makes none of 1 groups of linears more exact; it is left out.",)
    assert str(result) == str(program)
    assert all(torch.equal(value, tensors(program)[name]) for name, value in tensors(result).items())


class PostNorm(nn.Module):
    """As in BERT: what the norm makes is read by the next layer and by its residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm.weight.data[5], self.up.weight.data[7] = 60.0, 8.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        y: Tensor = self.norm2(x + self.down(functional.gelu(self.up(x))))
        return y


@pytest.mark.parametrize("dynamic", [False, True])
def test_multiply_reaches_post_norm_blocks_and_gelu(dynamic: bool) -> None:
    data, held_out = [tokens(seed=seed) for seed in range(4)], tokens(16, seed=9)
    program = captured(PostNorm(), data[0])
    assert SmoothQuant(data)(program) is program
    smoothed = unchanged(SmoothQuant(data, dynamic=dynamic, multiply=True), program, held_out)
    assert ops(smoothed).count("mul") == 2
    quantize = QuantizeDynamic() if dynamic else Quantize(data, observer="minmax")
    before, after = (sqnr(program(held_out), quantize(p)(held_out)) for p in (program, smoothed))
    assert after > before + 6


def test_smoothing_scales_by_hand() -> None:
    x, w = torch.tensor([16.0, 1.0, 0.0, 4.0]), torch.tensor([1.0, 4.0, 1.0, 0.0])
    # sqrt(16 / 1) = 4 and sqrt(1 / 4) = 0.5, whose geometric mean is sqrt 2; dead channels keep their scale.
    expected = torch.tensor([4 / 2**0.5, 0.5 / 2**0.5, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(smoothing_scale(x, w, 0.5), expected)
    floored = smoothing_scale(torch.tensor([1e-9, 1.0, 1.0]), torch.ones(3), 1.0)
    torch.testing.assert_close(floored[0] / floored[1], torch.tensor(0.01, dtype=torch.float64), rtol=1e-6, atol=0)


def test_outlier_scales_by_hand() -> None:
    """The median of the four live channels is 2 (the lower of the middle ones), so the threshold is 4."""
    scale = outlier_scale(torch.tensor([16.0, 1.0, 0.0, 4.0, 2.0]), 2.0)
    assert scale.tolist() == [4.0, 1.0, 1.0, 1.0, 1.0]
    assert outlier_scale(torch.zeros(3), 2.0).tolist() == [1.0, 1.0, 1.0]


def test_one_outlier_of_few_rows_is_smoothed_without_spoiling_the_others() -> None:
    """As behind the gelu of a trained BERT: one channel is large, and only at the first token of a text."""
    torch.manual_seed(0)

    class FirstToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down = nn.Linear(256, 32)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.down(functional.gelu(x))
            return y

    def texts(seed: int) -> Tensor:
        x = torch.randn(4, 16, 256, generator=torch.Generator().manual_seed(seed))
        x[:, 0, 7] = 60.0
        return x

    program = captured(FirstToken(), texts(0))
    smoothed = SmoothQuant([texts(0)], dynamic=True, multiply=True)(program)
    held_out = texts(1)
    before, after = (sqnr(program(held_out)[:, 1:], QuantizeDynamic()(p)(held_out)[:, 1:]) for p in (program, smoothed))
    assert after > before + 12


def test_rows_are_quantized_with_the_range_of_their_item_or_of_all() -> None:
    small, large = torch.tensor([[0.0, 1.0], [0.3, -1.0]]), torch.tensor([[100.0, 50.0]])
    seen = Activations()
    for value in (small, large):
        seen.update(value, 2)
    scale = torch.tensor([2.0, 1.0])
    apart = [rounded(small / scale, -1.0, 1.0), rounded(large / scale, 0.0, 50.0)]
    assert torch.equal(seen.quantized(scale, dynamic=True), torch.cat(apart))
    together = rounded(torch.cat([small, large]) / scale, -1.0, 50.0)
    assert torch.equal(seen.quantized(scale, dynamic=False), together)
    expected = torch.fake_quantize_per_tensor_affine(torch.cat([small, large]) / scale, 51 / 255, 5, 0, 255)
    torch.testing.assert_close(together, expected)


@st.composite
def blocks(draw: st.DrawFn) -> tuple[str, int, int, bool]:
    maker = draw(st.sampled_from(("layer_norm", "rms_norm", "vector", "relu", "gated", "heads")))
    return maker, draw(st.integers(1, 3)), draw(st.integers(0, 99)), draw(st.booleans())


class Block(nn.Module):
    """One maker, and several linears of different widths that read it, with channels of very different ranges."""

    def __init__(self, maker: str, readers: int) -> None:
        super().__init__()
        self.maker = maker
        self.first, self.gate = nn.Linear(32, 32), nn.Linear(32, 32, bias=False)
        self.layer_norm, self.rms_norm = nn.LayerNorm(32, bias=readers > 1), nn.RMSNorm(32)
        self.vector = nn.Parameter(torch.ones(32))
        self.readers = nn.ModuleList(nn.Linear(32, 4 + index, bias=index > 0) for index in range(readers))
        for parameter in self.parameters():
            parameter.data *= torch.exp(2 * torch.randn(len(parameter))).reshape(-1, *[1] * (parameter.ndim - 1))

    def made(self, x: Tensor) -> Tensor:
        if self.maker == "vector":
            return torch.tanh(x) * self.vector
        if self.maker == "relu":
            return torch.relu(self.first(x))
        if self.maker == "gated":
            product: Tensor = torch.sigmoid(self.gate(x)) * self.first(x)
            return product
        if self.maker == "heads":
            y = self.first(x).unflatten(-1, (4, 8)).transpose(1, 2)
            attended = functional.scaled_dot_product_attention(x.unsqueeze(1), x.unsqueeze(1), y)
            heads: Tensor = attended.transpose(1, 2).flatten(2)
            return heads
        normalised: Tensor = getattr(self, self.maker)(x)
        return normalised

    def forward(self, x: Tensor) -> Tensor:
        y = self.made(x)
        return torch.cat([reader(y) for reader in self.readers], -1)


@given(blocks())
@settings(
    max_examples=18,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow],
)
def test_random_blocks_keep_their_function(drawn: tuple[str, int, int, bool]) -> None:
    maker, count, seed, dynamic = drawn
    torch.manual_seed(seed)
    x = tokens(seed=seed)
    program = captured(Block(maker, count), x)
    result = unchanged(SmoothQuant([x], dynamic=dynamic), program, x[:1])
    assert [len(group.readers) for group in find_groups(program)] == [count]
    outputs = zip(run(program, (x,)), run(result, (x,)), strict=True)
    assert all(bool(after.isfinite().all()) for _, after in outputs)


def test_only_the_search_is_bound_to_the_first_samples_and_data_is_read_once() -> None:
    program = captured(with_outliers(Encoder()), tokens())
    reads = []

    def stream() -> Iterator[Tensor]:
        for seed in range(6):
            reads.append(seed)
            yield tokens(2, seed)

    SmoothQuant(stream(), samples=4)(program)
    assert reads == list(range(6))


@pytest.mark.parametrize("multiply", [False, True])
def test_known_scales_need_no_data(multiply: bool) -> None:
    program = captured(with_outliers(Encoder()), tokens())
    known: dict[str, Tensor | None] = {}
    first = SmoothQuant([tokens()], multiply=multiply, known=known)(program)
    again = SmoothQuant(iter(()), multiply=multiply, known=known)(program)
    assert str(again) == str(first) and again.notes == first.notes
    assert all(torch.equal(value, tensors(first)[name]) for name, value in tensors(again).items())


def test_items_of_other_shapes_and_empty_ones() -> None:
    program = capture(with_outliers(Encoder()).eval(), tokens(), dynamic={"x": {0: "batch", 1: "sequence"}})
    result = unchanged(SmoothQuant([tokens()[:0], tokens(3, length=5), tokens(1, length=2)]), program, tokens(length=7))
    assert "in 3 of 3" in result.notes[-1]
    nothing = SmoothQuant([tokens()[:0]])(program)
    assert "left out" in nothing.notes[-1]


def test_a_channel_that_is_always_zero() -> None:
    model = with_outliers(Encoder())
    model.norm.weight.data[8], model.norm.bias.data[8] = 0.0, 0.0
    model.up.weight.data[:, 9] = 0.0
    program = captured(model, tokens())
    result = unchanged(SmoothQuant([tokens()]), program, tokens(seed=2))
    assert all(bool(value.isfinite().all()) for value in tensors(result).values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "is empty"),
        (tokens(), "is one Tensor"),
        (7, "must be iterable"),
        ([tokens(), torch.full((1, 9, 32), float("nan"))], "item 1: input 'x' holds NaN or infinity"),
        ([torch.zeros(1, 9, 31)], "dimension 2 has size 31"),
    ],
)
def test_data_that_cannot_be_used_is_an_error(data: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SmoothQuant(data)(captured(Encoder(), tokens()))


def test_an_overflow_inside_is_named_with_its_node() -> None:
    model = Encoder()
    model.norm.weight.data *= 3e38
    with pytest.raises(DataError, match=r"item 0 makes node 'layer_norm' .* give NaN or infinity"):
        SmoothQuant([10 * tokens()])(captured(model, tokens()))


def test_golden_smooth_quant(golden: Golden) -> None:
    torch.manual_seed(0)
    program = captured(PostNorm(), tokens())
    golden(program, SmoothQuant([tokens()], multiply=True)(program))
