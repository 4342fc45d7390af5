"""AttachTeacher and DetachTeacher: what is paired with what, that nothing else changes, and that it comes off again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import ExportError, ModelError, PassError
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.printer import format_program
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute
from fxopt.graph.taps import Loss, Tap, tap_losses
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP, Calibrate, InsertObservers, LearnScales, RemoveChannels
from fxopt.passes.distill.attach_teacher import AttachTeacher
from fxopt.passes.distill.detach_teacher import DetachTeacher
from fxopt.passes.distill.losses import AttentionTransfer, PairwiseSimilarity, Relations
from fxopt.passes.distill.pairing import stages
from tests.conftest import Golden
from tests.passes.cleanup.checks import program_of

IMAGE = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Squares:
    """The mean squared difference."""

    weight: float = 1.0

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        return self.weight * (student - teacher).square().mean()


@dataclass(frozen=True)
class Norms(Squares):
    """The squared difference of norms, whatever the widths."""

    any_width = True

    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None, valid: Tensor | None) -> Tensor:
        return self.weight * (student.square().sum().sqrt() - teacher.square().sum().sqrt()).square()


def _forward(m: Any, x: Tensor) -> Any:
    x = torch.relu(m.norm(m.first(x)))
    x = x + m.dropout(torch.relu(m.second(x)))
    return m.head(x.mean((2, 3)))


def network(width: int = 32, classes: int = 5, function: Callable[..., Any] = _forward, **change: nn.Module) -> Program:
    parts: dict[str, nn.Module] = {
        "first": nn.Conv2d(3, width, 3, padding=1),
        "norm": nn.BatchNorm2d(width),
        "second": nn.Conv2d(width, width, 3, padding=1),
        "dropout": nn.Dropout(0.3),
        "head": nn.Linear(width, classes),
    }
    return program_of(function, IMAGE, dynamic="batch", **(parts | change))


def pruned(program: Program) -> Program:
    return Pipeline((RemoveChannels(macs=0.4, round_to=4),))(program)


def values(joint: Program, tap: Tap) -> tuple[Tensor, Tensor]:
    outputs = joint.module(IMAGE)
    assert isinstance(tap.teacher, int)
    return outputs[tap.student], outputs[tap.teacher]


def value_of(program: Program, name: str) -> Tensor:
    """Compute a value by fx's own interpreter."""
    found: dict[str, Tensor] = {}

    class Recorder(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            found[n.name] = result = super().run_node(n)
            return result

    with torch.no_grad():
        Recorder(program.eval().module).run(IMAGE)
    return found[name]


def test_the_joint_program_gives_the_students_result_and_both_logits() -> None:
    student, teacher = network(8), network(16)
    joint = Pipeline((AttachTeacher(teacher, Squares()),))(student)
    verify(joint, full=True)
    result, extra = joint(IMAGE)
    assert torch.equal(result, student(IMAGE)) and len(extra) == 1
    (tap,) = joint.taps
    ours, theirs = values(joint, tap)
    assert torch.equal(ours, result)
    torch.testing.assert_close(theirs, teacher(IMAGE), atol=1e-5, rtol=1e-5)
    loss = tap_losses(joint.taps, joint.module(IMAGE), None, None, None)["Squares output"]
    torch.testing.assert_close(loss, (student(IMAGE) - teacher(IMAGE)).square().mean())


def test_the_teacher_is_frozen_in_inference_mode() -> None:
    student, teacher = network(8), network(16)
    statistics = get_attribute(teacher.module, "norm.running_mean").clone()
    joint = AttachTeacher(teacher, Squares(), {-1: Squares()})(student).train()
    first, second = (joint.module(IMAGE) for _ in range(2))
    (logits, _) = joint.taps
    assert torch.equal(first[logits.teacher], second[logits.teacher])
    torch.testing.assert_close(first[logits.teacher], teacher(IMAGE), atol=1e-5, rtol=1e-5)
    assert not torch.equal(first[0], second[0]), "the student's dropout is at work"
    assert torch.equal(get_attribute(teacher.module, "norm.running_mean"), statistics)
    trained = {name for name, tensor in joint.module.named_parameters() if tensor.requires_grad}
    assert trained == {name for name, _ in student.module.named_parameters()} | {"projections.mean.weight"}
    assert not list(b for b in joint.module.named_buffers() if b[0].startswith("teacher"))


def test_gradients_reach_the_student_alone() -> None:
    student, teacher = network(8), network(8)
    joint = AttachTeacher(teacher, Squares(), {"relu": Squares()})(student)
    losses = tap_losses(joint.taps, joint.module(IMAGE), None, None, None)
    torch.autograd.backward(list(losses.values()))
    gradients = {name: tensor.grad for name, tensor in joint.module.named_parameters()}
    assert gradients["first.weight"] is not None and gradients["first.weight"].abs().sum() > 0
    assert all(gradient is None for name, gradient in gradients.items() if name.startswith("teacher"))


def test_detached_it_is_the_student_as_it_was() -> None:
    teacher = network(32)
    student = pruned(teacher)
    joint = AttachTeacher(network(16), Norms(), Norms())(AttachTeacher(teacher, Squares(), Squares())(student))
    back = Pipeline((DetachTeacher(),))(joint)
    assert str(back) == str(student)
    assert [node.name for node in back.graph.nodes] == [node.name for node in student.graph.nodes]
    assert (back.history, back.notes, back.taps) == (student.history, student.notes, ())
    ours, theirs = (dict(program.module.named_parameters()) for program in (back, student))
    assert ours.keys() == theirs.keys() and all(ours[name] is theirs[name] for name in ours)
    assert DetachTeacher()(student) is student


def test_a_student_with_fewer_channels_is_compared_with_those_that_are_left() -> None:
    teacher = network(32)
    student = pruned(teacher)
    joint = AttachTeacher(teacher, taps=Squares())(student)
    assert [tap.name for tap in joint.taps] == ["Squares relu", "Squares mean"]
    assert not any(name.startswith("projections") for name, _ in joint.module.named_parameters())
    for tap, name, dim in zip(joint.taps, ("relu", "mean"), (1, 1), strict=True):
        left = torch.tensor(student.kept[name][dim])
        ours, theirs = values(joint, tap)
        assert ours.shape == theirs.shape and len(left) < 32
        torch.testing.assert_close(theirs, value_of(teacher, name).index_select(dim, left), atol=1e-5, rtol=1e-5)


def test_a_teacher_that_lost_channels_itself_is_compared_by_the_positions_of_the_captured_model() -> None:
    teacher = pruned(network(32))
    student = pruned(teacher)
    joint = AttachTeacher(teacher, taps={"relu": Squares()})(student)
    before, after = teacher.kept["relu"][1], student.kept["relu"][1]
    left = torch.tensor([before.index(position) for position in after])
    _, theirs = values(joint, joint.taps[0])
    torch.testing.assert_close(theirs, value_of(teacher, "relu").index_select(1, left), atol=1e-5, rtol=1e-5)


def test_a_student_in_quantization_aware_training_still_knows_its_teacher() -> None:
    teacher = network(32)
    small = Pipeline(CLEANUP)(pruned(teacher))
    ready = Pipeline((InsertObservers(), Calibrate([IMAGE]), LearnScales()))(small)
    joint = AttachTeacher(teacher, taps=Squares())(ready)
    assert [tap.name for tap in joint.taps] == ["Squares relu", "Squares mean"]
    left = torch.tensor(small.kept["relu"][1])
    _, theirs = values(joint, joint.taps[0])
    torch.testing.assert_close(theirs, value_of(teacher, "relu").index_select(1, left), atol=1e-5, rtol=1e-5)
    assert str(DetachTeacher()(joint)) == str(ready)


@pytest.mark.parametrize(("key", "dim"), [("relu", 1), (("relu", "relu_1"), 1), (1, 1), ((-1, 1), 1)])
def test_a_trained_map_takes_a_narrow_value_to_the_width_of_the_teachers(key: Any, dim: int) -> None:
    student, teacher = network(8), network(16)
    joint = AttachTeacher(teacher, taps={key: Squares()})(student)
    (tap,) = joint.taps
    ours, theirs = values(joint, tap)
    assert ours.shape == theirs.shape and theirs.shape[dim] == 16
    student_name, teacher_name = key if isinstance(key, tuple) else (key, key)
    names = [stages(p)[n] if isinstance(n, int) else n for p, n in ((student, student_name), (teacher, teacher_name))]
    weight = get_attribute(joint.module, f"projections.{names[0]}.weight")
    assert weight.requires_grad and weight.shape == (16, 8)
    mapped = torch.tensordot(value_of(student, names[0]), weight, ([dim], [1])).movedim(-1, dim)
    torch.testing.assert_close(ours, mapped)
    torch.testing.assert_close(theirs, value_of(teacher, names[1]), atol=1e-5, rtol=1e-5)


def test_a_loss_of_values_of_any_width_needs_no_map() -> None:
    joint = AttachTeacher(network(16), taps={"relu": Norms()})(network(8))
    ours, theirs = values(joint, joint.taps[0])
    assert (ours.shape[1], theirs.shape[1]) == (8, 16)


@pytest.mark.parametrize("loss", [AttentionTransfer(), Relations(), PairwiseSimilarity()])
def test_losses_that_take_any_width_say_so(loss: Loss) -> None:
    joint = AttachTeacher(network(16), taps={"relu": loss})(network(8))
    (found,) = tap_losses(joint.taps, joint.module(IMAGE), None, None, None).values()
    assert found.isfinite() and found > 0
    assert not any(name.startswith("projections") for name, _ in joint.module.named_parameters())


def test_networks_of_unlike_depth_pair_by_how_far_their_stages_are() -> None:
    def chain(depth: int) -> Program:
        def forward(m: Any, x: Tensor) -> Any:
            for number in range(depth):
                x = torch.relu(getattr(m, f"layer{number}")(x))
            return m.head(x)

        layers: dict[str, nn.Module] = {f"layer{number}": nn.Linear(6, 6) for number in range(depth)}
        return program_of(forward, torch.randn(3, 6), dynamic="batch", **layers, head=nn.Linear(6, 2))

    student, teacher = chain(3), chain(9)
    assert stages(student) == ("relu", "relu_1", "relu_2")
    joint = AttachTeacher(teacher, taps=Squares())(student)
    assert [tap.name for tap in joint.taps] == ["Squares relu", "Squares relu_1 relu_4", "Squares relu_2 relu_8"]
    assert len(AttachTeacher(chain(9), taps=Squares())(teacher).taps) == 6, "no more than that are kept"


def test_several_losses_share_outputs_and_have_names_of_their_own() -> None:
    joint = AttachTeacher(network(8), (Squares(), Squares(2.0)), {"relu": [Squares(), Norms()]})(network(8))
    assert [tap.name for tap in joint.taps] == ["Squares output", "Squares output 2", "Squares relu", "Norms relu"]
    assert len(joint.outputs) == 4
    again = AttachTeacher(network(8), Squares())(joint)
    assert again.taps[-1].name == "Squares output 3"
    torch.testing.assert_close(again(IMAGE)[0], joint(IMAGE)[0])
    found = tap_losses(again.taps, again.module(IMAGE), None, None, None)
    torch.testing.assert_close(found["Squares output 2"], 2 * found["Squares output"])


def test_losses_can_be_given_by_the_name_of_an_output() -> None:
    def two(m: Any, x: Tensor) -> Any:
        logits = _forward(m, x)
        return {"logits": logits, "energy": logits.logsumexp(1)}

    student, teacher = (network(8, function=two) for _ in range(2))
    joint = AttachTeacher(teacher, losses={"energy": Squares()})(student)
    ours, theirs = values(joint, joint.taps[0])
    torch.testing.assert_close(ours, student(IMAGE)["energy"])
    torch.testing.assert_close(theirs, teacher(IMAGE)["energy"], atol=1e-5, rtol=1e-5)
    assert joint(IMAGE)[0].keys() == {"logits", "energy"}


def test_stored_outputs_add_no_teacher() -> None:
    stored = torch.randn(10, 5)
    student = network(8)

    def teacher(ids: Tensor) -> Tensor:
        return stored[ids]

    joint = AttachTeacher(teacher, Squares())(student)
    result, extra = joint(IMAGE)
    assert extra == () and torch.equal(result, student(IMAGE))
    found = tap_losses(joint.taps, joint.module(IMAGE), None, None, torch.tensor([3, 1, 4, 1]))
    torch.testing.assert_close(found["Squares output"], (result - stored[[3, 1, 4, 1]]).square().mean())
    assert str(DetachTeacher()(joint)) == str(student)


def test_recurrent_layers_and_lone_batch_norms_of_a_teacher_do_not_train() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = m.lstm(m.norm(x.transpose(1, 2)).transpose(1, 2))[0]
        return m.head(hidden[:, -1])

    def make() -> Program:
        norm = nn.BatchNorm1d(6)
        norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
        lstm = nn.LSTM(6, 7, num_layers=2, dropout=0.5, batch_first=True)
        return program_of(forward, x, dynamic="batch", norm=norm, lstm=lstm, head=nn.Linear(7, 3))

    x = torch.randn(4, 5, 6)
    student, teacher = make(), make()
    joint = AttachTeacher(teacher, Squares())(student).train()
    torch.testing.assert_close(joint.module(x)[1], teacher(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(joint.module(x)[1], joint.module(x)[1])


def test_linears_of_a_teacher_read_no_turned_values() -> None:
    """With a weight that is not trained, torch multiplies those as a batch of matrices, which is slower."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.second(self.first(x.transpose(0, 1)).permute(1, 0, 2))
            return y

    x = torch.randn(5, 2, 6)
    model = Turned().eval()
    teacher, student = capture(model, x), capture(Turned().eval(), x)
    joint = AttachTeacher(teacher, PairwiseSimilarity())(student)
    with torch.no_grad():
        torch.testing.assert_close(joint.module(x)[1], model(x))
    linears = [node for node in joint.graph.nodes if node.target is torch.ops.aten.linear.default]
    assert sorted(node.args[0].target.__name__ for node in linears) == [
        "clone.default", "clone.default", "permute.default", "transpose.int"
    ]  # fmt: skip
    assert format_program(DetachTeacher()(joint)) == format_program(student)


def test_the_joint_program_is_one_graph_to_compile() -> None:
    joint = AttachTeacher(network(16), Squares(), Squares())(network(8)).train()
    torch.manual_seed(1)
    expected = joint.module(IMAGE)
    torch.manual_seed(1)
    compiled = torch.compile(joint.module, fullgraph=True, backend="aot_eager")(IMAGE)
    for ours, theirs in zip(compiled, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_golden_attach_teacher(golden: Golden) -> None:
    teacher = network(32)
    student = pruned(teacher)
    golden(student, AttachTeacher(teacher, Squares(), {"relu": Squares(), ("mean", "relu_1"): Norms()})(student))


def _bad_teacher() -> Any:
    return nn.Linear(3, 3)


def _bad_loss() -> Any:
    return Squares


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AttachTeacher(_bad_teacher(), Squares()), r"Linear; give a Program"),
        (lambda: AttachTeacher(network(8)), "neither losses nor taps"),
        (lambda: AttachTeacher(lambda ids: ids, taps=Squares()), "Stored outputs have no values inside"),
        (lambda: AttachTeacher(network(8), _bad_loss())(network(8)), r"is no loss.*write Squares\(\)"),
        (
            lambda: AttachTeacher(network(8, classes=7), Squares())(network(8)),
            "one shape: take a teacher with the same",
        ),
        (lambda: AttachTeacher(network(8), {"scores": Squares()})(network(8)), "No output is named 'scores'.*output"),
        (
            lambda: AttachTeacher(network(8), taps={"relu_7": Squares()})(network(8)),
            "student has no node 'relu_7'.*relu",
        ),
        (
            lambda: AttachTeacher(network(8), taps={("relu", "xyz"): Squares()})(network(8)),
            "teacher has no node 'xyz' to tap",
        ),
        (lambda: AttachTeacher(network(8), taps={9: Squares()})(network(8)), "student has no stage 9; it has 2: relu"),
        (
            lambda: AttachTeacher(network(8), taps={("relu", "mean"): Squares()})(network(8)),
            r"Tap relu mean: the student's value is \[s\d+, 8, 8, 8\], the teacher's \[s\d+, 8\]",
        ),
        (
            lambda: AttachTeacher(program_of(lambda m, x: m.l(x), torch.ones(2, 3), l=nn.Linear(3, 5)), Squares())(
                network(8)
            ),
            "The teacher takes other inputs",
        ),
    ],
)
def test_what_cannot_be_attached_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PassError, match=f"(?s){message}"):
        make()


def test_a_joint_program_is_neither_saved_nor_exported(tmp_path: Path) -> None:
    joint = AttachTeacher(network(8), Squares())(network(8))
    with pytest.raises(ModelError, match="save the student"):
        joint.save(tmp_path / "joint.pt2")
    with pytest.raises(ExportError, match="export the student"):
        to_onnx(joint, tmp_path / "joint.onnx")
    assert not list(tmp_path.iterdir())
