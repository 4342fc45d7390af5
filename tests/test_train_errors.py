"""What fxopt.train refuses, and how it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import fxopt
from fxopt.errors import DataError, TrainingError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.train import train
from tests.training.models import batches, network, plain, sgd, tensors

aten = torch.ops.aten


def _nan_after(count: int) -> Any:
    class Loss:
        calls = 0

        def __call__(self, result: Tensor, labels: Tensor, valid: Tensor | None) -> Tensor:
            self.calls += 1
            loss = functional.cross_entropy(result, labels)
            return loss * float("nan") if self.calls > count else loss

    return Loss()


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    _, program = network()
    options = plain(epochs=3, task=_nan_after(9), save_every=4)
    text = r"epoch 2, step 10, at the learning rate 0.1: task is nan.*last good checkpoint: .*last.safetensors"
    with pytest.raises(TrainingError, match=text):
        train(program, batches(), options, folder=tmp_path)
    good = load_file(tmp_path / "last.safetensors")
    assert all(value.isfinite().all() for value in good.values())
    expected = train(program, batches(), plain(steps=8))
    assert torch.equal(good["program.head.weight"], tensors(expected)["head.weight"])
    with pytest.raises(TrainingError, match=r"step 1, .*inf.*no folder was given"):
        train(program, batches(), plain(task=lambda result, labels, valid: result.sum() * float("inf")))


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    _, program = network()

    def root(result: Tensor, labels: Tensor, valid: Tensor | None) -> Tensor:
        return (result - result.detach()).square().sum().sqrt()  # zero; its gradient is 0 / 0

    with pytest.raises(TrainingError, match=r"holds NaN or infinity after step 1\. .*checkpoint: none yet"):
        train(program, batches(1), plain(task=root), folder=tmp_path)
    assert not (tmp_path / "last.safetensors").exists()


def test_inputs_that_are_no_numbers_are_named() -> None:
    images, labels = batches(1)[0]
    with pytest.raises(TrainingError, match="Input 'x' holds NaN"):
        train(network()[1], [(images / 0, labels)], plain())


IMAGES, LABELS = batches(1)[0]


@pytest.mark.parametrize(
    ("data", "options", "error", "text"),
    [
        ([], {}, DataError, "is empty"),
        (iter(batches()), {}, DataError, "can be read once only"),
        (IMAGES, {}, DataError, "is one Tensor"),
        (3, {}, DataError, "must be iterable, got int"),
        ([(IMAGES[:, :2], LABELS)], {}, DataError, "Training item 0: Input 'x' does not fit"),
        ([(IMAGES, LABELS), (IMAGES.double(), LABELS)], {}, DataError, "Training item 1: Input 'x' does not fit"),
        ([IMAGES], {}, DataError, "Training item 0: it has no labels, which CrossEntropy needs"),
        ([{"x": IMAGES}], {}, DataError, "Training item 0: it has no labels"),
        ([{"image": IMAGES, "labels": LABELS}], {}, DataError, "another structure"),
        ([(IMAGES, LABELS)], {"task": None}, TrainingError, "nothing to minimise"),
        ([(IMAGES, LABELS)], {"optimizer": lambda p: 3}, TrainingError, "gives a int, not a torch.optim.Optimizer"),
        ([(IMAGES, LABELS)], {"optimizer": lambda p: sgd(p[1:])}, TrainingError, "leaves conv.weight without"),
        ([(IMAGES, LABELS)], {"task": lambda r, y, v: r}, TrainingError, r"'task' gives \[8, 5\]"),
        ([(IMAGES, LABELS)], {"task": lambda r, y, v: r.detach().sum()}, TrainingError, "no trainable parameter"),
        ([(IMAGES, LABELS)], {"changes": {0.0: lambda p: 3}}, fxopt.FxoptError, "int instead of a Program"),
    ],
)
def test_bad_input(data: Any, options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        train(network()[1], data, plain(**options))


def test_a_metric_that_is_no_number() -> None:
    with pytest.raises(TrainingError, match="evaluate gives NaN after step 6"):
        train(network()[1], batches(), plain(), evaluate=lambda model: float("nan"))


def test_nothing_to_train() -> None:
    _, program = network()
    for value in program.parameters():
        value.requires_grad_(False)
    with pytest.raises(TrainingError, match="no trainable parameter"):
        train(program, batches(), plain())


def test_a_change_that_makes_parameters_is_refused() -> None:
    def doubled(now: Program) -> Program:
        edit = Edit(now, by=doubled)
        first = next(iter(edit.graph.find_nodes(op="output"))).args[0][0]
        scale = edit.add_constant("scale", nn.Parameter(torch.ones(5)), before=edit.graph.output_node())
        edit.graph.output_node().args = ((edit.call(aten.mul.Tensor, first, scale, before=edit.graph.output_node()),),)
        return edit.finish()

    with pytest.raises(TrainingError, match=r"The change <function .*doubled.* leaves scale without an optimizer"):
        train(network()[1], batches(), plain(changes={0.5: doubled}))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(TrainingError, match=r'pip install "fxopt\[train\]"'):
        train(network()[1], batches(), plain())
