"""Emission: names, opsets, metadata, outputs that are inputs or twice the same, and what is refused."""

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference
from torch import Tensor, nn

from fxopt.errors import TargetError, UnsupportedOpError
from fxopt.export.session import Session
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.version import __version__


class Named(nn.Module):
    """Inputs, outputs and dimensions with names of their own; one output is an input, two are the same value."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, tokens: Tensor, *, mask: Tensor) -> dict[str, Any]:
        hidden = self.inner(tokens).relu() * mask
        return {"logits": hidden, "again": hidden, "mask": mask, "nothing": None, "parts": (tokens + 1, 3)}


def named_inputs(batch: int) -> dict[str, Tensor]:
    return {"tokens": torch.randn(batch, 7, 4), "mask": torch.ones(batch, 7, 1)}


DIMS = {"tokens": {0: "batch", 1: "sequence"}, "mask": {0: "batch", 1: "sequence"}}


def test_names_of_inputs_outputs_dims_and_nodes_are_kept(tmp_path: Path) -> None:
    program = capture(Named(), named_inputs(2), dynamic=DIMS)
    graph = to_onnx(program, tmp_path / "m.onnx").proto.graph
    assert [value.name for value in graph.input] == ["tokens", "mask"]
    assert [dim.dim_param or dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        "sequence",
        4,
    ]
    assert [value.name for value in graph.output] == ["logits", "again", "mask_1", "parts_0"]
    names = {node.name for node in program.graph.nodes}
    assert {"linear", "relu", "mul"} <= names & {node.name for node in graph.node}
    assert "inner.bias" in {tensor.name for tensor in graph.initializer}


def test_every_output_has_its_value(tmp_path: Path) -> None:
    program = capture(Named(), named_inputs(2), dynamic=DIMS)
    to_onnx(program, tmp_path / "m.onnx")
    inputs = named_inputs(3)
    logits, again, mask, part = Session(tmp_path / "m.onnx")(*inputs.values())
    expected = program(**inputs)
    torch.testing.assert_close(logits, expected["logits"].detach())
    torch.testing.assert_close(again, expected["logits"].detach())
    assert torch.equal(mask, inputs["mask"]) and torch.equal(part, inputs["tokens"] + 1)


@pytest.mark.parametrize("opset", range(18, 24))
def test_every_opset_loads_and_agrees(opset: int, tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return x + nn.functional.gelu(self.attention(y, y, y, need_weights=False)[0])

    program = capture(Block().eval(), torch.randn(2, 5, 8), dynamic="batch")
    model = to_onnx(program, tmp_path / "m.onnx", opset=opset)
    assert model.opset == opset
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(Session(tmp_path / "m.onnx")(x)[0], program(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_whole_attention_raises_the_default_opset_where_the_target_likes_it() -> None:
    class Attend(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    program = capture(Attend(), torch.randn(2, 2, 5, 8))
    assert to_onnx(program, target="x86").opset == 23
    assert "Attention" in {node.op_type for node in to_onnx(program, target="x86").proto.graph.node}
    assert to_onnx(program, target="portable").opset == 21


def test_a_residual_before_a_layer_norm_stays_apart_from_it(tmp_path: Path) -> None:
    """What onnxruntime would make of the two is slower than both."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(2))
            self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                x = norm(x + layer(x))
            return x

    x = torch.randn(2, 5, 16)
    program = capture(Block(), x, dynamic="batch")
    to_onnx(program, tmp_path / "m.onnx")
    Session(tmp_path / "m.onnx", optimized=tmp_path / "optimized.onnx")
    kernels = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kernels.count("LayerNormalization") == 2 and "SkipLayerNormalization" not in kernels
    torch.testing.assert_close(Session(tmp_path / "m.onnx")(x)[0], program(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_the_runtime_s_own_tools_can_infer_all_shapes_of_a_masked_attention(kind: torch.dtype) -> None:
    class Attend(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x, mask) + 1

    mask = torch.ones(2, 1, 5, 5).to(kind)
    model = to_onnx(capture(Attend(), (torch.randn(2, 2, 5, 8), mask), dynamic="batch")).proto
    inferred = SymbolicShapeInference.infer_shapes(model)
    shapes = {value.name: value.type.tensor_type for value in inferred.graph.value_info}
    assert all(shapes[name].HasField("shape") for node in model.graph.node[:-1] for name in node.output)


def test_metadata_tells_version_target_and_history() -> None:
    model = to_onnx(capture(nn.ReLU(), torch.randn(2)), metadata={"who": "me"}).proto
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties == {"fxopt.version": __version__, "fxopt.history": "", "fxopt.target": "portable", "who": "me"}
    assert model.producer_name == "fxopt"


def test_tied_weights_are_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(50, 16)
            self.head = nn.Linear(16, 50, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.embedding(x)
            return hidden @ self.head.weight.t()

    model = to_onnx(capture(Tied(), torch.ones(2, 3, dtype=torch.int64)))
    assert [tuple(weight.shape) for weight in model.weights.values() if len(weight.shape) == 2] == [(50, 16)]


@pytest.mark.parametrize("opset", [17, 24, 0])
def test_an_unknown_opset_is_refused(opset: int) -> None:
    with pytest.raises(TargetError, match="choose 18 to 23"):
        to_onnx(capture(nn.ReLU(), torch.randn(2)), opset=opset)


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(TargetError, match="Choose one of auto, x86"):
        to_onnx(capture(nn.ReLU(), torch.randn(2)), target="gameboy")


def test_random_numbers_are_refused_with_the_users_line(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(UnsupportedOpError, match="random") as error:
        to_onnx(capture(Noisy(), torch.randn(2, 3)), tmp_path / "m.onnx")
    assert "torch.rand_like(x)" in str(error.value)
    assert list(tmp_path.iterdir()) == []
