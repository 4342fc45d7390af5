"""fxopt.train against loops written by hand, and what it does around the steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxopt
from fxopt.errors import DataError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.graph.verify import verify
from fxopt.passes import MaskWeights, group_lasso
from fxopt.passes.distill import AttachTeacher, KLDivergence
from fxopt.passes.distill.detach_teacher import DetachTeacher
from fxopt.passes.prune import Sparsity
from fxopt.train import train
from fxopt.training.schedules import Constant, OneCycle
from tests.training.models import accuracy, batches, network, plain, same_tensors, sgd, tensors

aten = torch.ops.aten


def by_hand(
    model: nn.Module, epochs: int, change: Callable[[], object] = lambda: None, data: Iterable[Any] = ()
) -> dict[str, Tensor]:
    """Train a model as plain() does; `change` is called between the gradients and the step."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = sgd(model.named_parameters())
    for epoch in range(epochs):
        torch.manual_seed(epoch)
        for images, labels in data or batches():
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(model(images), labels))
            change()
            optimizer.step()
    return tensors(model)


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_the_trajectory_is_that_of_a_loop_by_hand(p: float) -> None:
    model, program = network(p)
    expected = by_hand(model, 3)
    same_tensors(train(program, batches(), plain(epochs=3)), expected)


def test_a_schedule_moves_the_rate_as_by_hand() -> None:
    model, program = network()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = sgd(model.named_parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=12, pct_start=0.25)
    for images, labels in [*batches(), *batches()]:
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(images), labels))
        optimizer.step()
        schedule.step()
    same_tensors(train(program, batches(), plain(epochs=2, schedule=OneCycle(warm_up=0.25))), tensors(model))


def test_gradients_are_clipped_by_their_norm() -> None:
    model, program = network()
    expected = by_hand(model, 1, lambda: nn.utils.clip_grad_norm_(model.parameters(), 0.1))
    trained = train(program, batches(), plain(clip_gradients=0.1))
    same_tensors(trained, expected)
    assert not torch.equal(tensors(trained)["head.weight"], by_hand(network()[0], 1)["head.weight"])


def test_weights_are_clipped_but_not_biases() -> None:
    _, program = network()
    with torch.no_grad():
        program.module.get_parameter("head.bias").fill_(3.0)
    trained = tensors(train(program, batches(), plain(clip_weights=0.05)))
    assert trained["conv.weight"].abs().max() == trained["head.weight"].abs().max() == torch.tensor(0.05)
    assert trained["head.bias"].min() > 2 and trained["norm.weight"].max() > 0.5


def split(data: list[tuple[Tensor, Tensor]], size: int) -> list[tuple[Tensor, Tensor]]:
    """Split items into ones of at most so many samples."""
    pairs = [zip(torch.split(images, size), torch.split(labels, size), strict=True) for images, labels in data]
    return [part for pair in pairs for part in pair]


def test_halves_that_are_accumulated_are_one_batch() -> None:
    program = network()[1].eval()
    program = fxopt.Pipeline(fxopt.passes.CLEANUP)(program)  # batch norm would see the halves
    whole = batches()
    parts = split(whole, 5)
    together = train(program, parts, plain(epochs=2, accumulate=2))  # 5 and 3 samples: means are weighted
    same_tensors(together, tensors(train(program, whole, plain(epochs=2))), exactly=False)


def test_the_last_step_of_an_epoch_takes_what_is_left() -> None:
    program = fxopt.Pipeline(fxopt.passes.CLEANUP)(network()[1])
    steps: list[int] = []
    train(program, batches(5), plain(accumulate=2, schedule=_counted(steps)))
    assert steps == [3]


def _counted(steps: list[int]) -> Any:
    def schedule(optimizer: torch.optim.Optimizer, count: int) -> Any:
        steps.append(count)
        return Constant()(optimizer, count)

    return schedule


