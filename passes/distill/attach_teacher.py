"""AttachTeacher: a frozen teacher joins the graph of its student, and the values to compare become extra outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx, nn
from torch.utils import _pytree as pytree

from fxopt.errors import PassError
from fxopt.graph.lift import spec_of
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.graph.taps import StoredValues, Tap
from fxopt.passes.distill.join import join
from fxopt.passes.distill.pairing import Key, Losses, Pair, output_losses, output_pairs, takes_any_width, tapped_pairs
from fxopt.passes.distill.projection import projected, selected


@dataclass(frozen=True)
class AttachTeacher:
    """Join a student and a frozen teacher into one Program whose extra outputs are the taps.

    - `teacher`: a Program with the inputs of the student, or StoredOutputs of one, which go with `losses` only.
    - `losses`: what compares the outputs: one or more losses on the first output of both (the logits), or a mapping
      from the names of outputs to losses.
    - `taps`: what compares values inside. A mapping from the name of a node of the student, or from its number among
      passes.stages(student) (-1 is the last), or from a pair (of the student, of the teacher) of those, to one or more
      losses. A single name stands for the nodes of that name in both; a single number for the stage that is as far in
      the teacher. One or more losses without a mapping compare up to 6 pairs of stages, found without help.

    1. A node of a student that passes made of this teacher pairs with the node of the same name. Where channels were
       removed, only those that are left are taken of the teacher's value (Program.kept): no regressor is needed.
    2. Where two values differ in the size of one dimension, a linear map along it, which is trained too, takes the
       student's to the teacher's: the regressor of Romero et al. 2015, "FitNets". Losses that compare values of any
       width (`any_width`) get them as they are.
    3. The teacher is in inference mode for good, with its batch norms folded, and nothing of it is trained.
    4. Called like the student, the result is (that of the student, (tapped values, ...)). Attach again to have
       several teachers. DetachTeacher() gives the student back; fxopt.train() knows what to do with the taps.

    Raises PassError for a teacher with other inputs or classes, for a name that does not exist, and for values that
    differ in more than one dimension.
    """

    teacher: Program | StoredValues = field(repr=False)
    losses: Losses | Mapping[str, Losses] = ()
    taps: Losses | Mapping[Key, Losses] = ()

    def __post_init__(self) -> None:
        given: object = self.teacher
        if not isinstance(given, (Program, StoredValues)) or isinstance(given, nn.Module):
            kind = type(given).__name__
            raise PassError(f"The teacher is a {kind}; give a Program: fxopt.capture(model, example_inputs).")
        if not self.losses and not self.taps:
            raise PassError("AttachTeacher has neither losses nor taps; give at least one, such as KLDivergence().")
        if self.taps and not isinstance(self.teacher, Program):
            raise PassError("Stored outputs have no values inside to tap; give losses only, or the teacher's Program.")

    def __call__(self, program: Program) -> Program:
        """Return the joint Program."""
        if not isinstance(self.teacher, Program):
            return self._with_stored(program, self.teacher)
        pairs = (*output_pairs(program, self.teacher, self.losses), *tapped_pairs(program, self.teacher, self.taps))
        edit = Edit(program, by=self)
        teacher = join(edit, self.teacher, [pair.teacher for pair in pairs])
        values, taps = _outputs(edit), list(program.taps)
        for pair in pairs:
            taps.append(_attached(edit, pair, teacher[pair.teacher], values, taps))
        return _joint(edit, values, tuple(taps))

    def _with_stored(self, program: Program, teacher: StoredValues) -> Program:
        taps = list(program.taps)
        for position, loss in output_losses(program, self.losses):
            spec = program.outputs[position]
            assert spec is not None
            taps.append(Tap(_unique(f"{type(loss).__name__} {spec.name}", taps), loss, position, teacher))
        edit = Edit(program, by=self)
        return _joint(edit, _outputs(edit), tuple(taps))


def _outputs(edit: Edit) -> list[fx.Node]:
    return list(edit.graph.output_node().args[0])  # type: ignore[arg-type]


def _attached(edit: Edit, pair: Pair, teacher: fx.Node, values: list[fx.Node], taps: Sequence[Tap]) -> Tap:
    """Make outputs of both values of a pair, unless they are."""
    name = _unique(f"{type(pair.loss).__name__} {pair.name}", taps)
    teacher = selected(edit, teacher, pair.left)
    student = edit.copies[pair.student]
    if not takes_any_width(pair.loss):
        student = projected(edit, student, teacher, pair.name)
    for value in (student, teacher):
        if value not in values:
            values.append(value)
    return Tap(name, pair.loss, values.index(student), values.index(teacher))


def _unique(name: str, taps: Sequence[Tap]) -> str:
    taken = {tap.name for tap in taps}
    return next(each for each in (name, *(f"{name} {number}" for number in range(2, 99))) if each not in taken)


def _joint(edit: Edit, values: Sequence[fx.Node], taps: tuple[Tap, ...]) -> Program:
    """Close the edit with these outputs: those of the student, and the tapped ones."""
    program = edit.program
    inner = program.out_spec.child(0) if program.taps else program.out_spec
    extra = values[len(program.outputs) :]
    edit.graph.output_node().args = (tuple(values),)
    specs = [spec_of(f"tap_{node.name}", node.meta["val"], program.dims) for node in extra]
    tapped = pytree.tree_structure(tuple(range(len(values) - inner.num_leaves)))
    spec = pytree.TreeSpec(tuple, None, [inner, tapped])
    return edit.finish(outputs=(*program.outputs, *specs), out_spec=spec, taps=taps)
