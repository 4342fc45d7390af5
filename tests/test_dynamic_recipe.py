"""compile(recipe="int8-dynamic") on recurrent models: every output proved, and the report says what is what."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxopt
from fxopt.graph.capture import capture
from fxopt.graph.quantized import integer_nodes
from fxopt.passes.quantize import QuantizeDynamic
from fxopt.recipes import dynamic_int8, dynamic_nodes, mixed_int8, with_dynamic_ranges
from fxopt.target import TARGETS


class Tagger(nn.Module):
    """tokens[N, T] -> scores[N, T, 8] and the last states."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 32)
        self.small = nn.Embedding(2, 32)
        self.layer = nn.LSTM(32, 96, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(192, 8)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, (h, c) = self.layer(self.table(tokens) + self.small(tokens % 2))
        return self.head(y), h, c


class Picked(nn.Module):
    """The first of several values."""

    def forward(self, values: tuple[Tensor, ...]) -> Tensor:
        return values[0]


TOKENS = torch.randint(0, 500, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "example", "kernels"),
    [
        (nn.LSTM(24, 96), torch.randn(6, 2, 24), {"lstm": "DynamicQuantizeLSTM"}),
        (
            Tagger(),
            TOKENS,
            {"lstm_layer_0": "DynamicQuantizeLSTM", "lstm": "DynamicQuantizeLSTM", "linear": "DynamicQuantizeMatMul"},
        ),
    ],
    ids=["lstm", "tagger"],
)
@pytest.mark.vnni
def test_all_outputs_are_proved(model: nn.Module, example: Tensor, kernels: dict[str, str], tmp_path: Path) -> None:
    name = "tokens" if isinstance(model, Tagger) else "input"
    found = fxopt.compile(
        model.eval(), example, recipe="int8-dynamic", target="x86", dynamic={name: {0: "first", 1: "second"}},
        output=tmp_path / "m.onnx", measure=False,
    )  # fmt: skip
    assert found.validation.ok and dict(found.report.census.integer) == kernels
    assert len(found.validation.outputs) == 3 and all(error.sqnr > 40 for error in found.validation.outputs)
    assert all(error.sqnr > 30 for error in found.report.differences)
    assert found.report.result.file_bytes < 0.31 * found.report.baseline.file_bytes
    reasons = {"embedding_1": "int8 would save only 184 bytes"} if isinstance(model, Tagger) else {}
    assert dict(found.report.float_reasons) == reasons


def test_the_recipe_follows_the_target() -> None:
    program = capture(Tagger().eval(), TOKENS)
    for target, count in (("arm64", 3), ("portable", 1)):
        reasons, quantized = dynamic_int8(program, TARGETS[target])({})
        assert len(integer_nodes(quantized)) == count
        assert ("lstm" in reasons) == (target == "portable")


@pytest.mark.parametrize("target", TARGETS)
def test_the_layers_that_can_be_dynamic_are_those_that_become_so(target: str) -> None:
    program = capture(nn.Sequential(Tagger(), Picked(), nn.Linear(8, 8), nn.Linear(8, 3)).eval(), TOKENS)
    claimed = integer_nodes(QuantizeDynamic(target=target)(program))
    expected = [node.name for node in program.graph.nodes if node.name in claimed]
    assert dynamic_nodes(program, TARGETS[target]) == expected


def test_static_and_dynamic_ranges_mix() -> None:
    program = capture(Tagger().eval(), TOKENS)
    for target, count in (("x86", 3), ("portable", 1)):
        reasons, quantized = mixed_int8(program, TARGETS[target], [TOKENS])({})
        assert len(integer_nodes(quantized)) == count
        assert ("lstm" in reasons) == (target == "portable")


@pytest.mark.parametrize("correlated", [True, False])
def test_weights_are_rounded_by_data_where_that_helps(correlated: bool) -> None:
    """With inputs that have nothing to do with each other, rounding to the nearest is the best there is."""
    torch.manual_seed(0)
    x = torch.randn(64, 8) @ torch.randn(8, 64) if correlated else 8 * torch.eye(64)
    program = capture(nn.Linear(64, 32), x[:1], dynamic="batch")
    step = QuantizeDynamic(target="x86-avx2")
    plain, found = step(program), with_dynamic_ranges(program, program, step, [x])
    steps = [result.module.get_buffer("weight_int8") for result in (plain, found)]
    assert torch.equal(*steps) != correlated
    assert torch.equal(with_dynamic_ranges(program, program, step, None).module.get_buffer("weight_int8"), steps[0])


def test_what_is_named_stays_float() -> None:
    program = capture(Tagger().eval(), TOKENS)
    kept = {"lstm": "asked for", "embedding": "asked for too"}
    reasons, quantized = dynamic_int8(program, TARGETS["x86"])(kept)
    assert {name: reasons[name] for name in kept} == kept
    assert list(integer_nodes(quantized)) == ["linear"]