def test_bfloat16_learns_with_float32_weights() -> None:
    _, program = network()
    seen: list[torch.dtype] = []

    class Seen:
        def __call__(self, result: Any, labels: Any, valid: Tensor | None) -> Tensor:
            seen.append(result.dtype)
            return functional.cross_entropy(result, labels)

    exact = tensors(train(program, batches(), plain(epochs=2)))
    trained = train(program, batches(), plain(epochs=2, precision="bf16", task=Seen()))
    assert set(seen) == {torch.float32} and {value.dtype for value in tensors(trained).values()} == {torch.float32}
    assert not torch.equal(tensors(trained)["head.weight"], exact["head.weight"])
    torch.testing.assert_close(tensors(trained)["head.weight"], exact["head.weight"], atol=0.02, rtol=0.1)


def test_the_program_given_and_the_callers_random_numbers_stay() -> None:
    _, program = network(0.5)
    before, text = {name: value.clone() for name, value in tensors(program).items()}, str(program)
    state = torch.get_rng_state()
    trained = train(program, batches(), plain(), evaluate=lambda model: float(torch.rand(())))
    assert torch.equal(torch.get_rng_state(), state)
    assert str(program) == text and program.history == ()
    same_tensors(program, before)
    verify(trained, full=True)
    assert trained.history == (
        "train(task=CrossEntropy(weight=1.0, label_smoothing=0.0), optimizer=<function sgd>, "
        "schedule=Constant(warm_up=0.0))",
    )
    assert trained.module.code == program.module.code
    assert all(value.is_contiguous() for value in tensors(trained).values())


def test_a_loaded_program_trains_as_the_captured_one(tmp_path: Path) -> None:
    _, program = network()
    program.save(tmp_path / "model.pt2")
    trained = train(fxopt.load(tmp_path / "model.pt2"), batches(), plain())
    same_tensors(trained, tensors(train(program, batches(), plain())))


def test_tied_weights_stay_one() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.table(tokens))  # type: ignore[no-any-return]

    tokens = torch.randint(7, (3, 5))
    program = fxopt.capture(Tied(), tokens, dynamic="batch")
    trained = train(program, [(tokens, tokens)], plain(epochs=2))
    assert len(list(trained.parameters())) == 1
    assert not torch.equal(next(iter(trained.parameters())), next(iter(program.parameters())))


def test_frozen_parameters_are_shared_and_stay() -> None:
    _, program = network()
    program.module.get_parameter("conv.weight").requires_grad_(False)
    trained = train(program, batches(), plain())
    assert trained.module.get_parameter("conv.weight") is program.module.get_parameter("conv.weight")
    assert not torch.equal(tensors(trained)["head.weight"], tensors(program)["head.weight"])


def test_a_student_learns_from_its_teacher_as_by_hand(tmp_path: Path) -> None:
    model, program = network()
    torch.manual_seed(7)
    other = fxopt.capture(type(model)().eval(), torch.randn(4, 3, 8, 8), dynamic="batch")
    joint = AttachTeacher(other, losses=(KLDivergence(temperature=4.0, weight=0.9),))(program)
    data = [images for images, _ in batches()]
    shown: list[int] = []

    def evaluate(student: Program) -> float:
        shown.append(len(student.outputs))
        return len(shown)

    trained = train(joint, data, plain(task=None, epochs=2), evaluate=evaluate, folder=tmp_path)
    teacher = {name: value for name, value in joint.module.named_parameters() if not value.requires_grad}
    assert all(trained.module.get_parameter(name) is value for name, value in teacher.items()) and teacher

    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = sgd(model.named_parameters())
    for images in [*data, *data]:
        optimizer.zero_grad()
        target = functional.log_softmax(other(images).detach() / 4, -1)
        found = functional.log_softmax(model(images) / 4, -1)
        loss = 0.9 * 16 * functional.kl_div(found, target, reduction="batchmean", log_target=True)
        torch.autograd.backward(loss)
        optimizer.step()
    same_tensors(DetachTeacher()(trained), tensors(model), exactly=False)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert (
        [row["metric"] for row in rows] == [1, 2]
        and shown == [1, 1]
        and rows[0]["loss"] == pytest.approx(rows[0][joint.taps[0].name])
    )


