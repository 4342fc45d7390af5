"""Fine-tuning of what passes made: masks and removed channels stay, schedules prune between trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxopt
from fxopt import Pipeline, Program, Training, passes
from fxopt.export.validate import validate
from fxopt.graph.cost import macs
from fxopt.graph.rewrite import get_attribute
from fxopt.machine import this_machine
from tests.passes.cleanup.checks import program_of

X = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
LABELS = (X[:, :6].sum(1) > X[:, 6:].sum(1)).long()
DATA = [(X[start : start + 16], LABELS[start : start + 16]) for start in range(0, 64, 16)]
INPUTS = [x for x, _ in DATA]
TRAINING = Training(epochs=8, task=passes.CrossEntropy(), optimizer=lambda p: torch.optim.Adam(p, lr=1e-2))


def _forward(m: Any, x: Tensor) -> Any:
    return m.head(torch.relu(m.second(torch.relu(m.first(x)))))


@pytest.fixture
def network() -> Program:
    layers = {"first": nn.Linear(12, 32), "second": nn.Linear(32, 32), "head": nn.Linear(32, 2)}
    return fxopt.train(program_of(_forward, X[:2], dynamic="batch", **layers), DATA, TRAINING)


def accuracy(program: Program) -> float:
    return float((program(X).argmax(1) == LABELS).double().mean())


def test_masks_stay_and_grow_between_trainings(network: Program) -> None:
    sizes = []

    def between(program: Program) -> Program:
        trained = fxopt.train(program, DATA, TRAINING)
        sizes.append(zeros(passes.FoldMasks()(trained)))
        return trained

    steps = passes.Gradually(
        lambda share: passes.MaskWeights(passes.Sparsity(share)), target=0.8, steps=3, between=between
    )
    small = passes.FoldMasks()(between(steps(network)))
    assert sizes == sorted(sizes) and zeros(small) == pytest.approx(0.8, abs=0.01)
    assert not torch.equal(get_attribute(small.module, "head.bias"), get_attribute(network.module, "head.bias"))
    assert accuracy(small) > 0.9


def zeros(program: Program) -> float:
    weights = [value for _, value in program.module.named_parameters() if value.ndim == 2]
    return sum(int((value == 0).sum()) for value in weights) / sum(value.numel() for value in weights)


def test_channels_go_step_by_step_with_training_between(network: Program) -> None:
    steps = passes.Gradually(
        lambda share: passes.RemoveChannels(macs=share, round_to=1),
        target=0.3,
        steps=3,
        of=macs,
        between=lambda program: fxopt.train(program, DATA, TRAINING),
    )
    small = fxopt.train(steps(network), DATA, TRAINING)
    assert macs(small) / macs(network) == pytest.approx(0.3, abs=0.03)
    assert accuracy(small) > 0.9
    assert [entry.split("(")[0] for entry in small.history[1:]] == ["RemoveChannels", "train"] * 3


def test_a_penalty_on_units_makes_them_small(network: Program) -> None:
    penalty = passes.group_lasso(network, strength=0.01)
    plain = fxopt.train(network, DATA, TRAINING)
    driven = fxopt.train(network, DATA, Training(**{**vars(TRAINING), "penalties": [penalty]}))
    ratio = penalty.norms(driven) / penalty.norms(plain)
    assert ratio.quantile(0.25) < 0.5, "a unit that does little goes"


def test_the_whole_chain_on_a_program_that_was_loaded(network: Program, tmp_path: Path) -> None:
    network.save(tmp_path / "teacher.pt2")
    teacher = fxopt.load(tmp_path / "teacher.pt2")
    small = passes.RemoveChannels(macs=0.4, round_to=4)(teacher)
    joint = passes.AttachTeacher(teacher, passes.KLDivergence(temperature=2.0), passes.FeatureHint())(small)
    student = passes.DetachTeacher()(fxopt.train(joint, INPUTS, Training(epochs=8)))
    assert accuracy(student) > 0.9
    target = this_machine()
    calibration = (passes.InsertObservers(target), passes.Calibrate(INPUTS, target=target))
    ready = Pipeline((*passes.CLEANUP, *calibration, passes.LearnScales()))(student)
    joint = passes.AttachTeacher(teacher, passes.KLDivergence())(ready)
    trained = passes.DetachTeacher()(fxopt.train(joint, DATA, TRAINING))
    integer = Pipeline((passes.FixScales(), passes.Convert(target)))(trained)
    fxopt.export.to_onnx(integer, tmp_path / "small.onnx", target=target)
    found = validate(tmp_path / "small.onnx", integer, (X,), target=target, raise_on_failure=True)
    assert found.census is not None and found.census.integer_kernels == 3
    assert accuracy(integer) > 0.9
