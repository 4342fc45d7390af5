"""The minimum cut against all labelings of small nets, and the owners of kernels by name."""

import itertools
import math
from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional

from fxopt.export.measure import KernelTime, profile
from fxopt.export.to_onnx import to_onnx
from fxopt.passes.quantize.placement import place
from fxopt.target import TARGETS
from fxopt.timed_placement import CALL, ELEMENT, NOT_WORTH_IT, SLOWER, NodeTime, node_times, owner, slower_in_integers
from tests.passes.quantize.nets import images, program_of


class Shortcut(nn.Module):
    """Two convolutions, a max-pool, an addition of both ways, and a linear that also reads what is float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.stem(x)), 2)
        x = torch.relu(self.inner(x) + x)
        y: Tensor = self.head(x.mean([2, 3])) + x.amax([2, 3])
        return y


PROGRAM = program_of(Shortcut(), torch.zeros(2, 4, 8, 8))
PLACEMENT = place(PROGRAM, TARGETS["x86"])
NODES = {node.name: node for node in PROGRAM.graph.nodes}
MADE_BY = {"relu": "conv2d", "relu_1": "add"}  # a clip is part of the integer kernel before it


def cost(times: Mapping[str, NodeTime], integer: Collection[str]) -> float:
    """Add up a labeling by its definition: times, and a conversion for each value that passes between the sides."""
    total = 0.0
    for name in PLACEMENT.integer:
        clip = next((clip for clip, maker in MADE_BY.items() if maker == name), None)
        in_float = (times[name].float_seconds or 0.0) + ((times[clip].float_seconds or 0.0) if clip else 0.0)
        total += (times[name].integer_seconds or 0.0) if name in integer else in_float
    for value in PLACEMENT.points:
        made = MADE_BY.get(value, value) in integer
        read = {user.name in integer for user in NODES[value].users}
        price = CALL + ELEMENT * math.prod(map(int, _sizes(NODES[value])))
        total += price * ((not made and True in read) or (made and False in read))
    return total


def _sizes(node: fx.Node) -> list[int]:
    return [size if isinstance(size, int) else 2 for size in node.meta["val"].shape]


def test_the_net_has_what_the_oracle_knows() -> None:
    assert sorted(PLACEMENT.integer) == ["add", "conv2d", "conv2d_1", "linear", "max_pool2d", "mean"]
    assert set(PLACEMENT.points) == {"x", "relu", "max_pool2d", "conv2d_1", "relu_1", "mean"}


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_cut_is_the_cheapest_of_all_labelings(data: st.DataObject) -> None:
    micros = st.integers(0, 40).map(lambda value: value * 1e-6)
    drawn = data.draw(st.lists(micros, min_size=2 * len(NODES), max_size=2 * len(NODES)))
    times = {name: NodeTime(*drawn[2 * index : 2 * index + 2]) for index, name in enumerate(NODES)}
    names = list(PLACEMENT.integer)
    labelings = [chosen for count in range(len(names) + 1) for chosen in itertools.combinations(names, count)]
    least = min(cost(times, chosen) for chosen in labelings)
    losers = slower_in_integers(PROGRAM, PLACEMENT, times)
    assert cost(times, set(names) - set(losers.reasons)) == pytest.approx(least, abs=1e-12)
    assert (1 - losers.saving) * cost(times, names) == pytest.approx(least, abs=1e-12)


def test_a_node_that_loses_alone_is_named_with_its_times() -> None:
    times = {name: NodeTime(100e-6, 10e-6) for name in NODES}
    times["linear"] = NodeTime(5e-6, 80e-6)
    losers = slower_in_integers(PROGRAM, PLACEMENT, times)
    assert losers.reasons == {"linear": SLOWER}
    assert losers.saving > 0


def test_a_gain_smaller_than_the_conversions_is_no_gain() -> None:
    times = {name: NodeTime(10e-6, 50e-6) for name in NODES}
    times["linear"] = NodeTime(11e-6, 10e-6)
    assert slower_in_integers(PROGRAM, PLACEMENT, times).reasons["linear"] == NOT_WORTH_IT


def test_nothing_loses_where_integers_are_faster() -> None:
    times = {name: NodeTime(100e-6, 10e-6) for name in NODES}
    assert slower_in_integers(PROGRAM, PLACEMENT, times).reasons == {}


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("conv2d_44_token_201", "conv2d_44"),
        ("conv2d_nchwc", "conv2d"),
        ("hardswish_1_shifted", "hardswish_1"),
        ("linear/MatMulScaleFusion", "linear"),
        ("linear_2.MatMul", "linear_2"),
        ("fused linear_2", "linear_2"),
        ("ReorderInput_token_3", None),
    ],
)
def test_owner(kernel: str, name: str | None) -> None:
    assert owner(kernel, {"conv2d", "conv2d_4", "conv2d_44", "hardswish", "hardswish_1", "linear", "linear_2"}) == name


def test_a_fused_kernel_with_the_name_of_its_activation_belongs_to_the_layer() -> None:
    """Onnxruntime calls a convolution that it fused with an activation after the activation."""
    program = program_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardsigmoid()), images())
    profile = [KernelTime("hardsigmoid_nchwc", "Conv", 50e-6), KernelTime("Reorder", "ReorderInput", 10e-6)]
    (name, time), *others = node_times(program, profile, []).items()
    assert (name, others, time.integer_seconds) == ("conv2d", [], None)
    assert time.float_seconds == pytest.approx(40e-6)


def test_a_kernel_with_the_name_of_an_output_belongs_to_what_makes_it() -> None:
    program = program_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), images())
    (spec,) = program.outputs
    assert spec is not None and spec.name not in {node.name for node in program.graph.nodes if node.op != "output"}
    profile = [KernelTime(f"{spec.name}_nchwc", "Conv", 50e-6), KernelTime("Reorder", "ReorderInput", 10e-6)]
    assert node_times(program, profile, [])["conv2d"].float_seconds == pytest.approx(40e-6)


def test_each_layer_of_a_real_profile_has_a_time(tmp_path: Path) -> None:
    """Whatever onnxruntime fuses a layer with: one without a time would seem to cost nothing in float."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 30 * 30, 32), nn.ReLU(), nn.Linear(32, 8)
    )
    program = program_of(net, images())
    to_onnx(program, tmp_path / "net.onnx", target="x86")
    kernels = profile(tmp_path / "net.onnx", (images(),), runs=2)
    times = node_times(program, kernels, [])
    assert {"conv2d", "linear", "linear_1"} <= {name for name, time in times.items() if time.float_seconds is not None}
