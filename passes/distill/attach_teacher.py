"""AttachTeacher: a frozen teacher joins the graph of its student, and the values to compare become extra outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from fxopt.errors import PassError
from fxopt.graph.lift import spec_of
from fxopt.graph.program import Program, TensorSpec
from fxopt.graph.rewrite import Edit
from fxopt.graph.taps import Loss, StoredValues, Tap
from fxopt.passes.distill.join import Joined, join
from fxopt.passes.distill.pairing import Key, Pair, output_pairs, tapped_pairs
from fxopt.passes.distill.projection import projected
from torch.utils import _pytree as pytree

Losses = Loss | Sequence[Loss]


@dataclass(frozen=True)
class AttachTeacher:
    """Join a student and a frozen teacher into one Program whose extra outputs are the taps.

    - `teacher`: a Program with the inputs of the student, or StoredOutputs of one, which takes `losses` only.
    - `losses`: what compares the outputs: one or more losses on the first output of both (the logits), or a mapping
      from the names of outputs to losses.
    - `taps`: what compares values inside. A mapping from the name of a node of the student, or from its number among
      fxopt.passes.stages(student) (-1 is the last), or from a pair (of the student, of the teacher) of those, to one or
      more losses. A single name stands for the same node of both; a single number for the stage that is as far in the
      teacher. One loss, or more without names: they compare up to 6 pairs of stages, found without help.

    1. A node of a student that passes made of this teacher pairs with the node of the same name. Where channels were
       removed, only those that are left are taken of the teacher's value (Program.kept): no regressor is needed.
    2. Where two values differ in the size of one dimension, a linear map along it, which is trained too, takes the
       student's to the teacher's (the regressor of FitNets, Romero et al. 2015). A loss may say that it needs none.
    3. The teacher is in inference mode for good, its batch norms are folded, and nothing of it is trained.
    4. Called like the student, the result is (that of the student, (tapped values, ...)). Attach again to have
       several teachers. DetachTeacher() gives the student back; fxopt.train() knows what to do with the taps.

    Raises PassError for a teacher with other inputs or classes, for a name that does not exist, and for values that
    differ in more than one dimension.
    """

    teacher: Program | StoredValues = field(repr=False)
    losses: Losses | Mapping[str, Losses] = ()
    taps: Losses | Mapping[Key, Losses] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, Program) and not (
            callable(self.teacher) and not hasattr(self.teacher, "state_dict")
        ):
            raise PassError(
                f"The teacher is a {type(self.teacher).__name__}; give a Program, fxopt.capture(model, example_inputs)."
            )
        if not self.losses and not self.taps:
            raise PassError("AttachTeacher has neither losses nor taps; give at least one, such as KLDivergence().")
        if self.taps and not isinstance(self.teacher, Program):
            raise PassError("Stored outputs have no values inside to tap; give losses only, or the teacher's Program.")

    def __call__(self, program: Program) -> Program:
        """Return the joint Program."""
        outputs = output_pairs(program, self.teacher, self.losses)
        if not isinstance(self.teacher, Program):
            taps = [Tap(_name(pair, program.taps), loss, pair.student, self.teacher) for pair, loss in outputs]
            return _with_taps(program, Edit(program, by=self), [], taps)
        inside = tapped_pairs(program, self.teacher, self.taps)
        edit = Edit(program, by=self)
        joined = join(edit, self.teacher, [pair.teacher for pair, _ in (*outputs, *inside)])
        return _tapped(program, edit, joined, [*outputs, *inside])


def _tapped(program: Program, edit: Edit, joined: Joined, pairs: Sequence[tuple[Pair, Loss]]) -> Program:
    """Make outputs of both values of each pair, each value once."""
    first = len(program.outputs)
    extra: dict[fx.Node, str] = {}
    taps = list[Tap]()
    for pair, loss in pairs:
        name = _name(pair, (*program.taps, *taps))
        student, teacher = _values(edit, joined, pair, loss, name)
        positions = []
        for side, node in (("student", student), ("teacher", teacher)):
            extra.setdefault(node, f"{name}_{side}")
            positions.append(first + list(extra).index(node))
        taps.append(Tap(name, loss, *positions))
    return _with_taps(program, edit, list(extra.items()), taps)
