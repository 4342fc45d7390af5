"""InsertObservers: the first of the three passes of static quantization. It decides what is quantized, and where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import fx

from fxopt.graph.ops import observe
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from fxopt.passes.quantize.nodes import insert
from fxopt.passes.quantize.placement import WEIGHTED, Placement, place, reasons_of
from fxopt.target import find_target

SHOWN = 6


@dataclass(frozen=True)
class InsertObservers:
    """Put an `observe` node on every value and weight that becomes integer on the target.

    - `target`: the name of a row of fxopt.target.TARGETS, or "auto" for this machine.
    - `keep_float`: names of nodes that stay float, or {name: reason}.

    An observe node carries the name of its group; values of one group will share a scale. What stays float, and why,
    goes into the notes of the result. Fold batch norms first: a convolution is quantized with what follows it.
    """

    target: str = "x86"
    keep_float: Mapping[str, str] | Collection[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))

    def __call__(self, program: Program) -> Program:
        """Return the Program with observers. Raises TargetError or PassError for a name that does not exist."""
        placement = place(program, find_target(self.target), self.keep_float)
        edit = Edit(program, by=self)
        nodes = {node.name: node for node in edit.graph.nodes}
        for point in placement.points.values():
            value = nodes[point.value]
            readers = list(value.users) if point.readers is None else [nodes[name] for name in point.readers]
            observed = insert(
                edit, observe, value, point.group,
                before=_after(value), name=f"{value.name}_observed", value=value.meta["val"], like=value,
            )  # fmt: skip
            for reader in readers:
                reader.replace_input_with(value, observed)
        _observe_weights(edit, placement, nodes)
        for note in describe_float(placement.float_reasons):
            edit.note(note)
        return edit.finish()


def _after(node: fx.Node) -> fx.Node:
    """Return where to insert what reads a node; placeholders stay together at the start of the graph."""
    following = node.next
    while node.op == "placeholder" and following.op in ("placeholder", "get_attr"):
        following = following.next
    return following


def _observe_weights(edit: Edit, placement: Placement, nodes: Mapping[str, fx.Node]) -> None:
    observed: dict[fx.Node, fx.Node] = {}
    for name, role in placement.integer.items():
        if role not in WEIGHTED:
            continue
        node = nodes[name]
        weight = node.args[1]
        assert isinstance(weight, fx.Node)
        if weight not in observed:
            observed[weight] = insert(
                edit, observe, weight, str(weight.target),
                before=weight.next, name=f"{weight.name}_observed", value=weight.meta["val"], like=node,
            )  # fmt: skip
        node.update_arg(1, observed[weight])


def describe_float(reasons: Mapping[str, str]) -> list[str]:
    """Describe in one line a reason which nodes stay float."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        by_reason[reason].append(name)
    lines = []
    for reason, names in by_reason.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lines.append(f"Float: {', '.join(names[:SHOWN])}{more}: {reason}.")
    return lines
