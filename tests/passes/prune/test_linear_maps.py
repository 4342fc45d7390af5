"""linear_map(): rows times weights are what torch computes, for every kind of layer and norm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxopt.graph.interpret import step_of, walk_steps
from fxopt.graph.program import Program
from fxopt.passes.prune.linear_maps import LinearMap, linear_map
from tests.passes.cleanup.checks import program_of

SEQUENCE, IMAGE, VOLUME = torch.randn(2, 4, 9), torch.randn(2, 4, 7, 6), torch.randn(2, 4, 5, 4, 5)
LAYERS: list[tuple[nn.Module, Tensor]] = [
    (nn.Linear(9, 5), SEQUENCE),
    (nn.Linear(9, 5, bias=False), torch.randn(2, 9)),
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), SEQUENCE),
    (nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)), IMAGE),
    (nn.Conv2d(4, 6, 3, groups=2, bias=False), IMAGE),
    (nn.Conv2d(4, 8, 3, padding=1, groups=4), IMAGE),
    (nn.Conv2d(4, 6, 3, padding="same"), IMAGE),
    (nn.Conv2d(4, 6, 3), IMAGE[0]),
    (nn.Conv3d(4, 3, 2, padding=1), VOLUME),
    (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1), SEQUENCE),
    (nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), padding=(2, 0), dilation=(2, 1), groups=2), IMAGE),
    (nn.ConvTranspose3d(4, 2, 2, stride=2, bias=False), VOLUME),
    (nn.LayerNorm(9), SEQUENCE),
    (nn.GroupNorm(2, 4), IMAGE),
    (nn.BatchNorm2d(4).eval(), IMAGE),
]


def found_map(layer: nn.Module, x: Tensor) -> tuple[LinearMap, Program, dict[Any, Any]]:
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    program = program_of(lambda m, x: m.layer(x), x, layer=layer).eval()
    steps = [step_of(program, node) for node in program.graph.nodes if node.op not in ("placeholder", "output")]
    values = dict(walk_steps(program, steps, (x,)))
    node = next(node for node in reversed(program.graph.nodes) if node.op == "call_function")
    found = linear_map(program.module, node)
    assert found is not None
    return found, program, values


@pytest.mark.parametrize(("layer", "x"), LAYERS, ids=lambda value: type(value).__name__)
def test_a_change_of_the_weights_moves_the_results_by_rows_times_change(layer: nn.Module, x: Tensor) -> None:
    found, _, values = found_map(layer, x)
    before = values[found.node].detach()
    taken = torch.randperm(before.numel() // (found.groups * found.outputs))[:11]
    change = torch.randn(found.groups, found.outputs, found.features + 1, dtype=torch.float64)
    after = found.compute(values, *found.changed(change)).detach()
    expected = found.rows(values, taken).detach().double() @ change[..., :-1].mT + change[:, None, :, -1]
    moved = found.results(after - before, taken).double()
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=1e-4)


def test_tensors_that_are_shared_are_no_map() -> None:
    program = program_of(lambda m, x: m.layer(torch.relu(m.layer(x))), torch.randn(2, 4), layer=nn.Linear(4, 4))
    linears = program.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)
    assert [linear_map(program.module, node) for node in linears] == [None, None]


def test_a_norm_without_weights_is_no_map() -> None:
    norm = nn.LayerNorm(9, elementwise_affine=False)
    program = program_of(lambda m, x: m.norm(x), SEQUENCE, norm=norm)
    (node,) = program.graph.find_nodes(op="call_function", target=torch.ops.aten.layer_norm.default)
    assert linear_map(program.module, node) is None
