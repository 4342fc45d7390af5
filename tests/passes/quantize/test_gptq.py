"""Rounding with error feedback: output errors below those of plain rounding, in blocks and on given grids."""

from collections import Counter

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fxopt.demo import demo_data, demo_model
from fxopt.errors import DataError, PassError
from fxopt.graph.capture import capture
from fxopt.graph.interpret import node_values, run, sqnr
from fxopt.graph.ops import dequantize, fake_quantize
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import Calibrate, Convert, CorrectBias, Gptq, InsertObservers, QuantizeWeights, RoundGptq
from fxopt.passes.quantize.block_grid import BlockFormat, round_to_nearest
from fxopt.passes.quantize.feedback import _factors, output_error, round_with_feedback
from fxopt.passes.quantize.gptq import fit_weight
from fxopt.passes.quantize.layer_inputs import visit_layers
from fxopt.passes.quantize.round_gptq import round_on_grid
from fxopt.passes.quantize.scheme import Scheme
from tests.passes.quantize.decoder import divergence, sentences, trained
from tests.passes.quantize.nets import Encoder, Inverted, images, program_of

LETTERS = [part[:, :-1] for part in torch.split(sentences(64, 7000), 16)]


def correlated(rows: int, columns: int) -> Tensor:
    """Return inputs [rows, columns] of which a quarter as many directions hold most."""
    mixed = torch.randn(rows, columns // 4) @ torch.randn(columns // 4, columns)
    return mixed + 0.1 * torch.randn(rows, columns)


def moment(x: Tensor) -> Tensor:
    return x.t() @ x / len(x)


def hessian_of(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What a layer's visit gets."""
    program, found = capture(layer, x), []

    def visit(_: object, hessian: Tensor) -> Tensor:
        found.append(hessian)
        return layer.weight.detach()

    visit_layers(program, [(x,)], [node for node in program.graph.nodes if node.op == "call_function"], visit)
    return found[0]


def test_feedback_by_hand() -> None:
    """Both inputs are always equal: what the first column loses, the second must make up for."""
    weight, hessian = torch.tensor([[0.4, 0.4]]), torch.ones(2, 2)
    grid = (torch.ones(1), torch.zeros(1))
    steps, scale, zero = round_with_feedback(weight, hessian, lambda *_: grid, (-8, 7), group=2, damping=1e-4)
    assert sorted(steps[0].tolist()) == [0.0, 1.0]  # 0.4 + 0.4 is nearer to 1 than to 0 + 0
    assert scale.tolist() == [[1.0]] and zero.tolist() == [[0.0]]


def test_without_correlation_it_is_plain_rounding() -> None:
    weight, grid = torch.randn(5, 40), (torch.full((5,), 0.3), torch.zeros(5))
    steps, _, _ = round_with_feedback(weight, torch.eye(40), lambda *_: grid, (-8, 7), group=40, damping=0.01)
    assert torch.equal(steps, (weight / 0.3).round().clamp(-8, 7))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, None), (2, 64), (8, 16)])
def test_the_output_error_falls(bits: int, group: int | None, ordered: bool) -> None:
    weight, data = torch.randn(48, 200), correlated(2000, 200)
    x, other = data[:1000], data[1000:]
    layout = BlockFormat(bits, group, False)
    fitted = fit_weight(weight, moment(x), layout, ordered=ordered).dequantized()
    plain = round_to_nearest(weight, layout).dequantized()
    for seen in (x, other):
        left, right = (functional.linear(seen, found - weight).square().sum() for found in (fitted, plain))
        assert float(left) < 0.5 * float(right)
    assert float((fitted - weight).square().sum()) > float((plain - weight).square().sum())


def test_no_row_is_worse_than_by_plain_rounding() -> None:
    weight, hessian = torch.randn(64, 32), moment(torch.randn(40, 32))
    layout = BlockFormat(8, 32, False)
    importance = hessian.diagonal() + 0.01 * hessian.diagonal().mean()
    fitted, plain = (
        output_error(found.dequantized() - weight, hessian)
        for found in (fit_weight(weight, hessian, layout), round_to_nearest(weight, layout, importance))
    )
    assert bool((fitted <= plain * (1 + 1e-4)).all())


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_inputs_that_are_always_zero_or_few(rank: int) -> None:
    x = torch.zeros(64, 32)
    x[:, :rank] = torch.randn(64, rank)
    weight = torch.randn(4, 32)
    fitted = fit_weight(weight, moment(x), BlockFormat(4, 32, False)).dequantized()
    assert bool(fitted.isfinite().all())
    plain = round_to_nearest(weight, BlockFormat(4, 32, False)).dequantized()
    errors = [functional.linear(x, found - weight).square().sum() for found in (fitted, plain)]
    assert float(errors[0]) <= float(errors[1])


