"""Quantization-aware training on the whole: calibrate, learn scales, fxopt.train, fix, convert, onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxopt
from fxopt import Training, passes
from fxopt.graph.interpret import sqnr
from fxopt.graph.program import Program
from fxopt.passes.quantize import FoldRestoredBatchNorm, FreezeBatchNorm, RestoreBatchNorm, TrackRanges
from fxopt.training.optimizers import AdamW
from tests.passes.quantize.nets import images
from tests.passes.quantize.qat import attribute, learned
from tests.passes.quantize.test_restore_batch_norm import batch_norms, normed

TARGET = "x86-avx2"  # its kernels are exact on every x86
STEPS = 6


class Items:
    """Random images with classes that follow from them, the same at each pass."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(3):
            x = images(8, seed=number)
            yield x, (x.mean((1, 2, 3)) > 0.1).long() + 2 * (x[:, 0].mean((1, 2)) > 0).long()


def programs(bits: passes.Scheme) -> tuple[Program, Program]:
    """Return the captured and the calibrated Program."""
    x = images(8)
    captured = fxopt.capture(normed(), x, dynamic="batch")
    observed = passes.InsertObservers(TARGET)
    calibrate = passes.Calibrate([x], target=TARGET, scheme=bits)
    return captured, fxopt.Pipeline((*passes.CLEANUP, observed, calibrate))(captured)


def finish(program: Program, folder: Path) -> tuple[Tensor, Tensor]:
    """Fix, convert, export and validate; returns the outputs of the fixed Program and of onnxruntime."""
    x = images(4, seed=9)
    fixed = fxopt.Pipeline((FoldRestoredBatchNorm(), passes.FixScales()))(program)
    converted = passes.Convert(TARGET)(fixed)
    fxopt.export.to_onnx(converted, folder / "model.onnx", target=TARGET)
    fxopt.export.validate(folder / "model.onnx", converted, (x,), target=TARGET, raise_on_failure=True)
    (actual,) = fxopt.export.session.Session(folder / "model.onnx")(x)
    return fixed(x), actual


@pytest.mark.parametrize("bits", [passes.Scheme(), passes.Scheme(4, 4, clip_weights="mse")], ids=["W8A8", "W4A4"])
@pytest.mark.parametrize("way", ["learned", "restored", "tracked"])
def test_train_fix_convert_export(bits: passes.Scheme, way: str, tmp_path: Path) -> None:
    captured, calibrated = programs(bits)
    start, changes = passes.LearnScales()(calibrated), {}
    if way == "restored":
        start, changes = RestoreBatchNorm(captured)(start), {0.5: FreezeBatchNorm()}
    if way == "tracked":
        start = TrackRanges(0.1)(calibrated)
    before = {name: value.clone() for name, value in start.module.state_dict().items()}
    training = Training(steps=STEPS, task=passes.CrossEntropy(), changes=changes, optimizer=AdamW(0.01))
    trained = fxopt.train(start, Items(), training)
    after = trained.module.state_dict()
    assert all(torch.equal(value, start.module.state_dict()[name]) for name, value in before.items())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert "head.weight" in moved and {name for name in learned(trained) if name.endswith("_log2")} <= set(moved)
    assert way != "tracked" or "x_ends" in moved
    assert batch_norms(trained) == (4 if way == "restored" else 0)
    fixed, actual = finish(trained, tmp_path)
    assert sqnr(fixed, actual) > (30 if bits.activation_bits == 8 else 12)


def test_a_teacher_in_float_teaches_the_quantized_student(tmp_path: Path) -> None:
    captured, calibrated = programs(passes.Scheme(4, 4, clip_weights="mse"))
    attach = passes.AttachTeacher(captured, losses=(passes.KLDivergence(temperature=2.0),))
    joint = attach(passes.LearnScales()(calibrated))
    trained = fxopt.train(joint, Items(), Training(steps=STEPS))
    student = passes.DetachTeacher()(trained)
    assert set(learned(student)) == set(learned(passes.LearnScales()(calibrated)))
    assert not torch.equal(attribute(student, "x_scale_log2"), torch.zeros(()))
    finish(student, tmp_path)


def test_calibrated_weights_are_not_touched() -> None:
    _, calibrated = programs(passes.Scheme())
    weight = attribute(calibrated, "head.weight")
    assert isinstance(weight, nn.Parameter)
    state = weight.detach().clone()
    fxopt.train(passes.LearnScales()(calibrated), Items(), Training(steps=2, task=passes.CrossEntropy()))
    assert torch.equal(weight, state)
