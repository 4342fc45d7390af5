"""The proof finds what is wrong with a file: values, structure, sizes, and quantization that does not fuse."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from fxopt.errors import ValidationError
from fxopt.export.bisect import first_difference
from fxopt.export.census import take_census
from fxopt.export.sweep import dimension_sizes, resize
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import validate
from fxopt.graph.capture import capture
from fxopt.graph.program import Program
from fxopt.passes.quantize import Quantize


class Net(nn.Module):
    """Two convolutions with room for integer kernels, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 32, 3)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.second(self.first(x).relu()).relu().mean((2, 3)))
        return logits


X = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    return capture(Net(), X, dynamic="batch")


@pytest.fixture
def file(program: Program, tmp_path: Path) -> Path:
    to_onnx(program, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)


def shift_weight(model: onnx.ModelProto, name: str, by: float) -> None:
    for index, tensor in enumerate(model.graph.initializer):
        if tensor.name == name:
            model.graph.initializer[index].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + by, name))


def test_a_good_file_is_proved_at_several_batch_sizes(program: Program, file: Path) -> None:
    result = validate(file, program, (X,))
    assert result.ok and not result.skipped
    assert [dict(sizes) for sizes in result.sizes] == [{"batch": 2}, {"batch": 1}, {"batch": 3}]
    assert result.outputs[0].relative < 1e-5
    assert result.census is not None and len(result.census.float_compute) == 3


def test_a_wrong_weight_fails_and_its_node_is_named(program: Program, file: Path) -> None:
    change(file, lambda model: shift_weight(model, "second.bias", 0.1))
    result = validate(file, program, (X,))
    assert not result.ok
    assert result.first_difference == "conv2d_1"
    assert any("self.second" in failure for failure in result.failures)


def test_raise_on_failure_raises_with_all_failures(program: Program, file: Path) -> None:
    change(file, lambda model: shift_weight(model, "head.bias", 1.0))
    with pytest.raises(ValidationError, match=r"is not proved[\s\S]*differs[\s\S]*Do not deploy"):
        validate(file, program, (X,), raise_on_failure=True)


def test_a_file_that_is_no_model_fails(program: Program, file: Path) -> None:
    file.write_bytes(b"not a model")
    assert "checker refuses" in validate(file, program, (X,)).failures[0]


