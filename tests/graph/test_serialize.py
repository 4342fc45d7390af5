"""Saved and loaded again, a Program is the same: text, outputs, names, structure, trainability, ONNX."""

import collections
import json
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.zoo_models.shim import declare_torchvision_ops
from fxopt.errors import ModelError
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.printer import format_program
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.graph.serialize import load, save
from fxopt.graph.verify import verify
from tests.graph.models import ConvNet, Function

aten = torch.ops.aten


def round_trip(program: Program, path: Path, *inputs: Any) -> Program:
    """Save, load, and compare everything that can be compared."""
    save(program, path / "program.pt2")
    loaded = verify(load(path / "program.pt2"), full=True)
    assert format_program(loaded) == format_program(program)
    assert {node.name for node in loaded.graph.nodes} == {node.name for node in program.graph.nodes}
    for field in fields(Program):
        if field.name != "module":
            assert getattr(loaded, field.name) == getattr(program, field.name), field.name
    expected, actual = (pytree.tree_flatten(p(*inputs)) for p in (program, loaded))
    assert expected[1] == actual[1]
    for left, right in zip(expected[0], actual[0], strict=True):
        assert torch.equal(left, right) if isinstance(left, Tensor) else left == right
    return loaded


def test_conv_net(tmp_path: Path) -> None:
    program = replace(capture(ConvNet(), torch.randn(1, 3, 8, 8), dynamic="batch"), history=("A(1)", "B"), notes=("n",))
    loaded = round_trip(program, tmp_path, torch.randn(3, 3, 8, 8))
    (relu,), (original,) = (p.graph.find_nodes(op="call_function", target=aten.relu.default) for p in (loaded, program))
    assert relu.meta["stack_trace"] == original.meta["stack_trace"]


def test_a_loaded_program_trains_as_before(tmp_path: Path) -> None:
    program = capture(ConvNet(), torch.randn(2, 3, 8, 8))
    program.module.get_parameter("conv.bias").requires_grad_(False)
    loaded = round_trip(program, tmp_path, torch.randn(2, 3, 8, 8))
    frozen = {name: parameter.requires_grad for name, parameter in loaded.module.named_parameters()}
    assert frozen == {name: parameter.requires_grad for name, parameter in program.module.named_parameters()}
    assert frozen["conv.bias"] is False and frozen["conv.weight"] is True
    x = torch.randn(2, 3, 8, 8)
    for each in (program, loaded):
        each.eval()(x).square().sum().backward()
    left, right = (each.module.get_parameter("conv.weight").grad for each in (program, loaded))
    assert left is not None and right is not None and torch.equal(left, right)


def test_a_loaded_program_becomes_the_same_onnx(tmp_path: Path) -> None:
    program = capture(ConvNet(), torch.randn(1, 3, 8, 8), dynamic="batch")
    loaded = round_trip(program, tmp_path, torch.randn(2, 3, 8, 8))
    to_onnx(loaded, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 8]
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), program(x))


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-128, 128, (4, 2), dtype=torch.int8))
        self.register_buffer("steps", torch.rand(4) + 0.1)
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int8))
        self.register_buffer("scale", torch.tensor(0.125))
        self.register_buffer("zero_point", torch.tensor(3, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize(self.weight, self.steps, self.zeros, 0)
        q = quantize(nn.functional.linear(x, weight), self.scale, self.zero_point, None, 0, 255, torch.uint8)
        assert isinstance(q, Tensor)
        return q


def test_own_ops_and_integer_buffers(tmp_path: Path) -> None:
    round_trip(capture(Quantized(), torch.randn(1, 2), dynamic="batch"), tmp_path, torch.randn(3, 2))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: {"a": x + 1, "none": None, "n": 3, "inf": float("inf")},
        lambda m, x: (x, [m.linear(x), (m.total,)], x.shape[0]),
        lambda m, x: collections.OrderedDict(z=x.sin(), a=x),
        lambda m, x: x.reshape(-1, 4)[: x.shape[0]],
        lambda m, x: x[x > 0],
        lambda m, x: nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    ],
)
def test_graphs_and_structures(function: Callable[..., Any], tmp_path: Path) -> None:
    program = capture(Function(function), torch.randn(1, 8), dynamic={"inputs_0": {0: "batch"}})
    round_trip(program, tmp_path, torch.randn(3, 8))


