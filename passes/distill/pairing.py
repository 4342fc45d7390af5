"""Which values of a student are compared with which of its teacher."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from fxopt.errors import PassError
from fxopt.graph.cuts import count_layers, stage_values
from fxopt.graph.program import Program
from fxopt.graph.taps import Loss
from fxopt.passes.distill.detach_teacher import DetachTeacher
from fxopt.passes.prune.ancestor import Counterpart, counterparts

MOST = 6  # pairs that are found without help: each is one more value to keep and to compare

Name = str | int
Key = Name | tuple[Name, Name]
Losses = Loss | Sequence[Loss]


@dataclass(frozen=True)
class Pair:
    """A value of the student and one of the teacher.

    - `name`: for logs. `loss`: what compares the two.
    - `left`: the positions of the teacher's value that the student still has, by dimension.
    """

    name: str
    loss: Loss
    student: fx.Node
    teacher: fx.Node
    left: Mapping[int, Tensor] = field(default_factory=dict)


def stages(program: Program) -> tuple[str, ...]:
    """Name the values between the parts of a network: the ends of residual blocks, or of the layers of a chain."""
    return tuple(node.name for node in stage_values(program))


def output_losses(program: Program, losses: Losses | Mapping[str, Losses]) -> list[tuple[int, Loss]]:
    """Return each loss on outputs with the position of the output; of unnamed ones, the first output.

    Raises PassError for a name that no output has.
    """
    names = [spec.name if spec is not None else None for spec in program.outputs]
    if isinstance(losses, Mapping):
        for name in losses:
            if name not in names:
                raise PassError(f"No output is named '{name}'. There are: {', '.join(filter(None, names))}.")
        return [(names.index(name), loss) for name, some in losses.items() for loss in listed(some)]
    first = next(number for number, name in enumerate(names) if name is not None)
    return [(first, loss) for loss in listed(losses)]


def listed(losses: Losses) -> Sequence[Loss]:
    """Return one or more losses as a sequence. Raises PassError for what is no loss."""
    result = losses if isinstance(losses, Sequence) else [losses]
    given: Sequence[object] = result
    for loss in given:
        if isinstance(loss, type) or not callable(loss):
            hint = f"; write {loss.__name__}()" if isinstance(loss, type) else ""
            raise PassError(f"{loss!r} is no loss, such as KLDivergence(temperature=4.0){hint}.")
    return result


def output_pairs(student: Program, teacher: Program, losses: Losses | Mapping[str, Losses]) -> list[Pair]:
    """Pair the outputs. Raises PassError if the teacher takes other inputs, or has outputs of another shape."""
    _check_inputs(student, teacher)
    return [_output_pair(student, teacher, position, loss) for position, loss in output_losses(student, losses)]


def _output_pair(student: Program, teacher: Program, position: int, loss: Loss) -> Pair:
    """Pair an output with the teacher's of that name, else with that in its place if both give as many."""
    spec = student.outputs[position]
    assert spec is not None
    names = [other.name if other is not None else None for other in teacher.outputs]
    place = names.index(spec.name) if spec.name in names else position
    other = teacher.outputs[place] if place < len(names) else None
    if other is None or (spec.name not in names and len(names) != len(student.outputs)):
        raise PassError(f"The teacher has no output '{spec.name}'; it has {', '.join(map(str, teacher.outputs))}.")
    if other.shape != spec.shape and not takes_any_width(loss):
        raise PassError(
            f"The student gives {spec}, the teacher {other}. {type(loss).__name__} compares outputs of one shape: "
            "take a teacher with the same classes, or tap values before the last layer: AttachTeacher(taps=...)."
        )
    return Pair(spec.name, loss, _output(student, position), _output(teacher, place))


def _output(program: Program, position: int) -> fx.Node:
    values = program.output_node.args[0]
    assert isinstance(values, tuple)
    node = values[position]
    assert isinstance(node, fx.Node)
    return node


def takes_any_width(loss: Loss) -> bool:
    """Say whether a loss compares values of different widths as they are."""
    return bool(getattr(loss, "any_width", False))


def _check_inputs(student: Program, teacher: Program) -> None:
    theirs, ours = ([(spec.dtype, spec.shape) for spec in program.inputs] for program in (teacher, student))
    if theirs != ours:
        raise PassError(
            "The teacher takes other inputs than the student.\n"
            f"  student: {', '.join(map(str, student.inputs))}\n  teacher: {', '.join(map(str, teacher.inputs))}\n"
            "Capture both with the same example inputs and the same names of dynamic dimensions."
        )


