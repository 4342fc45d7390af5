"""Weight-only quantization: the grid, what is stored and shared, what stays float, and a decoder with all of it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxopt.errors import PassError
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import validate
from fxopt.graph.blocks import KERNEL_BLOCKS, dequantize_blocks, fake_quantize_blocks
from fxopt.graph.capture import capture
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.quantized import integer_nodes
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import QuantizeWeights
from fxopt.passes.quantize.block_grid import BlockFormat, round_to_nearest
from tests.conftest import Golden
from tests.passes.quantize.decoder import Decoder, divergence, sentences, trained
from tests.passes.quantize.nets import Encoder, program_of

FORMATS = [
    BlockFormat(bits, group, symmetric)
    for bits, groups in KERNEL_BLOCKS.items()
    for group in (*groups, None)
    for symmetric in (False, True)
]


def from_extremes(weight: Tensor, layout: BlockFormat) -> Tensor:
    """Round each group on the grid from its smallest to its largest value, written out plainly."""
    rows = []
    for row in weight:
        parts = []
        for group in torch.split(row, layout.block_size(weight.shape[1])):
            levels, half = 2**layout.bits - 1, 2 ** (layout.bits - 1)
            low, high = min(0.0, float(group.min())), max(0.0, float(group.max()))
            scale = max(high / (half - 1), -low / half) if layout.symmetric else (high - low) / levels
            zero = half if layout.symmetric else round(-low / scale)
            parts.append(((group / scale).round() + zero).clamp(0, levels).sub(zero) * scale)
        rows.append(torch.cat(parts))
    return torch.stack(rows)


@pytest.mark.parametrize("layout", FORMATS, ids=str)
def test_no_group_is_worse_than_on_the_grid_of_its_extremes(layout: BlockFormat) -> None:
    weight = torch.randn(6, 200) * torch.rand(6, 1) * torch.where(torch.rand(6, 200) < 0.02, 8.0, 1.0)
    stored = round_to_nearest(weight, layout)
    block = layout.block_size(200)
    errors, plain = (
        torch.stack([part.square().sum(1) for part in torch.split(weight - found, block, 1)])
        for found in (stored.dequantized(), from_extremes(weight, layout))
    )
    assert bool((errors <= plain * (1 + 1e-5) + 1e-12).all())
    assert float(errors.sum()) < (0.97 if layout.bits < 8 else 1.0) * float(plain.sum())
    assert (stored.zero_point is None) == layout.symmetric


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([2, 4, 8]),
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    symmetric=st.booleans(),
)
def test_any_weight_is_stored_in_its_bits_and_near(bits: int, values: list[float], symmetric: bool) -> None:
    weight = torch.tensor([values])
    stored = round_to_nearest(weight, BlockFormat(bits, 32, symmetric))
    assert int(stored.q.max()) < 1 << bits and bool((stored.scale > 0).all())
    found = stored.dequantized()
    assert bool(found.isfinite().all())
    assert float((found - weight).square().sum()) <= float(weight.square().sum()) * (1 + 1e-5)


def test_a_weight_on_a_grid_is_stored_exactly() -> None:
    steps = torch.randint(0, 16, (8, 64))
    steps[:, ::16], steps[:, 1::16] = 0, 15
    weight = (steps - 5) * torch.rand(8, 1)
    torch.testing.assert_close(round_to_nearest(weight, BlockFormat(4, 16, False)).dequantized(), weight)


def test_importance_moves_the_error_to_where_it_matters_less() -> None:
    weight, importance = torch.randn(8, 64), torch.cat([torch.full((32,), 100.0), torch.ones(32)])
    layout = BlockFormat(2, 64, False)
    plain, weighted = (
        (round_to_nearest(weight, layout, factor).dequantized() - weight).square() for factor in (None, importance)
    )
    assert float((weighted * importance).sum()) < float((plain * importance).sum())
    assert float(weighted.sum()) > float(plain.sum())


@pytest.mark.parametrize("bits", [8, 4])
def test_golden_quantize_weights(bits: int, golden: Golden) -> None:
    model = nn.Sequential(nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 3))
    program = capture(model, torch.zeros(4, 40), dynamic="batch")
    golden(program, QuantizeWeights(bits, None if bits == 8 else 16, symmetric=bits == 8)(program))


def test_what_reads_one_value_shares_its_rounding() -> None:
    float_program = program_of(Encoder(), torch.randn(2, 5, 32))
    program = verify(QuantizeWeights()(float_program), full=True)
    rounded = [node for node in program.graph.nodes if node.target is fake_quantize_blocks]
    assert len(integer_nodes(program)) == 6 and len(rounded) == 4
    in_float = QuantizeWeights(accuracy_level=0)(float_program)
    assert not any(node.target is fake_quantize_blocks for node in in_float.graph.nodes)


def test_a_tied_head_is_stored_once_and_the_embedding_stays() -> None:
    model = Decoder(hidden=32, tied=True).eval()
    letters = sentences(2, 0)[:, :-1]
    program = verify(QuantizeWeights(8)(capture(model, letters)), full=True)
    stored = [node for node in program.graph.nodes if node.target is dequantize_blocks]
    assert len(stored) == len(integer_nodes(program)) == 9
    embedding = next(node for node in program.graph.nodes if node.target is torch.ops.aten.embedding.default)
    assert embedding.args[0].op == "get_attr" and embedding.args[0].meta["val"].dtype is torch.float32


def test_what_stays_float_has_a_reason() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept, self.done, self.narrow = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(4, 2)

        def forward(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y = self.done(self.kept(x))
            return nn.functional.linear(y, weight), self.narrow(x[:, :4]), self.done(x[0])

    program = capture(Mixed(), (torch.zeros(2, 64), torch.zeros(3, 64)))
    quantized = QuantizeWeights(keep_float={"linear": "asked for"})(program)
    assert list(integer_nodes(quantized)) == ["linear_1"]
    assert quantized.notes == (
        "Float: linear: asked for.",
        "Float: linear_2: its weight is quantized already or computed.",
        "Float: linear_3: with 4 inputs it would not become smaller.",
        "Float: linear_4: its input is a vector.",
    )


def test_quantizing_twice_changes_nothing_more() -> None:
    program = QuantizeWeights()(program_of(Encoder(), torch.randn(2, 5, 32)))
    again = QuantizeWeights(2)(program)
    assert again.graph.python_code("self").src == program.graph.python_code("self").src
    cleaned = Pipeline(tuple(CLEANUP))(program)
    assert len(integer_nodes(cleaned)) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 3}, "Weights have 8, 4 or 2 bits, not 3"),
        ({"group_size": 48}, "4 bits has 16, 32, 64, 128 inputs, or all"),
        ({"bits": 2, "group_size": 16}, "2 bits has 32, 64, 128 inputs"),
        ({"accuracy_level": 1}, "4 .input rounded to int8. or 0 .float., not 1"),
    ],
)
def test_bad_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(PassError, match=message):
        QuantizeWeights(**options)  # type: ignore[arg-type]


def test_bad_names_and_weights() -> None:
    model = nn.Linear(32, 8)
    program = capture(model, torch.zeros(2, 32))
    with pytest.raises(PassError, match="does not have: nowhere"):
        QuantizeWeights(keep_float=["nowhere"])(program)
    with torch.no_grad():
        model.weight[0, 0] = torch.nan
    with pytest.raises(PassError, match=r"The weight of node 'linear' .* holds NaN or infinity"):
        QuantizeWeights()(capture(model, torch.zeros(2, 32)))


def test_extreme_weights() -> None:
    model = nn.Linear(64, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.stack([torch.zeros(64), torch.ones(64), 1e-30 * torch.ones(64), torch.randn(64)]))
        model.weight[3, 5] = 1e6
    x = torch.randn(3, 64)
    found = QuantizeWeights(accuracy_level=0)(capture(model, x))(x)
    assert torch.equal(found[:, 0], torch.zeros(3))
    torch.testing.assert_close(found[:, 1], x.sum(1), rtol=1e-5, atol=1e-5)
    assert bool(found.isfinite().all())


@pytest.mark.parametrize(("bits", "limit"), [(8, 1e-4), (4, 5e-3), (2, 0.15)])
def test_a_decoder(bits: int, limit: float) -> None:
    letters = sentences(32, 9000)[:, :-1]
    program = trained()
    assert divergence(program(letters), QuantizeWeights(bits)(program)(letters)) < limit


@pytest.mark.parametrize("target", ["x86", "portable"])
def test_the_file_of_a_decoder(target: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    letters = sentences(2, 0)[:, :-1]
    dynamic = {"letters": {0: "batch", 1: "length"}}
    program = capture(Decoder(hidden=128).eval(), letters, dynamic=dynamic)
    quantized = QuantizeWeights()(program)
    to_onnx(quantized, tmp_path / "int4.onnx", target=target)
    result = validate(tmp_path / "int4.onnx", quantized, (letters,), target=target, raise_on_failure=True)
    assert result.census is not None and set(result.census.integer.values()) == {"MatMulNBits"}
    assert result.census.weight_dequantize == 0 and len(result.sizes) == 4
    assert (tmp_path / "int4.onnx").stat().st_size < 0.2 * to_onnx(program, target=target).file_bytes