def test_lstm_and_keyword_constants(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3, batch_first=True)

        def forward(self, x: Tensor, scale: float = 1.0, *, name: str | None = None) -> Any:
            return self.lstm(x * scale)[0]

    program = capture(Recurrent(), {"x": torch.randn(1, 5, 4), "scale": 2.0, "name": None}, dynamic={"x": {0: "n"}})
    save(program, tmp_path / "p.pt2")
    loaded = load(tmp_path / "p.pt2")
    x = torch.randn(2, 5, 4)
    assert torch.equal(loaded(x=x, scale=2.0, name=None), program(x=x, scale=2.0, name=None))
    assert loaded.constants == program.constants == {1: 2.0, 2: None}


def tied() -> Program:
    program = capture(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(2, 4))
    edit = Edit(program, by=None)
    edit.module.get_submodule("1").weight = edit.module.get_submodule("0").weight
    return verify(edit.finish())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    program = tied()
    assert "1.weight = 0.weight: float32[4, 4]" in format_program(program)
    loaded = round_trip(program, tmp_path, torch.randn(2, 4))
    first, second = (loaded.module.get_submodule(name).weight for name in "01")
    assert first is second and len(list(loaded.parameters())) == 3


def test_a_view_of_a_large_tensor_is_saved_alone(tmp_path: Path) -> None:
    program = capture(nn.Linear(4, 4), torch.randn(2, 4))
    edit = Edit(program, by=None)
    large = torch.randn(1000, 4)
    edit.module.weight = nn.Parameter(large[3:7])
    round_trip(edit.finish(), tmp_path, torch.randn(2, 4))
    assert (tmp_path / "program.pt2").stat().st_size < large.nbytes * 2


@pytest.mark.filterwarnings("error:No complete tensor")
def test_a_transposed_weight_is_saved_in_order(tmp_path: Path) -> None:
    program = capture(nn.Linear(4, 6), torch.randn(2, 4))
    edit = Edit(program, by=None)
    edit.module.weight = nn.Parameter(torch.randn(4, 6).t())
    program, x = edit.finish(), torch.randn(2, 4)
    save(program, tmp_path / "program.pt2")
    torch.testing.assert_close(load(tmp_path / "program.pt2")(x), program(x))


class Holder:
    """A result class that pytree knows, but that has no name in a file."""

    def __init__(self, value: Tensor, other: Tensor) -> None:
        self.value, self.other = value, other


pytree.register_pytree_node(
    Holder, lambda h: ([h.value, h.other], ["value", "other"]), lambda values, names: Holder(*values)
)


def test_a_class_without_a_serialized_name_becomes_a_dict(tmp_path: Path) -> None:
    program = capture(Function(lambda m, x: (Holder(x + 1, x), x)), torch.randn(2))
    save(program, tmp_path / "p.pt2")
    loaded = load(tmp_path / "p.pt2")
    x = torch.randn(2)
    assert torch.equal(loaded(x)[0]["value"], x + 1) and torch.equal(loaded(x)[0]["other"], x)
    assert loaded.notes == ("The saved output structure holds plain dict for Holder in place of the original classes.",)


def rewrite_description(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change fxopt's description inside a saved file."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in files if name.endswith("fxopt.json"))
    description = json.loads(files[name])
    change(description)
    files[name] = json.dumps(description).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for key, data in files.items():
            archive.writestr(key, data)


def test_an_unknown_class_becomes_a_dict(tmp_path: Path) -> None:
    program = capture(Function(lambda m, x: collections.OrderedDict(a=x)), torch.randn(2))
    save(program, tmp_path / "p.pt2")
    unknown = "my_package.Output"
    rewrite_description(
        tmp_path / "p.pt2",
        lambda d: d.update(out_spec=d["out_spec"].replace("collections.OrderedDict", unknown)),
    )
    loaded = load(tmp_path / "p.pt2")
    assert type(loaded(torch.ones(2))) is dict and "a" in loaded(torch.ones(2))
    assert loaded.notes == ("The output class my_package.Output is not known here; a dict or tuple stands for it.",)


@pytest.mark.slow
def test_huggingface_outputs_keep_their_class(tmp_path: Path) -> None:
    declare_torchvision_ops()
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20
        )
        model = transformers.BertModel(config)
    program = capture(model, torch.tensor([[1, 2, 3]]), dynamic={"input_ids": {0: "batch", 1: "time"}})
    loaded = round_trip(program, tmp_path, torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]))
    assert type(loaded(torch.tensor([[1, 2]]))).__name__ == "BaseModelOutputWithPoolingAndCrossAttentions"