def test_layers_see_what_is_rounded_before_them() -> None:
    x = torch.randn(10, 8)
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 2, bias=False))
    program = capture(model, x)
    linears = [node for node in program.graph.nodes if node.op == "call_function"]
    seen: list[Tensor] = []

    def visit(node: object, hessian: Tensor) -> Tensor:
        seen.append(hessian)
        return torch.ones(4, 8) if node is linears[0] else torch.ones(2, 4)

    visit_layers(program, [(x,), (2 * x,)], linears, visit)
    inputs = torch.cat([x, 2 * x])
    torch.testing.assert_close(seen[0], moment(inputs))
    torch.testing.assert_close(seen[1], moment(inputs.sum(1, keepdim=True).expand(-1, 4)))


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kernel", [(3, 2), (1, 1)])
@pytest.mark.parametrize("options", [(1, 0, 1), (2, 1, 1), ((1, 2), (0, 3), (2, 1))])
def test_the_moment_of_a_convolution(options: tuple[int, int, int], kernel: tuple[int, int], groups: int) -> None:
    """E[(w·patch)²] of each channel is the mean square of the convolution's output."""
    stride, padding, dilation = options
    layer = nn.Conv2d(6, 12, kernel, stride, padding, dilation, groups=groups, bias=False)
    x = torch.randn(4, 6, 9, 8)
    found = output_error(layer.weight.detach().flatten(1), hessian_of(layer, x))
    torch.testing.assert_close(found, layer(x).detach().square().mean((0, 2, 3)))


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (2, 32)])
def test_a_decoder_predicts_more_alike(bits: int, group: int) -> None:
    program, letters = trained(), sentences(32, 9000)[:, :-1]
    expected = program(letters)
    nearest = QuantizeWeights(bits, group)(program)
    plain = divergence(expected, nearest(letters))
    for ordered in (False, True):
        fitted = verify(Gptq(LETTERS, bits, group, ordered=ordered)(program), full=True)
        assert divergence(expected, fitted(letters)) < 0.5 * plain
        assert list(map(str, fitted.graph.nodes)) == list(map(str, nearest.graph.nodes))


def test_gptq_keeps_what_it_is_told_to() -> None:
    x = torch.randn(8, 5, 32)
    program = program_of(Encoder(), x)
    quantized = Gptq([x], keep_float=["linear_1"], samples=4)(program)
    assert Counter(integer_nodes(quantized).values())["linear"] == 5
    assert quantized.notes[-1] == "Float: linear_1: kept float on request."
    assert "data" not in quantized.history[-1]


@pytest.mark.parametrize("pass_type", [Gptq, RoundGptq])
def test_bad_input(pass_type: type[Gptq] | type[RoundGptq]) -> None:
    with pytest.raises(PassError, match="damping must be a positive number"):
        pass_type([], damping=0.0)
    x = torch.randn(2, 5, 32)
    program = Pipeline((InsertObservers(), Calibrate([x])))(program_of(Encoder(), x))
    if pass_type is Gptq:
        program = program_of(Encoder(), x)
    with pytest.raises(DataError, match="empty"):
        pass_type([])(program)
    with pytest.raises(DataError, match="NaN or infinity"):
        pass_type([x * torch.nan])(program)


@pytest.fixture(scope="module")
def digits() -> Program:
    """Return the demo's classifier, calibrated, with weights of 4 bits."""
    data, _ = demo_data("calibration")
    program = Pipeline(tuple(CLEANUP))(capture(demo_model(), data[:4], dynamic="batch"))
    scheme = Scheme(weight_bits=4)
    return Pipeline((InsertObservers(), Calibrate(list(torch.split(data[:100], 50)), scheme=scheme)))(program)


def test_four_bit_weights_of_a_trained_network(digits: Program) -> None:
    data, _ = demo_data("calibration")
    images_, labels = (part[:200] for part in demo_data("test"))
    exact = demo_model()(images_)
    rounded = verify(RoundGptq([data[:32]])(digits), full=True)
    plain, fitted = (Convert()(program)(images_) for program in (digits, rounded))
    assert sqnr(exact, fitted) > sqnr(exact, plain) + 10
    assert float((fitted.argmax(1) == labels).float().mean()) > 0.99


def test_convert_makes_exactly_the_fitted_integers(digits: Program) -> None:
    data, _ = demo_data("calibration")
    rounded = CorrectBias([data[:32]])(RoundGptq([data[:32]])(digits))
    weights = {
        str(node.args[0].target): (rounded.module.get_buffer(node.args[0].target), node.args[1].target)
        for node in rounded.graph.nodes
        if node.target is fake_quantize and str(node.args[0].target).endswith("_rounded")
    }
    converted = Convert()(rounded)
    stored = {
        str(node.args[0].target): node.args[0].target
        for node in converted.graph.nodes
        if node.target is dequantize and str(node.args[0].target).endswith("_rounded_int8")
    }
    assert len(stored) == len(weights) > 5
    for name, (value, scale) in weights.items():
        integers = converted.module.get_buffer(stored[f"{name}_int8"])
        assert int(integers.abs().max()) <= 7
        steps = value / rounded.module.get_buffer(scale).reshape(-1, *[1] * (value.ndim - 1))
        assert torch.equal(integers.float(), steps.round()) and torch.allclose(steps, steps.round(), atol=1e-5)


