"""TrackRanges: ranges follow the batches in training, stay in inference, and FixScales leaves what Calibrate leaves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import ExportError, PassError
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.graph.integer import run_integer
from fxopt.graph.interpret import sqnr
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.serialize import load
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import (
    Calibrate,
    Convert,
    FixScales,
    FoldRestoredBatchNorm,
    InsertObservers,
    LearnScales,
    RemoveFakeQuantize,
    RestoreBatchNorm,
    Scheme,
    TrackRanges,
)
from fxopt.passes.quantize.scheme import Levels
from fxopt.passes.quantize.track_ranges import full_levels
from tests.conftest import Golden
from tests.passes.quantize.nets import Branches, Inverted, Residual, images, program_of
from tests.passes.quantize.qat import attribute, calibrated, train
from tests.passes.quantize.test_convert import shortcut
from tests.passes.quantize.test_learn_scales import NETS, SCHEMES
from tests.passes.quantize.test_onnxruntime import census_of, session_of
from tests.passes.quantize.test_restore_batch_norm import normed


def test_golden_track_ranges(golden: Golden) -> None:
    program, x = shortcut()
    before = Calibrate([x], "minmax")(InsertObservers()(program))
    golden(before, TrackRanges()(before))


@pytest.mark.parametrize(
    ("net", "name"), [(Residual, name) for name in SCHEMES] + [(net, "W4A4") for net in NETS if net is not Residual]
)
def test_untrained_it_is_the_calibrated_program(net: type[nn.Module], name: str) -> None:
    x = NETS[net]
    before = calibrated(net(), x, SCHEMES[name])
    tracked = verify(TrackRanges()(before), full=True)
    torch.testing.assert_close(tracked(x), before(x))
    fixed = verify(FixScales()(tracked), full=True)
    assert str(fixed) == str(before)
    after = fixed.module.state_dict()
    for key, value in before.module.state_dict().items():
        assert value.dtype is after[key].dtype
        torch.testing.assert_close(after[key], value, rtol=2e-7, atol=0)


def test_ranges_follow_in_training_and_stay_in_inference() -> None:
    x = images()
    before = calibrated(Residual(), x)
    tracked = TrackRanges(momentum=0.25)(before).train()
    ends = attribute(tracked, "x_ends")
    low, high = ends[0].tolist()
    weight = attribute(tracked, "stem.weight")
    tracked.module(3 * x)
    assert ends[0].tolist() == pytest.approx(
        [low + 0.25 * (3 * x.min().item() - low), high + 0.25 * (3 * x.max().item() - high)]
    )
    state = ends.clone()
    tracked.eval().module(9 * x)
    assert torch.equal(ends, state)
    with torch.no_grad():
        weight.mul_(2)
    fixed = FixScales()(tracked)
    torch.testing.assert_close(attribute(fixed, "stem.weight_scale"), 2 * attribute(before, "stem.weight_scale"))
    assert float(attribute(fixed, "x_scale")) == pytest.approx(float(ends[0, 1] - ends[0, 0]) / 255)
    with torch.no_grad():
        weight.div_(2)


@pytest.mark.parametrize(
    ("net", "name"),
    [
        *((Residual, name) for name in ("W8A8", "W4A4", "symmetric", "fixed point")),
        (Inverted, "W8A8"), (Inverted, "fixed point"), (Branches, "W4A8"),
    ],
)  # fmt: skip
def test_trained_torch_and_onnxruntime_agree(net: type[nn.Module], name: str) -> None:
    x, scheme, target = NETS[net], SCHEMES[name], "x86-avx2"
    qat = TrackRanges(0.2)(calibrated(net(), x, scheme, target))
    train(qat, x, 4, 0.02)
    close = 36 if scheme.activation_bits == 8 else 20
    fixed = verify(FixScales()(qat.eval()))
    assert sqnr(qat.eval()(x), fixed(x)) > close
    converted = verify(Convert(target)(fixed))
    assert sqnr(fixed(x), converted(x)) > close
    census = census_of(converted, target)
    assert census.unfused == {} and census.weight_dequantize == 0
    (actual,) = session_of(converted, target)(x)
    (expected,) = run_integer(converted, (x,))
    assert sqnr(expected, actual) > 100


@pytest.mark.parametrize(
    ("limits", "levels"),
    [
        ((0, 255), (0, 255)), ((0, 192), (0, 255)), ((-128, 127), (-128, 127)), ((-127, 42), (-128, 127)),
        ((-42, 127), (-128, 127)), ((0, 9), (0, 15)), ((-8, 3), (-8, 7)), ((-5, 7), (-8, 7)),
    ],
)  # fmt: skip
def test_levels_that_a_clip_took_come_back(limits: tuple[int, int], levels: tuple[int, int]) -> None:
    assert full_levels(*limits, True, False) == Levels(*levels, True, False)


def test_with_batch_norms() -> None:
    x = images(4)
    source = capture(normed(), x, dynamic="batch")
    before = Pipeline((*CLEANUP, InsertObservers(), Calibrate([x], scheme=Scheme(weight_bits=4))))(source)
    qat = verify(TrackRanges()(RestoreBatchNorm(source)(before)), full=True)
    assert sqnr(before(x), qat(x)) > 60
    assert str(FixScales()(FoldRestoredBatchNorm()(qat))) == str(before)
    losses = train(qat, x, 3, 0.01)
    assert all(loss < 1e3 for loss in losses)
    fixed = FixScales()(FoldRestoredBatchNorm()(qat.eval()))
    assert sqnr(qat.eval()(x), fixed(x)) > 25
    verify(Convert()(fixed))


def test_it_compiles_whole_and_is_saved(tmp_path: Path) -> None:
    x = images()
    qat = TrackRanges(0.5)(calibrated(Residual(), x)).train()
    state = {name: value.clone() for name, value in qat.module.state_dict().items()}
    compiled = torch.compile(qat.module, fullgraph=True, backend="aot_eager")
    results: list[tuple[Tensor, Tensor]] = []
    for module in (compiled, qat.module):
        qat.module.load_state_dict(state)
        result = module(2 * x)[0]
        result.square().sum().backward()
        results.append((result.detach(), attribute(qat, "x_ends").clone()))
    assert torch.equal(results[0][1], results[1][1]) and not torch.equal(results[0][1], state["x_ends"])
    torch.testing.assert_close(results[0][0], results[1][0])
    for program in (qat, qat.eval()):
        program.save(tmp_path / "qat.pt2")
        loaded = load(tmp_path / "qat.pt2")
        assert str(loaded) == str(program) and torch.equal(loaded.eval()(x), program.eval()(x))


def test_the_wrong_use_says_so() -> None:
    x = images()
    observed = InsertObservers()(program_of(Residual(), x))
    before = Calibrate([x])(observed)
    tracked = TrackRanges()(before)
    with pytest.raises(PassError, match="run Calibrate before TrackRanges"):
        TrackRanges()(observed)
    with pytest.raises(PassError, match="run FixScales before Convert"):
        Convert()(tracked)
    with pytest.raises(ExportError, match="FixScales first"):
        to_onnx(tracked)
    with pytest.raises(PassError, match="above 0 and at most 1"):
        TrackRanges(momentum=0)
    assert TrackRanges()(tracked) is tracked and LearnScales()(tracked) is tracked
    attribute(tracked, "x_ends")[0, 0] = torch.nan
    with pytest.raises(PassError, match="values that are not finite"):
        FixScales()(tracked)
    assert str(RemoveFakeQuantize()(tracked)) == str(RemoveFakeQuantize()(before))
