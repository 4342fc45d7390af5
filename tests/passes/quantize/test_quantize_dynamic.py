"""Dynamic int8: shared quantizations, exact arithmetic, and linears that stay float with a reason."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import DataError, PassError, TargetError
from fxopt.export.census import take_census
from fxopt.export.session import Session
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.graph.integer import run_integer
from fxopt.graph.interpret import sqnr
from fxopt.graph.ops import dynamic_quantize
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import QuantizeDynamic
from fxopt.target import TARGETS
from tests.conftest import Golden
from tests.passes.quantize.nets import Encoder, program_of

TOKENS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def encoder() -> Program:
    torch.manual_seed(0)
    return program_of(Encoder(), TOKENS)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.vnni
def test_linears_are_integer_kernels_with_the_very_same_values(encoder: Program, target: str) -> None:
    program = verify(QuantizeDynamic(target=target)(encoder), full=True)
    proto, settings = to_onnx(program, target=target).proto, TARGETS[target].session
    census = take_census(proto, integer_nodes(program), settings)
    assert set(census.integer.values()) == {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
    assert census.unfused == {} and census.weight_dequantize == 0
    for batch in (TOKENS, TOKENS[:1]):
        (actual,) = Session(proto, settings=settings)(batch)
        assert sqnr(run_integer(program, (batch,))[0], actual) > 100
        assert sqnr(encoder(batch), actual) > 25


def test_query_key_and_value_share_one_quantization(encoder: Program) -> None:
    program = QuantizeDynamic()(encoder)
    linears = Counter(integer_nodes(program).values())["linear"]
    quantizations = [node for node in program.graph.nodes if node.target is dynamic_quantize]
    assert len(quantizations) == linears - 2


def test_the_range_follows_the_input() -> None:
    """A static range would cut off what is a hundred times larger than the calibration data."""
    torch.manual_seed(0)
    model = nn.Linear(64, 32)
    program = QuantizeDynamic()(capture(model, torch.randn(4, 64)))
    for scale in (1e-3, 1.0, 1e3):
        x = scale * torch.randn(4, 64)
        assert sqnr(model(x), program(x)) > 35


def test_weights_fill_the_range_of_the_target(encoder: Program) -> None:
    for name, target in TARGETS.items():
        buffers = dict(QuantizeDynamic(target=name)(encoder).module.named_buffers())
        weights = [weight for key, weight in buffers.items() if key.endswith("weight_int8")]
        assert {int(weight.abs().max()) for weight in weights} == {target.weight_max}
    with pytest.raises(TargetError, match="riscv"):
        QuantizeDynamic(target="riscv")(encoder)


def test_golden_quantize_dynamic(golden: Golden) -> None:
    program = capture(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)), torch.zeros(4, 3), dynamic="batch")
    golden(program, QuantizeDynamic()(program))


def test_tied_weights_are_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.layer(torch.relu(self.layer(x)))
            return y

    program = QuantizeDynamic()(capture(Tied(), torch.zeros(2, 8)))
    assert [name for name, _ in program.module.named_buffers() if name.endswith("int8")] == ["layer.weight_int8"]


def test_what_stays_float_has_a_reason() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept, self.done = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return nn.functional.linear(self.done(self.kept(x)), weight)

    program = capture(Mixed(), (torch.zeros(2, 8), torch.zeros(3, 8)))
    quantized = QuantizeDynamic(keep_float={"linear": "asked for"})(program)
    assert list(integer_nodes(quantized)) == ["linear_1"]
    assert quantized.notes == ("Float: linear: asked for.", "Float: linear_2: its weight is computed.")


def test_a_model_without_linears_comes_back_the_same() -> None:
    program = capture(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    assert str(QuantizeDynamic()(program)) == str(program)


def test_an_unknown_name_is_an_error(encoder: Program) -> None:
    with pytest.raises(PassError, match="does not have: nowhere"):
        QuantizeDynamic(keep_float=["nowhere"])(encoder)


def test_it_runs_behind_the_cleanup_passes(encoder: Program) -> None:
    program = Pipeline((*CLEANUP, QuantizeDynamic(), *CLEANUP))(encoder)
    verify(program, full=True)
    assert len(integer_nodes(program)) == len(integer_nodes(QuantizeDynamic()(encoder)))


def test_weights_are_rounded_for_the_inputs_of_each_linear() -> None:
    """Correlated inputs: the output errs less, on others too, with the same grids and the same graph."""
    torch.manual_seed(0)
    mixed = torch.randn(16, 64)
    data, others = (torch.randn(count, 16) @ mixed for count in (256, 128))
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32))
    program = capture(model, data, dynamic="batch")
    plain = QuantizeDynamic(target="x86-avx2")(program)
    rounded = verify(QuantizeDynamic(target="x86-avx2", data=[data])(program), full=True)
    assert [node.target for node in plain.graph.nodes if node.op == "call_function"] == [
        node.target for node in rounded.graph.nodes if node.op == "call_function"
    ]
    assert torch.equal(*(found.module.get_buffer("0.weight_scale") for found in (plain, rounded)))
    assert sqnr(program(others), rounded(others)) > sqnr(program(others), plain(others)) + 1
    assert "data" not in rounded.history[-1]


def test_linears_of_many_inputs_are_rounded_to_the_nearest() -> None:
    torch.manual_seed(0)
    program = capture(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 16)), TOKENS.repeat(1, 1, 2))
    plain = QuantizeDynamic()(program)
    rounded = QuantizeDynamic(data=[TOKENS.repeat(1, 1, 2)], largest=32)(program)
    same = [
        torch.equal(*(found.module.get_buffer(f"{name}.weight_int8") for found in (plain, rounded))) for name in "01"
    ]
    assert same == [True, False]


def test_data_to_round_by_has_to_fit(encoder: Program) -> None:
    with pytest.raises(DataError, match="empty"):
        QuantizeDynamic(data=[])(encoder)
    with pytest.raises(DataError, match="NaN or infinity"):
        QuantizeDynamic(data=[TOKENS * torch.nan])(encoder)