def test_grouped_convolutions_are_rounded_group_by_group() -> None:
    """Each group is rounded as a layer of its own would be."""
    layer = nn.Conv2d(6, 12, (3, 2), padding=1, groups=3)
    weight, x = layer.weight.detach(), torch.randn(8, 6, 9, 8) + 0.5
    scale, zero = torch.rand(12) * 0.1 + 0.05, torch.zeros(12, dtype=torch.int8)
    hessians = hessian_of(layer, x)
    together = round_on_grid(weight, hessians, scale, zero, (-7, 7))
    for group, part in enumerate(torch.split(x, 2, 1)):
        alone, rows = hessian_of(nn.Conv2d(2, 4, (3, 2), padding=1), part), slice(4 * group, 4 * group + 4)
        assert alone.shape == (12, 12)
        torch.testing.assert_close(hessians[group], alone)
        expected = round_on_grid(weight[rows], alone, scale[rows], zero[rows], (-7, 7))
        torch.testing.assert_close(together[rows], expected, rtol=0, atol=1e-5)


def test_of_large_images_every_second_position_is_enough() -> None:
    layer, x = nn.Conv2d(3, 4, 3, stride=2), torch.randn(2, 3, 130, 130) + 0.5  # 2 x 64 x 64 positions; 1024 will do
    patches = functional.unfold(x, 3, stride=4).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(hessian_of(layer, x), moment(patches), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("bits", "stride"), [(4, 2), (8, 4)])
def test_on_a_coarse_grid_all_positions_count(bits: int, stride: int) -> None:
    x = torch.randn(2, 3, 130, 130) + 0.5
    observed = InsertObservers()(capture(nn.Conv2d(3, 16, 3, stride=2), x))
    program = Calibrate([x], scheme=Scheme(weight_bits=bits))(observed)
    layers = [node for node in program.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    found: list[Tensor] = []

    def visit(node: fx.Node, hessian: Tensor) -> Tensor:
        found.append(hessian)
        return torch.zeros(16, 3, 3, 3)

    visit_layers(program, [(x,)], layers, visit)
    (value,) = node_values(program, (x,), [str(layers[0].args[0])]).values()
    patches = functional.unfold(value, 3, stride=stride).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found[0], moment(patches), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("damping", [1e-4, 0.1])
def test_factors_are_those_of_the_inverses(damping: float) -> None:
    """Also for a matrix of rank 1, and of zeros, beside one another."""
    x = torch.randn(40, 12)
    hessians = torch.stack([moment(x), torch.ones(12, 12), torch.zeros(12, 12)])
    factors = _factors(hessians, damping)
    for hessian, factor in zip(hessians.double(), factors.double(), strict=True):
        mean = hessian.diagonal().mean() or torch.tensor(1.0, dtype=torch.float64)
        if not hessian.any():
            hessian = torch.eye(12, dtype=torch.float64)
        damped = hessian + damping * mean * torch.eye(12, dtype=torch.float64)
        assert torch.equal(factor, factor.triu())
        torch.testing.assert_close(factor.T @ factor @ damped, torch.eye(12, dtype=torch.float64), rtol=0, atol=2e-3)


def test_layers_of_many_inputs_keep_their_weights_with_a_note() -> None:
    program = Pipeline((InsertObservers(), Calibrate([images()])))(program_of(Inverted(), images()))
    rounded = RoundGptq([images()], largest=20)(program)
    names = [str(node.target) for node in rounded.graph.find_nodes(op="get_attr")]
    assert rounded.notes[-3:] == (
        "Rounded to the nearest step: conv2d: it has 27 inputs an output.",
        "Rounded to the nearest step: conv2d_4: it has 25 inputs an output.",
        "Rounded to the nearest step: conv2d_5: it has 32 inputs an output.",
    )
    assert "wide.weight" in names and {"depthwise.weight_rounded", "expand.weight_rounded"} <= set(names)
    assert len(run(rounded, (images(),))) == 1


def test_a_given_grid_is_kept() -> None:
    weight, x = torch.randn(6, 4, 3, 3), correlated(500, 36)
    scale, zero = torch.rand(6) + 0.2, torch.zeros(6, dtype=torch.int8)
    found = round_on_grid(weight, moment(x), scale, zero, (-7, 7))
    steps = found / scale[:, None, None, None]
    assert torch.allclose(steps, steps.round(), atol=1e-5) and float(steps.abs().max()) <= 7.001
    errors = [
        output_error((value - weight).flatten(1), moment(x)).sum()
        for value in (found, (weight / scale[:, None, None, None]).round().clamp(-7, 7) * scale[:, None, None, None])
    ]
    assert float(errors[0]) < 0.6 * float(errors[1])


def test_a_program_without_grids_comes_back_the_same() -> None:
    program = program_of(Encoder(), torch.randn(2, 5, 32))
    assert str(RoundGptq([])(program)) == str(program)
