"""Resuming: a training that is broken off anywhere ends with the weights of one that is not."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fxopt.errors import TrainingError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.passes import MaskWeights
from fxopt.passes.distill import CrossEntropy
from fxopt.passes.prune import Sparsity
from fxopt.train import train
from fxopt.training.options import Training
from fxopt.training.schedules import OneCycle
from tests.training.models import accuracy, batches, network, same_tensors, sgd, tensors

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6  # of an epoch


class Broken(Exception):
    pass


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise from all three generators; the one that is read as number `end` breaks the run."""

    def __init__(self, end: int | None = None) -> None:
        self.images = torch.cat([images for images, _ in batches()])
        self.labels = torch.cat([labels for _, labels in batches()])
        self.end = end

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.end is not None:
            self.end -= 1
            if self.end < 0:
                raise Broken
        image = self.images[index] + 0.1 * torch.randn(()) * float(np.random.rand())
        return image, self.labels[index]


def loader(end: int | None = None, **options: Any) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(Noisy(end), batch_size=8, shuffle=True, **options)


def options(**changed: Any) -> Training:
    return replace(
        Training(epochs=3, task=CrossEntropy(), optimizer=sgd, schedule=OneCycle(), save_every=2, log_every=3),
        **changed,
    )


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, amsgrad=True)


def baked(program: Program) -> Program:
    """Make a number in the graph of the weights that there are now."""
    edit = Edit(program, by=baked)
    output = edit.graph.output_node()
    logits = output.all_input_nodes[0]
    number = 1 + float(program.module.get_parameter("head.weight").detach().square().sum())
    output.args = ((edit.call(torch.ops.aten.mul.Scalar, logits, number, before=output),),)
    return edit.finish()


@pytest.mark.parametrize(
    ("changed", "epoch"),
    [
        ({}, 0.4),
        ({}, 1.0),  # the first item of an epoch
        ({}, 2.7),
        ({"optimizer": adam, "save_every": 1}, 1.5),
        ({"accumulate": 4}, 1.9),
        ({"changes": {0.2: MaskWeights(Sparsity(0.3)), 0.5: MaskWeights(Sparsity(0.6))}}, 2.1),
        ({"changes": {0.3: baked}}, 2.1),
        ({"save_every": None}, 1.6),
        ({"save_every": None}, 0.3),  # there is no checkpoint yet
    ],
)
def test_a_broken_run_ends_like_a_whole_one(changed: dict[str, Any], epoch: float, tmp_path: Path) -> None:
    _, program = network(0.5)
    training = options(**changed)
    expected = tensors(train(program, loader(), training, folder=tmp_path / "whole"))
    with pytest.raises(Broken):
        train(program, loader(round(epoch * 8 * STEPS)), training, folder=tmp_path / "broken")
    torch.rand(3)
    same_tensors(train(program, loader(), training, folder=tmp_path / "broken"), expected)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read the log, without the times."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    with (folder / "log.csv").open(newline="") as stream:
        assert [int(row["step"]) for row in csv.DictReader(stream)] == [row["step"] for row in found]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in found]


def test_a_loader_with_a_generator_of_its_own(tmp_path: Path) -> None:
    _, program = network()
    expected = tensors(train(program, loader(generator=torch.Generator().manual_seed(3)), options()))
    with pytest.raises(Broken):
        train(program, loader(80, generator=torch.Generator()), options(), folder=tmp_path)
    same_tensors(train(program, loader(generator=torch.Generator()), options(), folder=tmp_path), expected)


def test_the_best_epoch_and_patience_survive(tmp_path: Path) -> None:
    _, program = network()
    training = options(epochs=6, patience=2)
    metrics = [0.1, 0.5, 0.3, 0.2, 0.9]
    whole = train(program, loader(), training, evaluate=_next_of(metrics))
    with pytest.raises(Broken):
        train(program, loader(8 * STEPS * 3 + 20), training, evaluate=_next_of(metrics), folder=tmp_path)
    rest = _next_of(metrics[3:])
    same_tensors(train(program, loader(), training, evaluate=rest, folder=tmp_path), tensors(whole))
    assert [row["metric"] for row in rows(tmp_path) if row["mean_over"] == "epoch"] == metrics[:4]


def _next_of(metrics: list[float]) -> Any:
    left = iter(metrics)
    return lambda model: next(left)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    _, program = network()
    first = train(program, loader(), options(), evaluate=accuracy, folder=tmp_path)
    again = train(program, loader(0), options(log_every=1), evaluate=lambda model: 0.0, folder=tmp_path)
    same_tensors(again, tensors(first))
    assert again.history == first.history[:-1] + again.history[-1:]


def test_another_training_is_refused(tmp_path: Path) -> None:
    _, program = network()
    train(program, batches(), options(epochs=1), folder=tmp_path)
    _, other = network()
    with torch.no_grad():
        other.module.get_parameter("head.bias").add_(1)
    for arguments, text in (
        ((program, batches(), options(epochs=1, seed=1)), "another training. seed is 0 there, 1 here. Give another"),
        ((program, batches(4), options(epochs=1)), "steps is 6 there, 4 here"),
        ((other, batches(), options(epochs=1)), "Its Program has another graph, or other weights"),
    ):
        with pytest.raises(TrainingError, match=text):
            train(*arguments, folder=tmp_path)
    with pytest.raises(TrainingError, match="evaluate is False there, True here"):
        train(program, batches(), options(epochs=1), folder=tmp_path, evaluate=accuracy)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint of anything"])
def test_a_damaged_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "last.safetensors").write_bytes(content)
    with pytest.raises(TrainingError, match=r"last\.safetensors' is no checkpoint of fxopt\.train, or it is damaged"):
        train(network()[1], batches(), options(), folder=tmp_path)


def test_nothing_but_whole_files_is_left(tmp_path: Path) -> None:
    train(
        network()[1], batches(), options(changes={0.5: MaskWeights(Sparsity(0.5))}), folder=tmp_path, evaluate=accuracy
    )
    names = {"last.safetensors", "best.safetensors", "before_change_1.safetensors", "log.csv", "log.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


class Fatal:
    """The items of a loader; the process is killed before the one with number `end`."""

    def __init__(self, end: int) -> None:
        self.left = end

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[Any]:
        for item in loader():
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            yield item


@pytest.mark.slow
def test_a_killed_process_is_resumed(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tests.training import test_run as t\n"
        "t.train(t.network(0.5)[1], t.Fatal(9), t.options(save_every=2), folder=sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / "last.safetensors").is_file()
    _, program = network(0.5)
    resumed = train(program, Fatal(100), options(), folder=tmp_path)
    same_tensors(resumed, tensors(train(program, Fatal(100), options())))
