"""Names of tensors and modules that options of passes take: "layer1" stands for all tensors below it."""

from __future__ import annotations

from collections.abc import Iterable

from fxopt.errors import PassError
from fxopt.graph.program import Program

SHOWN = 8


def is_below(name: str, path: str) -> bool:
    """Say whether a tensor's name is this path, or lies under it."""
    return name == path or name.startswith(f"{path}.")


def check_names(program: Program, option: str, wanted: Iterable[str]) -> None:
    """Raise PassError for a name that is neither a tensor of the Program nor a module with one."""
    names = sorted({str(node.target) for node in program.graph.find_nodes(op="get_attr")})
    for path in wanted:
        if not any(is_below(name, path) for name in names):
            more = ", ..." if len(names) > SHOWN else ""
            listed = ", ".join(names[:SHOWN]) or "none"
            raise PassError(f"{option}: no tensor or module is named '{path}'. There are {listed}{more}")