def tapped_pairs(student: Program, teacher: Program, taps: Losses | Mapping[Key, Losses]) -> list[Pair]:
    """Pair values inside, as AttachTeacher(taps=...) says. Raises PassError for names and numbers that do not exist."""
    descent = _descent(student, teacher)
    find = (_Finder(student, "student"), _Finder(teacher, "teacher"))
    if isinstance(taps, Mapping):
        pairs = [(ends, some) for key, some in taps.items() for ends in [_ends(key, *find)]]
    elif listed(taps):
        pairs = [(ends, taps) for ends in _thinned(list(_found(*find, descent)))]
    else:
        return []
    return [_pair(ends, loss, descent) for ends, some in pairs for loss in listed(some)]


def _pair(ends: tuple[fx.Node, fx.Node], loss: Loss, descent: Mapping[str, Counterpart]) -> Pair:
    student, teacher = ends
    source = descent.get(student.name)
    left = source.left if source is not None and source.node is teacher else {}
    name = student.name if student.name == teacher.name else f"{student.name} {teacher.name}"
    return Pair(name, loss, student, teacher, left)


def _descent(joint: Program, teacher: Program) -> dict[str, Counterpart]:
    """Return the teacher's nodes of which the student's were made, by name; none if it was not made of the teacher.

    A network of the same class has the same names, too, for other values: passes leave a history, and all layers.
    """
    student = DetachTeacher()(joint)
    if len(student.history) == len(teacher.history) or count_layers(student) != count_layers(teacher):
        return {}
    try:
        found = counterparts(teacher, student)
    except PassError:
        return {}
    return {node.name: source for node, source in found.items()}


def _ends(key: Key, student: _Finder, teacher: _Finder) -> tuple[fx.Node, fx.Node]:
    """Find the two values that a key of `taps` means."""
    if isinstance(key, tuple):
        return student(key[0]), teacher(key[1])
    value = student(key)
    if isinstance(key, str):
        return value, teacher(key)
    return value, teacher.stages[_as_far(student.stages.index(value), len(student.stages), len(teacher.stages))]


class _Finder:
    """Finds values of a Program by the name of their node or the number of their stage."""

    def __init__(self, program: Program, side: str) -> None:
        self.nodes = {node.name: node for node in program.graph.nodes if node.op == "call_function"}
        self.stages = stage_values(program)
        self.side = side

    def __call__(self, name: Name) -> fx.Node:
        """Return the node. Raises PassError where there is none, or no floating-point tensor."""
        if isinstance(name, int):
            if not -len(self.stages) <= name < len(self.stages):
                names = ", ".join(node.name for node in self.stages)
                raise PassError(f"The {self.side} has no stage {name}; it has {len(self.stages)}: {names or 'none'}.")
            return self.stages[name]
        node: fx.Node | None = self.nodes.get(name)
        if node is None:
            near = difflib.get_close_matches(str(name), self.nodes, 5)
            hint = f"Near are {', '.join(near)}." if near else "print(program.graph) lists the nodes."
            raise PassError(f"The {self.side} has no node '{name}' to tap. {hint}")
        value: Any = node.meta["val"]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise PassError(f"Node '{name}' of the {self.side} is no floating-point tensor to tap.")
        return node


def _found(student: _Finder, teacher: _Finder, descent: Mapping[str, Counterpart]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Pair the student's stages: with the nodes that they were made of, or with the teacher's stages that are as far.

    Raises PassError if one of the two has no stages.
    """
    for finder in (student, teacher):
        if not finder.stages:
            raise PassError(f"The {finder.side} has no value that all of it passes through; name the taps.")
    for number, node in enumerate(student.stages):
        if descent:
            if node.name in descent:
                yield node, descent[node.name].node
        else:
            yield node, teacher.stages[_as_far(number, len(student.stages), len(teacher.stages))]


def _as_far(number: int, of: int, among: int) -> int:
    """Return the position that is as far among so many: the first goes with the first, the last with the last."""
    return among - 1 if of == 1 else round(number * (among - 1) / (of - 1))


def _thinned(pairs: list[Any]) -> list[Any]:
    """Take at most MOST, evenly spread, with the last."""
    count = min(MOST, len(pairs))
    return [pairs[(step + 1) * len(pairs) // count - 1] for step in range(count)]
