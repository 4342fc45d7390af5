"""int8 embeddings: the values of rounded rows, a quarter of the file, and tables that are shared or stay float."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import PassError
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import validate
from fxopt.graph.capture import capture
from fxopt.graph.interpret import run, sqnr
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.printer import format_program
from fxopt.graph.program import Program
from fxopt.graph.serialize import load
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import Quantize, QuantizeDynamic, QuantizeEmbeddings
from tests.conftest import Golden

ROWS, WIDTH = 600, 32
TOKENS = torch.randint(0, ROWS, (2, 7), generator=torch.Generator().manual_seed(0))


class Language(nn.Module):
    """tokens[N, T] -> scores[N, T, ROWS], the output layer with the embedding's weight or its own."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ROWS, WIDTH, padding_idx=0)
        self.head = nn.Linear(WIDTH, ROWS)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.tanh(self.embedding(tokens)))
        return scores


def language(tied: bool) -> Program:
    return capture(Language(tied).eval(), TOKENS, dynamic={"tokens": {0: "batch", 1: "time"}})


def test_rows_are_rounded_to_255_steps_of_their_own() -> None:
    layer = nn.Embedding(ROWS, WIDTH)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-3, 3, ROWS)[:, None])  # one scale for the table would lose most rows
        layer.weight[5] = 0.0
    (rows,) = run(QuantizeEmbeddings()(capture(layer, torch.arange(ROWS))), (torch.arange(ROWS),))
    weight = layer.weight.detach()
    step = weight.abs().amax(-1, keepdim=True) / 127
    torch.testing.assert_close(rows, torch.round(weight / step).nan_to_num() * step, rtol=1e-6, atol=0)


@pytest.mark.parametrize("target", ["x86", "portable"])
def test_the_file_is_a_quarter_and_onnxruntime_reads_the_same_rows(target: str, tmp_path: Path) -> None:
    layer = nn.Embedding(4000, 64)
    program = capture(layer, TOKENS, dynamic={"input": {0: "batch", 1: "time"}})
    quantized = verify(QuantizeEmbeddings()(program), full=True)
    emitted = to_onnx(quantized, tmp_path / "m.onnx", target=target)
    result = validate(tmp_path / "m.onnx", quantized, (TOKENS,), target=target)
    assert result.ok and all(error.max_error == 0 for error in result.outputs)
    assert result.census is not None and result.census.weight_dequantize == 0
    assert dict(result.census.kernels) == {"Gather": 2, "Cast": 1, "Mul": 1}
    assert emitted.file_bytes < 0.28 * to_onnx(program, target=target).file_bytes
    assert sqnr(layer(TOKENS), quantized(TOKENS)) > 40


@pytest.mark.parametrize("target", ["x86", "portable"])
@pytest.mark.vnni
def test_a_tied_table_is_stored_once_for_the_embedding_and_the_linear(target: str, tmp_path: Path) -> None:
    program = language(tied=True)
    quantized = verify(Pipeline((QuantizeDynamic(target=target), QuantizeEmbeddings()))(program), full=True)
    assert quantized.notes == ()
    assert [name for name, value in quantized.module.named_buffers() if value.shape == (ROWS, WIDTH)] == [
        "head.weight_int8"
    ]
    emitted = to_onnx(quantized, tmp_path / "m.onnx", target=target)
    assert emitted.file_bytes < 0.4 * to_onnx(program, target=target).file_bytes
    result = validate(tmp_path / "m.onnx", quantized, (TOKENS,), target=target)
    assert result.ok, result.failures
    assert result.census is not None and set(result.census.integer) == {"linear"}
    assert sqnr(program(TOKENS), quantized(TOKENS)) > 30


def test_a_tied_table_is_shared_with_a_static_linear_too() -> None:
    program = language(tied=True)
    quantized = verify(Pipeline((Quantize([TOKENS]), QuantizeEmbeddings()))(program), full=True)
    assert [name for name, value in quantized.module.named_buffers() if value.shape == (ROWS, WIDTH)] == [
        "head.weight_int8"
    ]


def test_a_tied_table_stays_float_while_a_linear_reads_it_so() -> None:
    quantized = QuantizeEmbeddings()(language(tied=True))
    assert quantized.notes == ("Float: embedding: its table is read by linear too, as floats.",)
    assert format_program(quantized) == format_program(language(tied=True))


def test_untied_tables_do_not_mix() -> None:
    quantized = Pipeline((QuantizeDynamic(), QuantizeEmbeddings()))(language(tied=False))
    names = {name for name, value in quantized.module.named_buffers() if value.shape == (ROWS, WIDTH)}
    assert names == {"head.weight_int8", "embedding.weight_int8"}


def test_one_table_read_twice_is_stored_once() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(ROWS, WIDTH)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            y: Tensor = self.table(left) - self.table(right)
            return y

    quantized = verify(QuantizeEmbeddings()(capture(Pair(), (TOKENS, TOKENS.flip(0)))))
    assert [name for name, _ in quantized.module.named_buffers()] == ["table.weight_int8", "table.weight_row_scale"]


def test_golden_quantize_embeddings(golden: Golden) -> None:
    program = language(tied=True)
    golden(program, Pipeline((QuantizeDynamic(), QuantizeEmbeddings()))(program))


def test_what_stays_float_has_a_reason() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.small = nn.EmbeddingBag(ROWS, WIDTH), nn.Embedding(2, WIDTH)
            self.kept, self.short = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH, dtype=torch.float16)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            computed = nn.functional.embedding(x, torch.tanh(self.kept.weight))
            return self.bag(x), self.small(x % 2), self.kept(x), self.short(x), computed

    program = capture(Mixed(), TOKENS)
    quantized = QuantizeEmbeddings(keep_float={"embedding_2": "asked for"})(program)
    assert sorted(quantized.notes) == [
        "Float: embedding: its table is computed.",
        "Float: embedding_1: int8 would save only 184 bytes.",
        "Float: embedding_2: asked for.",
        "Float: embedding_3: its table is float16.",
        "Float: embedding_bag: a bag sums the rows inside one op, which reads floats.",
    ]
    assert format_program(quantized) == format_program(program)


def test_a_model_without_embeddings_comes_back_the_same() -> None:
    program = capture(nn.Linear(3, 2), torch.zeros(4, 3))
    assert QuantizeEmbeddings()(program) is program


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(PassError, match="does not have: nowhere"):
        QuantizeEmbeddings(keep_float=["nowhere"])(language(tied=False))


def test_it_is_saved_loaded_and_left_alone_by_the_cleanup_passes(tmp_path: Path) -> None:
    program = language(tied=True)
    quantized = Pipeline((QuantizeDynamic(), QuantizeEmbeddings(), *CLEANUP))(program)
    quantized.save(tmp_path / "m.pt2")
    again = load(tmp_path / "m.pt2")
    assert format_program(again) == format_program(quantized)
    assert torch.equal(again(TOKENS), quantized(TOKENS))
    assert QuantizeEmbeddings()(quantized).module.code == quantized.module.code