def test_a_file_of_torch_export_is_read_too(tmp_path: Path) -> None:
    model, x = ConvNet().eval(), torch.randn(2, 3, 8, 8)
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "plain.pt2")
    program = load(tmp_path / "plain.pt2")
    torch.testing.assert_close(program(x), model(x))
    assert program.history == ()


def test_torch_export_reads_our_file(tmp_path: Path) -> None:
    program = capture(ConvNet(), torch.randn(1, 3, 8, 8), dynamic="batch")
    program.save(tmp_path / "p.pt2")
    (result,) = torch.export.load(tmp_path / "p.pt2").module()(torch.ones(3, 3, 8, 8))
    assert torch.equal(result, program(torch.ones(3, 3, 8, 8)))


class Subclass(Tensor):
    """torch.export.save writes a subclass of Tensor as a pickle."""


def test_a_file_with_a_pickle_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    exported = torch.export.export(model, (torch.randn(1, 2),))
    exported.state_dict["weight"] = nn.Parameter(torch.randn(2, 2).as_subclass(Subclass))
    torch.export.save(exported, tmp_path / "p.pt2")
    with pytest.raises(ModelError, match=r"holds 'weight' as a pickle"):
        load(tmp_path / "p.pt2")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"There is no file"):
        load(tmp_path / "missing.pt2")
    (tmp_path / "text.pt2").write_text("hello")
    with pytest.raises(ModelError, match=r"is no .pt2 archive"):
        load(tmp_path / "text.pt2")
    with zipfile.ZipFile(tmp_path / "zip.pt2", "w") as archive:
        archive.writestr("a.txt", "hello")
    with pytest.raises(ModelError, match=r"no .pt2 of torch"):
        load(tmp_path / "zip.pt2")
    program = capture(nn.Linear(2, 2), torch.randn(1, 2))
    save(program, tmp_path / "p.pt2")
    data = (tmp_path / "p.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"cut.pt2"):
        load(tmp_path / "cut.pt2")
    rewrite_description(tmp_path / "p.pt2", lambda d: d.update(format=99))
    with pytest.raises(ModelError, match=r"has the format 99"):
        load(tmp_path / "p.pt2")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = capture(nn.Linear(2, 2), torch.randn(1, 2))
    save(program, tmp_path / "p.pt2")
    before = (tmp_path / "p.pt2").read_bytes()

    def fail(exported: Any, path: str, **keywords: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.export, "save", fail)
    with pytest.raises(ModelError, match=r"Cannot write .*disk full"):
        save(program, tmp_path / "p.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["p.pt2"]
    assert (tmp_path / "p.pt2").read_bytes() == before


def test_paths_that_cannot_be_written(tmp_path: Path) -> None:
    program = capture(nn.Linear(2, 2), torch.randn(1, 2))
    with pytest.raises(ModelError, match=r"saved as a .pt2 file"):
        save(program, tmp_path / "p.onnx")
    with pytest.raises(ModelError, match=r"Cannot write"):
        save(program, tmp_path / "missing" / "p.pt2")


def test_a_constant_that_json_cannot_hold_is_told(tmp_path: Path) -> None:
    program = replace(capture(nn.Linear(2, 2), torch.randn(1, 2)), constants={1: object()})
    with pytest.raises(ModelError, match=r"constant input .* cannot be saved"):
        save(program, tmp_path / "p.pt2")
