"""Calls and tensors that no output depends on are dropped."""

from __future__ import annotations

from dataclasses import dataclass

from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit


@dataclass(frozen=True)
class EliminateDeadCode:
    """Drop what no output needs.

    1. A call without users, and then the calls that only it used.
    2. A tensor of the module that no node reads.
    Kept:
    3. The inputs, used or not: they are part of the signature.
    """

    def __call__(self, program: Program) -> Program:
        """Return the smaller Program, or `program` itself if everything in it is needed."""
        if _has_dead_node(program) or _has_unread_tensor(program):
            return Edit(program, by=self).finish()
        return program


def _has_dead_node(program: Program) -> bool:
    return any(not node.users and node.op not in ("placeholder", "output") for node in program.graph.nodes)


def _has_unread_tensor(program: Program) -> bool:
    read = {str(node.target) for node in program.graph.find_nodes(op="get_attr")}
    module = program.module
    held = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    held += [name for name, _ in module.named_buffers(remove_duplicate=False)]
    # A node that reads a submodule, the body of a higher-order op, reads all its tensors.
    return any(name not in read and not any(name.startswith(f"{prefix}.") for prefix in read) for name in held)