def test_penalties_are_added_once_a_step() -> None:
    program = fxopt.Pipeline(fxopt.passes.CLEANUP)(network()[1])
    lasso = group_lasso(program, 0.1)

    def norm(now: Program) -> Tensor:
        return 0.5 * now.module.get_parameter("head.weight").square().sum()

    data = batches()
    halves = split(data, 4)
    whole = train(program, data, plain(penalties=(lasso, norm)))
    same_tensors(train(program, halves, plain(penalties=(lasso, norm), accumulate=2)), tensors(whole), exactly=False)
    assert lasso(whole) < lasso(train(program, data, plain()))


def frozen_statistics(program: Program) -> Program:
    """Let batch norms use their running statistics."""
    edit = Edit(program, by=frozen_statistics)
    for node in edit.calls(aten.batch_norm.default):
        node.update_arg(5, False)
    return edit.finish()


def test_changes_are_made_at_their_share_of_the_steps() -> None:
    _, program = network()
    seen = []

    def change(now: Program) -> Program:
        seen.append(tensors(now)["norm.running_mean"].clone())
        return frozen_statistics(now)

    trained = train(program, batches(), plain(epochs=2, changes={0.5: change}))
    first = train(program, batches(), plain(epochs=1))
    assert torch.equal(seen[0], tensors(first)["norm.running_mean"]) and len(seen) == 1
    assert torch.equal(tensors(trained)["norm.running_mean"], seen[0])
    assert trained.history[0] == "frozen_statistics" and trained.history[1].startswith("train(")


def test_masks_grow_while_training() -> None:
    _, program = network()
    changes = {share: MaskWeights(Sparsity(sparsity)) for share, sparsity in ((0.0, 0.3), (0.4, 0.6), (0.8, 0.8))}
    trained = fxopt.Pipeline((fxopt.passes.FoldMasks(),))(train(program, batches(), plain(epochs=2, changes=changes)))
    weights = [tensors(trained)[name] for name in ("conv.weight", "head.weight")]
    zeros, count = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    assert zeros / count == pytest.approx(0.8, abs=0.02)
    assert [entry.split("(")[0] for entry in trained.history] == ["MaskWeights"] * 3 + ["train", "FoldMasks"]


def test_the_best_epoch_is_returned_and_patience_ends() -> None:
    _, program = network()
    metrics, seen = iter([0.1, 0.5, 0.3, 0.4, 0.9]), []

    def evaluate(student: Program) -> float:
        seen.append({name: value.clone() for name, value in tensors(student).items()})
        return next(metrics)

    trained = train(program, batches(), plain(epochs=5, patience=2), evaluate=evaluate)
    assert len(seen) == 4  # 0.9 is not waited for
    same_tensors(trained, seen[1])


def test_epochs_before_a_change_are_not_the_best() -> None:
    _, program = network()
    metrics = iter([0.9, 0.8, 0.1, 0.2])
    options = plain(epochs=4, patience=1, changes={0.5: frozen_statistics})
    trained = train(program, batches(), options, evaluate=lambda student: next(metrics))
    same_tensors(trained, tensors(train(program, batches(), plain(epochs=4, changes={0.5: frozen_statistics}))))


def test_it_learns() -> None:
    _, program = network()
    trained = train(program, batches(), plain(epochs=30), evaluate=accuracy)
    assert accuracy(trained) > 0.8 > accuracy(program) + 0.3


@pytest.mark.parametrize(("options", "steps"), [({"epochs": 2.5}, 15), ({"steps": 8}, 8), ({"epochs": 0.01}, 1)])
def test_epochs_may_be_broken_off(options: dict[str, Any], steps: int, tmp_path: Path) -> None:
    train(network()[1], batches(), plain(**options, log_every=1), folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["mean_over"] == "steps"] == list(range(1, steps + 1))
    assert [row["epoch"] for row in rows if row["mean_over"] == "epoch"] == list(range(1, 2 + (steps - 1) // 6))


def test_data_without_a_length_needs_steps() -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter(batches(2))

    _, program = network()
    with pytest.raises(DataError, match=r"how many items it has; give Training\(steps=...\)"):
        train(program, Stream(), plain())
    same_tensors(train(program, Stream(), plain(steps=4)), tensors(train(program, batches(2), plain(epochs=2))))
