"""DetachTeacher: the student alone, as it was before a teacher was attached."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit


@dataclass(frozen=True)
class DetachTeacher:
    """Drop all teachers, taps and projections from a joint Program, and give the student back.

    The graph is that of the student that AttachTeacher got, with the tensors that the joint Program has now. The
    history keeps no trace of AttachTeacher: the student computes what it does by itself. A Program without taps is
    returned as it is.
    """

    def __call__(self, program: Program) -> Program:
        """Return the student."""
        if not program.taps:
            return program
        inner = program.out_spec.child(0)
        edit = Edit(program, by=None)
        output = edit.graph.output_node()
        values = output.args[0]
        assert isinstance(values, tuple)
        output.args = (values[: inner.num_leaves],)
        student = edit.finish(outputs=program.outputs[: inner.num_leaves], out_spec=inner, taps=())
        return replace(student, history=tuple(entry for entry in student.history if not _attaches(entry)))


def _attaches(entry: str) -> bool:
    return entry.startswith("AttachTeacher(")
