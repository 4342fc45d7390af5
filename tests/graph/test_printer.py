"""The text of a Program is canonical: the same for the same graph, however it came to be."""

import re

import torch
from torch import Tensor, nn

from fxopt.graph.capture import capture
from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.printer import diff, excerpt, format_program, op_name
from fxopt.graph.rewrite import Edit
from tests.graph.models import ConvNet, Function

aten = torch.ops.aten

CONV_NET = """\
program(x: float32[batch, 3, 8, 8]):
  conv.weight: float32[4, 3, 3, 3]
  conv.bias: float32[4]
  norm.weight: float32[4]
  norm.bias: float32[4]
  norm.running_mean: float32[4]
  norm.running_var: float32[4]
  classifier.weight: float32[5, 4]
  classifier.bias: float32[5]
  %conv2d_1 = conv2d(%x, conv.weight, bias=conv.bias, padding=[1, 1]): float32[batch, 4, 8, 8]
  %batch_norm_1 = batch_norm(%conv2d_1, norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, \
1e-05, BACKEND): float32[batch, 4, 8, 8]
  %relu_1 = relu(%batch_norm_1): float32[batch, 4, 8, 8]
  %dropout_1 = dropout(%relu_1, 0.5, False): float32[batch, 4, 8, 8]
  %mean_1 = mean.dim(%dropout_1, [2, 3]): float32[batch, 4]
  %linear_1 = linear(%mean_1, classifier.weight, bias=classifier.bias): float32[batch, 5]
  return output=%linear_1: float32[batch, 5]
"""


def test_a_program_reads_as_its_layers() -> None:
    text = format_program(capture(ConvNet(), torch.randn(1, 3, 8, 8), dynamic="batch"))
    assert (
        re.sub(
            r"(True|False)\): float32\[batch, 4, 8, 8\]\n  %relu", r"BACKEND): float32[batch, 4, 8, 8]\n  %relu", text
        )
        == CONV_NET
    )


def test_numbers_do_not_depend_on_the_history_of_names() -> None:
    program = capture(ConvNet(), torch.randn(2, 3, 8, 8))
    edit = Edit(program, by=None)
    for node in edit.calls(aten.relu.default):
        detour = edit.call(aten.relu.default, node.args[0], before=node)
        edit.replace(node, detour)
    result = edit.finish()
    assert [node.name for node in result.graph.nodes] != [node.name for node in program.graph.nodes]
    assert format_program(result) == format_program(program)
    assert diff(program, result) == ""


def test_a_diff_shows_the_changed_lines() -> None:
    program = capture(ConvNet(), torch.randn(2, 3, 8, 8))
    edit = Edit(program, by=None)
    (dropout,) = edit.calls(aten.dropout.default)
    edit.replace(dropout, dropout.all_input_nodes[0])
    changed = [
        line
        for line in diff(program, edit.finish()).splitlines()
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    assert changed == [
        "-  %dropout_1 = dropout(%relu_1, 0.5, False): float32[2, 4, 8, 8]",
        "-  %mean_1 = mean.dim(%dropout_1, [2, 3]): float32[2, 4]",
        "+  %mean_1 = mean.dim(%relu_1, [2, 3]): float32[2, 4]",
    ]


def several(module: nn.Module, x: Tensor) -> tuple[Tensor | None, ...]:
    left, right = x.chunk(2, dim=-1)
    return left.to(torch.float64), None, right.reshape(x.shape[0], -1)


def test_parts_sizes_dtypes_and_none() -> None:
    program = capture(Function(several), torch.randn(1, 4, 8), dynamic={"inputs_0": {0: "batch", 1: "time"}})
    assert format_program(program) == (
        "program(inputs_0: float32[batch, time, 8]):\n"
        "  %sym_size_1 = sym_size.int(%inputs_0, 0): batch\n"
        "  %chunk_1 = chunk(%inputs_0, 2, dim=-1): (float32[batch, time, 4], float32[batch, time, 4])\n"
        "  %getitem_1 = %chunk_1[0]: float32[batch, time, 4]\n"
        "  %getitem_2 = %chunk_1[1]: float32[batch, time, 4]\n"
        "  %to_1 = to.dtype(%getitem_1, float64): float64[batch, time, 4]\n"
        "  %reshape_1 = reshape(%getitem_2, [%sym_size_1, -1]): float32[batch, 4*time]\n"
        "  return output_0=%to_1: float64[batch, time, 4], None, output_2=%reshape_1: float32[batch, 4*time]\n"
    ).replace("inputs_0", program.inputs[0].name)


class Quantized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(0.125))
        self.register_buffer("zero_point", torch.tensor(3, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        q = quantize(x, self.scale, self.zero_point, None, 0, 255, torch.uint8)
        result: Tensor = dequantize(q, self.scale, self.zero_point, None)
        return result


def test_scalars_show_their_value_and_own_ops_their_namespace() -> None:
    lines = format_program(capture(Quantized(), torch.randn(2))).splitlines()
    assert lines[1:] == [
        "  scale: float32[] = 0.125",
        "  zero_point: uint8[] = 3",
        "  %quantize_1 = fxopt.quantize(%x, scale, zero_point, None, 0, 255, uint8): uint8[2]",
        "  %dequantize_1 = fxopt.dequantize(%quantize_1, scale, zero_point, None): float32[2]",
        "  return output=%dequantize_1: float32[2]",
    ]


def test_an_excerpt_marks_the_node() -> None:
    program = capture(ConvNet(), torch.randn(2, 3, 8, 8))
    (relu,) = program.graph.find_nodes(op="call_function", target=aten.relu.default)
    lines = excerpt(program, relu, around=1).splitlines()
    assert [line[:2] for line in lines] == ["  ", "->", "  "]
    assert lines[1] == "-> %relu_1 = relu(%batch_norm_1): float32[2, 4, 8, 8]"


def test_a_damaged_program_can_still_be_read() -> None:
    program = capture(ConvNet(), torch.randn(2, 3, 8, 8))
    for node in program.graph.nodes:
        node.meta.pop("val", None)
    del program.module.conv
    assert "%relu_1 = relu(%batch_norm_1): None" in format_program(program)


def test_names_of_ops() -> None:
    assert [op_name(op) for op in (aten.relu.default, aten.add.Tensor, quantize, len)] == [
        "relu",
        "add.Tensor",
        "fxopt.quantize",
        "len",
    ]
