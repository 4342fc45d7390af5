"""LearnScales and FixScales: nothing changes untrained; trained, torch, the fixed Program and onnxruntime agree."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fxopt.errors import ExportError, PassError, VerifyError
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.grids import power_of_two
from fxopt.graph.integer import run_integer
from fxopt.graph.interpret import sqnr
from fxopt.graph.learned import learned_fake_quantize
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes
from fxopt.graph.rewrite import argument, get_attribute
from fxopt.graph.serialize import load
from fxopt.graph.verify import verify
from fxopt.passes.prune import RemoveChannels
from fxopt.passes.quantize import FIXED_POINT, Calibrate, Convert, FixScales, InsertObservers, LearnScales, Scheme
from fxopt.passes.quantize.calibrate import BIAS_MAX
from fxopt.passes.quantize.clips import clip_is_redundant, largest_absorbing_scale
from tests.conftest import Golden
from tests.passes.quantize.nets import Branches, Encoder, Gated, Inverted, Residual, images, program_of
from tests.passes.quantize.qat import attribute, calibrated, learned, train
from tests.passes.quantize.test_convert import shortcut
from tests.passes.quantize.test_onnxruntime import census_of, session_of

aten = torch.ops.aten
NETS: dict[type[nn.Module], Tensor] = {
    Residual: images(), Inverted: images(), Branches: images(), Gated: images(2, 16),
    Encoder: torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1)),
}  # fmt: skip
SCHEMES = {
    "W8A8": Scheme(),
    "W4A8": Scheme(weight_bits=4, clip_weights="mse"),
    "W4A4": Scheme(4, 4, clip_weights="mse"),
    "symmetric": Scheme(symmetric=True),
    "fixed point": FIXED_POINT,
    "4-bit fixed point": Scheme(4, 4, symmetric=True, per_channel=False, power_of_two=True),
}


def test_golden_learn_scales(golden: Golden) -> None:
    program, x = shortcut()
    before = Calibrate([x], "minmax")(InsertObservers()(program))
    golden(before, LearnScales()(before))


@pytest.mark.parametrize(
    ("net", "name"), [(Residual, name) for name in SCHEMES] + [(net, "W4A4") for net in NETS if net is not Residual]
)
@pytest.mark.parametrize("zero_points", [True, False])
def test_untrained_it_is_the_calibrated_program(net: type[nn.Module], name: str, zero_points: bool) -> None:
    x, scheme = NETS[net], SCHEMES[name]
    before = calibrated(net(), x, scheme)
    text = str(before)
    qat = verify(LearnScales(zero_points)(before), full=True)
    assert torch.equal(qat(x), before(x)) and len(learned(qat)) > 0
    fixed = verify(FixScales()(qat), full=True)
    assert str(fixed) == str(before) == text
    assert [node.name for node in fixed.graph.nodes if node.op == "call_function"] == [
        node.name for node in before.graph.nodes if node.op == "call_function"
    ]
    for (key, left), (other, right) in zip(
        fixed.module.state_dict().items(), before.module.state_dict().items(), strict=True
    ):
        assert key == other and left.dtype is right.dtype and torch.equal(left, right)
    assert str(Convert()(fixed)) == str(Convert()(before))
    assert fixed.history[-2:] == (f"LearnScales(zero_points={zero_points})", "FixScales()")


@pytest.mark.parametrize(
    ("net", "name"),
    [(Residual, name) for name in SCHEMES]
    + [(Inverted, "W8A8"), (Inverted, "W4A4"), (Inverted, "fixed point"), (Branches, "W4A4"), (Encoder, "W4A8")],
)
def test_trained_torch_and_onnxruntime_agree(net: type[nn.Module], name: str) -> None:
    """The target is one whose kernels are exact on every x86: with others, sums of wide weights may saturate."""
    x, scheme, target = NETS[net], SCHEMES[name], "x86-avx2"
    close = 36 if scheme.activation_bits == 8 else 20  # biases are rounded, and with them a few values of 4 bits
    qat = LearnScales()(calibrated(net(), x, scheme, target))
    train(qat, x, 4, 0.2 if scheme.power_of_two else 0.02)
    fixed = verify(FixScales()(qat.eval()))
    assert torch.equal(fixed(x), qat.eval()(x))
    converted = verify(Convert(target)(fixed))
    assert not {aten.relu.default, aten.relu6.default} & {node.target for node in converted.graph.nodes}
    assert sqnr(fixed(x), converted(x)) > close
    census = census_of(converted, target)
    assert census.unfused == {} and census.weight_dequantize == 0
    (actual,) = session_of(converted, target)(x)
    (expected,) = run_integer(converted, (x,))
    assert sqnr(expected, actual) > 100 and sqnr(fixed(x), actual) > close


@pytest.mark.parametrize("target", ["x86", "arm64"])
def test_other_targets(target: str) -> None:
    x = images(2, 16)
    qat = LearnScales()(calibrated(Gated(), x, Scheme(), target))
    train(qat, x)
    fixed = FixScales()(qat.eval())
    assert torch.equal(fixed(x), qat.eval()(x))
    assert sqnr(fixed(x), Convert(target)(fixed)(x)) > 25


@pytest.mark.parametrize("name", ["W4A8", "W4A4"])
def test_training_lowers_the_loss_and_scales_follow(name: str) -> None:
    x = images(4, 16)
    qat = LearnScales()(calibrated(Residual(), x, SCHEMES[name]))
    for parameter_name, parameter in qat.module.named_parameters():
        parameter.requires_grad_(parameter_name in learned(qat))
    losses = train(qat, x, 20, 0.02)
    assert losses[-1] < 0.99 * losses[0]


def test_groups_share_one_number() -> None:
    qat = LearnScales()(calibrated(Branches(), images()))
    nodes = qat.graph.find_nodes(op="call_function", target=learned_fake_quantize)
    pairs = {(str(argument(node, "scale").target), str(argument(node, "scale_log2").target)) for node in nodes}
    assert len(pairs) == len({scale for scale, _ in pairs}) < len(nodes)
    assert all(change == f"{scale}_log2" for scale, change in pairs)


def test_zero_points_are_learned_where_no_clip_and_no_symmetry_fixes_them() -> None:
    x = images()

    def shifts(scheme: Scheme, zero_points: bool = True) -> set[str]:
        return {
            name
            for name in learned(LearnScales(zero_points)(calibrated(Residual(), x, scheme)))
            if name.endswith("_shift")
        }

    found = shifts(Scheme())
    assert "x_zero_point_shift" in found and not any("relu" in name or "weight" in name for name in found)
    assert shifts(Scheme(symmetric=True)) == shifts(FIXED_POINT) == shifts(Scheme(), False) == set()


def test_powers_of_two_stay_powers_of_two() -> None:
    x = images()
    qat = LearnScales()(calibrated(Residual(), x, FIXED_POINT))
    train(qat, x, 4, 0.5)
    found = FixScales()(qat)
    scales = {name: value for name, value in found.module.named_buffers() if name.endswith("_scale")}
    before = dict(qat.module.named_buffers())
    assert all(torch.equal(power_of_two(scale), scale) for scale in scales.values())
    assert any(not torch.equal(scale, before[name]) for name, scale in scales.items())


@pytest.mark.parametrize("clip", [torch.relu, functional.relu6, functional.hardtanh, lambda x: x.clamp(-0.37, 0.61)])
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(4, 4), Scheme(symmetric=True), FIXED_POINT])
@pytest.mark.parametrize("change", [0.7, -0.7, 3.0])
def test_clips_are_absorbed_after_training(clip: object, scheme: Scheme, change: float) -> None:
    class Clipped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = clip(self.conv(x))  # type: ignore[operator]
            return y

    x = 5 * torch.randn(2, 4, 8, 8)
    qat = LearnScales()(calibrated(Clipped(), x, scheme))
    with torch.no_grad():
        learned(qat)[f"{_last_scale(qat)}_log2"].fill_(change)
    fixed = FixScales()(qat)
    assert torch.equal(fixed(x), qat(x))
    converted = Convert()(fixed)
    assert list(integer_nodes(converted).values()) == ["conv"]
    torch.testing.assert_close(converted(x), fixed(x), atol=1.01 * float(attribute(fixed, _last_scale(fixed))), rtol=0)


def _last_scale(program: Program) -> str:
    *_, node = [node for node in program.graph.nodes if node.target in (fake_quantize, learned_fake_quantize)]
    return str(argument(node, "scale").target)


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.001, 1.0), st.integers(0, 15), st.sampled_from([(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-0.3, 2.0)])
)
def test_the_largest_absorbing_scale(step: float, zero_point: int, bounds: tuple[float, float]) -> None:
    scale = float(torch.tensor(step))
    largest = largest_absorbing_scale(scale, zero_point, [bounds], 0, 15)
    if not clip_is_redundant(scale, zero_point, bounds, 0, 15):
        assert largest is None
    elif largest is not None:
        assert largest >= scale
        for share in (1.0, 0.9, 0.3):
            assert clip_is_redundant(max(largest * share, scale), zero_point, bounds, 0, 15)
        assert largest == scale or not clip_is_redundant(largest * 1.002, zero_point, bounds, 0, 15)


def test_a_bias_keeps_its_room() -> None:
    layer = nn.Conv2d(4, 16, 1)
    with torch.no_grad():
        layer.weight.mul_(1e-7)
        layer.bias = nn.Parameter(torch.full((16,), 0.7))
    x = torch.randn(2, 4, 4, 4)
    qat = LearnScales()(calibrated(layer, x))
    with torch.no_grad():
        learned(qat)["weight_scale_log2"].sub_(6)
    found = Convert()(FixScales()(qat))
    assert int(get_attribute(found.module, "bias_int32").abs().max()) <= BIAS_MAX + 2**8
    assert found(x).mean().item() == pytest.approx(0.7, rel=0.02)


def test_the_grid_of_a_hardsigmoid_stays() -> None:
    qat = LearnScales()(calibrated(Gated(), images(2, 16)))
    kept = qat.graph.find_nodes(op="call_function", target=fake_quantize)
    assert [str(argument(node, "x").target) for node in kept] == ["aten.hardsigmoid.default"]


def test_it_compiles_whole() -> None:
    x = images()
    qat = LearnScales()(calibrated(Residual(), x)).train()
    compiled = torch.compile(qat.module, fullgraph=True, backend="aot_eager")
    gradients = []
    for module in (qat.module, compiled):
        qat.module.zero_grad()
        module(x)[0].square().sum().backward()
        found = {name: value.grad for name, value in qat.module.named_parameters()}
        gradients.append({name: value.clone() for name, value in found.items() if value is not None})
    assert gradients[0].keys() == gradients[1].keys() == dict(qat.module.named_parameters()).keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    assert torch.equal(compiled(x[:1])[0], qat.module(x[:1])[0])


def test_save_and_load(tmp_path: Path) -> None:
    x = images()
    qat = LearnScales()(calibrated(Inverted(), x, SCHEMES["W4A4"]))
    train(qat, x)
    qat.eval().save(tmp_path / "qat.pt2")
    loaded = load(tmp_path / "qat.pt2")
    assert str(loaded) == str(qat.eval()) and torch.equal(loaded(x), qat.eval()(x))
    assert learned(loaded).keys() == learned(qat).keys()
    assert torch.equal(FixScales()(loaded)(x), loaded(x))


def test_what_has_nothing_to_learn_comes_back() -> None:
    x = images()
    program = program_of(Residual(), x)
    assert LearnScales()(program) is program and FixScales()(program) is program
    before = Calibrate([x])(InsertObservers()(program))
    qat = LearnScales()(before)
    assert LearnScales()(qat) is qat and FixScales()(before) is before
    converted = Convert()(before)
    assert LearnScales()(converted) is converted


def test_the_wrong_order_says_so() -> None:
    x = images()
    observed = InsertObservers()(program_of(Residual(), x))
    with pytest.raises(PassError, match="run Calibrate before LearnScales"):
        LearnScales()(observed)
    with pytest.raises(PassError, match="run FixScales before Convert"):
        Convert()(LearnScales()(Calibrate([x])(observed)))
    with pytest.raises(ExportError, match="there to train: run FoldRestoredBatchNorm and FixScales first"):
        to_onnx(LearnScales()(Calibrate([x])(observed)))
    with pytest.raises(PassError, match="This Program is quantized"):
        RemoveChannels()(LearnScales()(Calibrate([x])(observed)))


def test_training_that_diverged_says_so() -> None:
    qat = LearnScales()(calibrated(Residual(), images()))
    with torch.no_grad():
        learned(qat)["x_scale_log2"].fill_(math.nan)
    with pytest.raises(PassError, match=r"learned a scale that is not finite.*earlier checkpoint"):
        FixScales()(qat)


def test_a_learned_grid_is_verified() -> None:
    qat = LearnScales()(calibrated(Residual(), images()))
    node = qat.graph.find_nodes(op="call_function", target=learned_fake_quantize)[0]
    node.update_arg(6, 200)
    with pytest.raises(VerifyError, match=r"zero_point .* lies outside of"):
        verify(qat)
