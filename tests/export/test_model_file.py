"""The file: what protobuf itself would write, whole or absent, weights beside it when they are large."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from fxopt.errors import ExportError
from fxopt.export import model_file
from fxopt.export.model_file import OnnxModel
from fxopt.export.session import Session
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.graph.program import Program


@pytest.fixture
def program() -> Program:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5), nn.Linear(5, 70))
    return capture(model, torch.randn(2, 3, 6, 6), dynamic="batch")


def test_the_written_file_parses_to_the_proto_in_memory(program: Program, tmp_path: Path) -> None:
    model = to_onnx(program, tmp_path / "m.onnx")
    assert onnx.load(tmp_path / "m.onnx") == model.proto
    assert (tmp_path / "m.onnx").stat().st_size == model.proto.ByteSize() == model.file_bytes


def test_weights_share_memory_with_the_program(program: Program) -> None:
    weights = to_onnx(program).weights
    parameter = next(p for name, p in program.module.named_parameters() if name == "0.weight")
    stored = weights["0.weight"]
    assert isinstance(stored, torch.Tensor) and stored.data_ptr() == parameter.data_ptr()


def test_a_weight_of_one_element_and_no_stride_is_written(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([2.5, 1.0])[:1].expand(1).as_strided((1,), (0,)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    x = torch.randn(3, 4)
    to_onnx(capture(Scaled(), x), tmp_path / "m.onnx")
    torch.testing.assert_close(Session(tmp_path / "m.onnx")(x)[0], x * 2.5)


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**40 + 5])
def test_varint_is_what_protobuf_writes(value: int) -> None:
    tensor = onnx.TensorProto(dims=[value])  # field 1, packed or not, ends with the varint of the value
    assert tensor.SerializeToString().endswith(model_file._varint(value))


def test_large_weights_go_to_a_file_beside_the_model(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "EXTERNAL_DATA_BYTES", 100)
    to_onnx(program, tmp_path / "m.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert (tmp_path / "m.onnx.data").stat().st_size >= 8 * 16 * 5 * 4 + 5 * 70 * 4  # the two linear weights
    x = torch.randn(3, 3, 6, 6)
    torch.testing.assert_close(Session(tmp_path / "m.onnx")(x)[0], program(x).detach(), rtol=1e-5, atol=1e-5)
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)


def test_weights_go_beside_the_model_when_asked(program: Program, tmp_path: Path) -> None:
    model = to_onnx(program)
    model.write(tmp_path / "m.onnx", external=True)
    assert (tmp_path / "m.onnx").stat().st_size < model.file_bytes / 2 and (tmp_path / "m.onnx.data").exists()
    assert {tensor.name for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer} == set(model.weights)


def test_a_folder_that_does_not_exist_is_named(program: Program, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Choose a folder that exists"):
        to_onnx(program, tmp_path / "nowhere" / "m.onnx")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def full_disk(self: OnnxModel, file: object, external: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(OnnxModel, "_write_model", full_disk)
    with pytest.raises(ExportError, match="No space left"):
        to_onnx(program, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
