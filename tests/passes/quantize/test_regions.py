"""Where a graph is cut into regions, and what a region is fitted to."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional

from fxopt.graph.interpret import run
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.passes.quantize import Calibrate, InsertObservers, reconstruction
from fxopt.passes.quantize.lanes import Lanes, compute_both
from fxopt.passes.quantize.reconstruction import mixed, replay_of, rows_of
from fxopt.passes.quantize.regions import block_regions, has_grid, layer_region, layer_regions, weight_of
from tests.passes.quantize.nets import Branches, Encoder, Inverted, Residual, images, program_of


def calibrated(module: nn.Module, x: Tensor) -> Program:
    return Pipeline((InsertObservers(), Calibrate([x])))(program_of(module, x))


def blocks(program: Program) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the names of each block's layers and ends."""
    return [
        (tuple(node.name for node in region.layers), tuple(node.name for node in region.ends))
        for region in block_regions(program)
    ]


def test_blocks_end_at_residual_additions_and_their_activations() -> None:
    assert blocks(calibrated(Residual(), images())) == [
        (("conv2d",), ("relu",)),
        (("conv2d_1", "conv2d_2"), ("relu_2",)),
        (("conv2d_3", "conv2d_4"), ("relu_3",)),
        (("linear",), ("linear",)),
    ]
    assert blocks(calibrated(Inverted(), images())) == [
        (("conv2d",), ("relu6",)),
        (("conv2d_1",), ("relu6_1",)),
        (("conv2d_2",), ("conv2d_2",)),
        (("conv2d_3", "conv2d_4", "conv2d_5"), ("add",)),
        (("linear",), ("linear",)),
    ]


def test_transformer_blocks_are_cut_between_attention_and_feed_forward() -> None:
    """Before the first addition only attention counts: what it is added to is the input itself."""
    names = [layers for layers, _ in blocks(calibrated(nn.Sequential(Encoder(), Encoder()), torch.randn(2, 5, 32)))]
    assert names == [
        ("linear", "linear_1", "linear_2"),
        ("linear_3",),
        ("linear_4", "linear_5"),
        ("linear_6", "linear_7", "linear_8", "linear_9"),
        ("linear_10", "linear_11"),
    ]


@pytest.mark.parametrize("net", [Branches, Inverted, Residual])
def test_every_layer_is_in_one_region(net: type[nn.Module]) -> None:
    program = calibrated(net(), images())
    layers = [node for node in program.graph.nodes if has_grid(node)]
    for regions in (layer_regions(program), block_regions(program)):
        assert [layer for region in regions for layer in region.layers] == layers
        assert all(len(region.ends) == 1 for region in regions)


class TwoHeads(nn.Module):
    """An output half way: it is an end of its block, and no obstacle to a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.side, self.head = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        return self.side(x), self.head(x)


def test_an_output_half_way_is_an_end() -> None:
    program = calibrated(TwoHeads(), torch.randn(4, 32))
    assert blocks(program) == [
        (("linear",), ("relu",)),
        (("linear_1",), ("linear_1",)),
        (("linear_2",), ("linear_2",)),
    ]


def lanes_of(program: Program, x: Tensor) -> Lanes:
    lanes: Lanes = {program.placeholders[0]: (x, x)}
    for node in program.graph.nodes:
        if node.op in ("call_function", "get_attr"):
            lanes[node] = compute_both(program, node, lanes)
    return lanes


def test_a_replayed_block_gives_what_the_program_gives() -> None:
    """Behind quantization with the nearest roundings; in float with exact weights and everything dropped."""
    x, module = images(), Residual()
    program = calibrated(module, x)
    region = block_regions(program)[1]
    with torch.no_grad():
        lanes = lanes_of(program, x)
        (end,) = region.ends
        exact, quantized = lanes[end]
        learned = [weight_of(layer) for layer in region.layers]
        task = replay_of(program, region, [lanes], [(exact,)], {}, learned, drop=1.0)
        size = float(exact.square().mean()) ** 0.5
        plain = task.difference([lanes[weight][1] for weight in learned], 0, None)
        assert torch.allclose(plain, (quantized - exact).flatten() / size, atol=1e-5)
        in_float = task.difference([lanes[weight][0] for weight in learned], 0, torch.Generator())
        assert float(in_float.abs().max()) < 1e-5 and float(plain.abs().max()) > 1e-3
    assert torch.equal(run(program, (x,), stop_after=end.name)[0], quantized)


@settings(max_examples=15, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 1)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 3)),
)
def test_rows_times_weight_is_the_convolution(groups: int, **options: tuple[int, int]) -> None:
    kernel, stride, padding, dilation = (options[name] for name in ("kernel", "stride", "padding", "dilation"))
    graph = fx.Graph()
    source, weight, bias = (graph.placeholder(name) for name in ("x", "weight", "bias"))
    values = torch.randn(2, 4, 9, 8), torch.randn(8, 4 // groups, *kernel), torch.randn(8)
    arguments = (list(stride), list(padding), list(dilation), groups)
    layer = graph.call_function(torch.ops.aten.conv2d.default, (source, weight, bias, *arguments))
    relu = graph.call_function(torch.ops.aten.relu.default, (layer,))
    graph.output((relu,))
    weight.meta["val"] = values[1]
    lanes: Lanes = {node: (value, value) for node, value in zip((source, weight, bias), values, strict=True)}
    target = torch.relu(functional.conv2d(values[0], values[1], values[2], stride, padding, dilation, groups))
    rows = rows_of(layer_region(layer), [lanes], [target], 0.0)
    assert float(rows.difference([values[1]], 0, None).abs().max()) < 1e-4


def test_rows_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many, at places shared out over the samples, still with the outputs that belong to them."""
    monkeypatch.setattr(reconstruction, "ROWS", 300)
    program = calibrated(Residual(), images(4))
    region = layer_regions(program)[1]
    with torch.no_grad():
        lanes = lanes_of(program, images(4))
        rows = rows_of(region, [lanes, lanes], [lanes[region.ends[0]][0]] * 2, 0.5)
        weight = lanes[weight_of(region.layers[0])][0]
        assert 290 <= rows.target.shape[1] <= 300 and rows.batches == 1
        drop_all = dataclasses.replace(rows, drop=1.0)
        assert float(drop_all.difference([weight], 0, torch.Generator()).abs().max()) < 1e-5
        assert float(rows.difference([weight], 0, None).abs().max()) > 1e-4


def test_mixed_values() -> None:
    exact, quantized = torch.zeros(1000), torch.ones(1000)
    generator = torch.Generator().manual_seed(0)
    assert mixed((exact, quantized), 0.5, None) is quantized
    assert mixed((exact, quantized), 0.0, generator) is quantized
    assert 350 < float(mixed((exact, quantized), 0.6, generator).sum()) < 450