def test_a_node_that_onnxruntime_does_not_know_fails(program: Program, file: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.node[0].domain = "com.nobody"
        model.opset_import.add(domain="com.nobody", version=1)

    change(file, rename)
    result = validate(file, program, (X,))
    assert any("does not load" in failure for failure in result.failures)


def test_a_batch_that_was_baked_in_fails_at_the_other_sizes(program: Program, file: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    change(file, fix)
    result = validate(file, program, (X,))
    assert any("batch" in failure or "dimension" in failure for failure in result.failures)


def test_no_difference_is_found_in_a_good_file(program: Program, file: Path) -> None:
    assert first_difference(file, program, (X,), tolerance=1e-4) is None


def test_inputs_are_repeated_and_cut_to_other_sizes(program: Program) -> None:
    assert dimension_sizes(program, (X,)) == {"batch": 2}
    (larger,) = resize(program, (X,), {"batch": 5})
    assert torch.equal(larger, X[[0, 1, 0, 1, 0]])
    assert torch.equal(resize(program, (X,), {"batch": 1})[0], X[:1])


@pytest.fixture(scope="module")
def quantized(program: Program) -> Program:
    return Quantize([X], target="x86", correct_bias=False)(program)


def test_a_quantized_file_is_proved_with_integer_kernels(quantized: Program, tmp_path: Path) -> None:
    to_onnx(quantized, tmp_path / "m.onnx", target="x86")
    result = validate(tmp_path / "m.onnx", quantized, (X,), target="x86")
    assert result.ok, result.failures
    assert result.census is not None and not result.census.unfused and result.census.weight_dequantize == 0
    assert result.census.kernels["QLinearConv"] == 2
    assert result.outputs[0].sqnr >= 30


def test_a_wrong_quantized_weight_is_found_at_every_level(quantized: Program, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    to_onnx(quantized, path, target="x86")

    def halve(model: onnx.ModelProto) -> None:
        for index, tensor in enumerate(model.graph.initializer):
            if tensor.name == "second.weight_int8":
                values = numpy_helper.to_array(tensor) // 2
                model.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, tensor.name))

    change(path, halve)
    failures = validate(path, quantized, (X,), target="x86").failures
    assert {failure.split(",")[0] for failure in failures if "differs:" in failure} == {
        "all optimisations",
        "no optimisations",
    }


class Wide(nn.Module):
    """Two convolutions wide enough to be matrix products on AMX: x[N, 16, 8, 8] -> [N, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(16, 128, 1), nn.Conv2d(128, 128, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(self.last(self.stem(x).relu()), 1).flatten(1)


@pytest.fixture(scope="module")
def amx(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path]:
    torch.manual_seed(0)
    program = Quantize([X], target="x86-amx")(capture(Wide(), X, dynamic="batch"))
    path = tmp_path_factory.mktemp("amx") / "m.onnx"
    to_onnx(program, path, target="x86-amx")
    return program, path


@pytest.mark.vnni
def test_kernels_of_a_target_are_compared_with_those_of_another(amx: tuple[Program, Path]) -> None:
    program, path = amx
    result = validate(path, program, (X,), target="x86-amx")
    assert result.ok, result.failures
    assert result.checks[-1] == "the same outputs as with target x86"
    assert "the same outputs as with target x86" not in validate(path, program, (X,), target="x86").checks


@pytest.mark.parametrize(("initializer", "is_large"), [("zero_point", True), ("int8", False)])
@pytest.mark.vnni
def test_a_kernel_that_computes_other_integers_is_found(
    amx: tuple[Program, Path], tmp_path: Path, initializer: str, is_large: bool
) -> None:
    """As a kernel that forgets the zero point, or that errs in a few products only, would."""
    program, path = amx

    def spoil(model: onnx.ModelProto) -> None:
        name = f"last.weight_{initializer}_shifted"
        index, tensor = next((i, t) for i, t in enumerate(model.graph.initializer) if t.name == name)
        values = numpy_helper.to_array(tensor).copy()
        if is_large:
            values[:] = 0
        else:
            values[0, :2] //= 2
        model.graph.initializer[index].CopyFrom(numpy_helper.from_array(values, name))

    spoilt = tmp_path / "m.onnx"
    spoilt.write_bytes(path.read_bytes())
    change(spoilt, spoil)
    result = validate(spoilt, program, (X,), target="x86-amx")
    assert any("wrong on this machine; use target='x86'" in failure for failure in result.failures)
    assert any("all optimisations, 1 thread" in failure for failure in result.failures) == is_large
    with pytest.raises(ValidationError, match="use target='x86'"):
        result.raise_on_failure("m.onnx")


def test_quantization_that_does_not_fuse_is_found(quantized: Program, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    to_onnx(quantized, path, target="x86")

    def break_bias_scale(model: onnx.ModelProto) -> None:  # a bias scale that is not x_scale * w_scale stops the fusion
        for index, tensor in enumerate(model.graph.initializer):
            if tensor.name == "second.bias_scale":
                scaled = numpy_helper.to_array(tensor) * 1.5
                model.graph.initializer[index].CopyFrom(numpy_helper.from_array(scaled, tensor.name))

    change(path, break_bias_scale)
    result = validate(path, quantized, (X,), target="x86", sqnr=-100)
    assert list(result.census.unfused) == ["conv2d_1"] if result.census else False
    assert result.census is not None and result.census.weight_dequantize > 0
    assert any("not as an integer kernel" in failure for failure in result.failures)
    assert any("dequantized on every run" in failure for failure in result.failures)


def test_the_census_counts_the_optimised_graph(file: Path) -> None:
    census = take_census(file)
    assert census.integer_kernels == 0 and sum(census.kernels.values()) > 3
