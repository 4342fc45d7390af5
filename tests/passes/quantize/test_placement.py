"""Placement: what becomes integer on a target, which values share a scale, and why the rest stays float."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fxopt.errors import PassError
from fxopt.graph.quantized import INTEGER_KINDS
from fxopt.passes.quantize.expand import EXPANSIONS
from fxopt.passes.quantize.placement import Groups, Placement, place
from fxopt.passes.quantize.rules import QUANTIZE_RULES, Role
from fxopt.target import TARGETS, Target
from tests.passes.quantize.nets import Branches, Encoder, Gated, Inverted, Residual, images, program_of

X86 = TARGETS["x86"]


def placed(module: nn.Module, x: Tensor | None = None, target: Target = X86) -> Placement:
    return place(program_of(module, images() if x is None else x), target)


def groups_of(placement: Placement) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {}
    for point in placement.points.values():
        groups.setdefault(point.group, set()).add(point.value)
    return groups


def test_a_residual_network_is_integer_from_end_to_end() -> None:
    placement = placed(Residual())
    roles = list(placement.integer.values())
    assert roles.count(Role.CONVOLUTION) == 5
    assert roles.count(Role.LINEAR) == 1
    assert {"add", "add_1", "max_pool2d", "adaptive_avg_pool2d", "flatten"} <= set(placement.integer)
    assert placement.float_reasons == {}


def test_channels_in_eights_for_avx2() -> None:
    layer = nn.Conv2d(16, 20, 3)
    x = torch.randn(2, 16, 8, 8)
    assert set(placed(layer, x).integer) == {"conv2d"}
    assert placed(layer, x, TARGETS["x86-avx2"]).float_reasons == {
        "conv2d": "20 output channels; the target takes 16+, in 8s"
    }


def test_a_clip_is_part_of_what_it_follows_and_a_pool_shares_its_scale() -> None:
    placement = placed(Residual())
    assert "conv2d" not in placement.points  # its value is that of the relu
    assert groups_of(placement)["relu"] == {"relu", "max_pool2d"}
    assert groups_of(placement)["adaptive_avg_pool2d"] == {"adaptive_avg_pool2d", "flatten"}
    assert "linear" not in placement.points  # its kernel gives float
    assert placement.points["x"].readers == ("conv2d",)
    assert placement.points["relu"].readers is None


def test_concatenated_values_share_a_scale_where_they_are_clipped_alike() -> None:
    placement = placed(Branches())
    groups = groups_of(placement)
    shared = next(members for members in groups.values() if "cat" in members)
    assert {"relu_1", "relu_2", "cat", "getitem", "getitem_1", "cat_1"} <= shared
    assert {"view", "transpose", "view_1"} <= shared
    assert not {"relu_3", "conv2d_4", "cat_2"} & shared
    assert placement.integer["cat_2"] is Role.CONCATENATE
    assert placement.points["relu_3"].group != placement.points["conv2d_4"].group


def test_a_depthwise_convolution_is_integer_between_integer_ops_only() -> None:
    assert placed(Inverted()).float_reasons == {}

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, groups=16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = torch.tanh(self.conv(torch.tanh(x)))
            return y

    placement = placed(Alone(), torch.randn(2, 16, 8, 8))
    assert placement.integer == {} and placement.points == {}
    assert "between integer ops" in placement.float_reasons["conv2d"]


def test_gates_and_their_single_positions_are_integer_inside_a_chain() -> None:
    placement = placed(Gated(), images(2, 16))
    assert placement.float_reasons == {}
    assert {"hardswish", "silu", "hardsigmoid", "mul", "conv2d_2", "conv2d_3"} <= set(placement.integer)


def test_linears_share_one_point_and_the_rest_of_a_transformer_stays_float() -> None:
    placement = placed(Encoder(), torch.randn(2, 5, 32))
    assert sorted(placement.integer) == ["linear", "linear_1", "linear_2", "linear_3", "linear_4", "linear_5"]
    assert placement.points["layer_norm"].readers == ("linear", "linear_1", "linear_2")
    assert set(placement.float_reasons) == {"add", "add_1"}


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Conv2d(16, 15, 3), "15 output channels"),
        (nn.Conv2d(16, 8, 3), "8 output channels"),
        (nn.Conv2d(6, 16, 3), "6 input channels"),
        (nn.Conv2d(1, 16, 3), "1 input channels"),
        (nn.Conv2d(16, 16, 3, groups=4), "4 channels a group"),
    ],
)
def test_a_convolution_that_the_target_does_not_run_faster_stays_float(module: nn.Conv2d, reason: str) -> None:
    placement = placed(module, torch.randn(2, module.in_channels, 8, 8))
    assert placement.integer == {}
    assert reason in placement.float_reasons["conv2d"]


def test_the_table_of_the_target_decides() -> None:
    small = nn.Conv2d(6, 8, 3)
    kernels = dataclasses.replace(X86.convolution, input_multiple=2, output_minimum=8)
    placement = placed(small, torch.randn(2, 6, 8, 8), dataclasses.replace(X86, convolution=kernels))
    assert placement.integer == {"conv2d": Role.CONVOLUTION}
    no_chain = dataclasses.replace(X86, chain_ops=frozenset())
    reasons = placed(Residual(), target=no_chain).float_reasons
    assert reasons["add"] == "the target has no integer kernel for aten.add.Tensor"


def test_keep_float_with_and_without_a_reason() -> None:
    program = program_of(Residual(), images())
    placement = place(program, X86, {"conv2d_1": "it lost in a measurement"})
    assert placement.float_reasons["conv2d_1"] == "it lost in a measurement"
    assert place(program, X86, ["conv2d_1"]).float_reasons["conv2d_1"] == "kept float on request"
    with pytest.raises(PassError, match="conv_of_another_model"):
        place(program, X86, ["conv_of_another_model"])


def test_a_computed_weight_stays_float() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias)

    placement = placed(Standardized(16, 16, 3), torch.randn(2, 16, 8, 8))
    assert placement.float_reasons["conv2d"] == "its weight is computed, not stored"


def test_every_value_that_an_integer_op_reads_is_a_point() -> None:
    for module, x in [(Residual(), images()), (Branches(), images()), (Gated(), images(2, 16)), (Inverted(), images())]:
        program = program_of(module, x)
        placement = place(program, X86)
        nodes = {node.name: node for node in program.graph.nodes}
        for name, role in placement.integer.items():
            sources = nodes[name].args[0] if role is Role.CONCATENATE else nodes[name].args[:1]
            assert isinstance(sources, list | tuple)
            for source in sources:
                assert isinstance(source, fx.Node)
                point = placement.points[source.name]
                assert point.readers is None or name in point.readers


def test_the_tables_fit_together() -> None:
    for op, rule in QUANTIZE_RULES.items():
        assert (rule.bounds is not None) == (rule.role is Role.CLIP)
        if rule.role in (Role.JOIN, Role.CONCATENATE):
            assert op in INTEGER_KINDS or op in EXPANSIONS
            assert op in X86.chain_ops
        if rule.role in (Role.CONVOLUTION, Role.LINEAR):
            assert INTEGER_KINDS[op] in ("conv", "linear")
    assert set(X86.chain_ops) <= set(QUANTIZE_RULES)


@given(st.integers(2, 30), st.data())
def test_groups_are_the_connected_components(size: int, data: st.DataObject) -> None:
    index = st.integers(0, size - 1)
    edges = data.draw(st.lists(st.tuples(index, index), max_size=40))
    graph = fx.Graph()
    nodes = [graph.placeholder(f"x{number}") for number in range(size)]
    groups = Groups()
    for node in nodes:
        groups.add(node)
    for left, right in edges:
        groups.union(nodes[left], nodes[right])
    reached = [{number} for number in range(size)]  # the slow way: merge sets until nothing changes
    for left, right in edges:
        merged = reached[left] | reached[right]
        for number in merged:
            reached[number] = merged
    for number, (a, b) in enumerate(pairwise(range(size))):
        assert (groups.find(nodes[a]) is groups.find(nodes[b])) == (b in reached[a]), number
    assert {frozenset(members) for members in reached} == {
        frozenset(n for n in range(size) if groups.find(nodes[n]) is root) for root in {groups.find(n) for n in nodes}
    }
