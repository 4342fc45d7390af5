"""What of a Program can be removed, for the command line: groups, what stays and why, and how far one can go."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fxopt.graph.cost import batch_of_example
from fxopt.graph.program import Program
from fxopt.passes.prune import channel_groups
from fxopt.passes.prune.groups import Frozen, Group
from fxopt.passes.prune.reachable import reachable

NODE = re.compile(r" \(node '[^']*'(?:, (?P<op>[^)]*))?\)")  # reasons name the node that they come from


def channel_report(program: Program) -> dict[str, Any]:
    """Return what can be removed of a Program as plain data.

    - `groups`: in the order of the graph: name, units, what a unit takes ("tensor[dimension]": positions), and whether
      some op averages over it.
    - `stays`: dimensions of which positions never go, by reason; `no_rule`: nodes whose op no rule covers, by reason.
    - `reachable`: the least that can be left and all of it, of multiply-accumulates a sample and parameters.
    """
    found = channel_groups(program)
    samples = {"macs": batch_of_example(program)}
    return {
        "groups": [_group(group) for group in found.groups],
        "stays": [
            {"reason": reason, "dimensions": names} for reason, names in _by_reason(map(_dimension, found.frozen))
        ],
        "no_rule": [
            {"reason": reason, "nodes": names}
            for reason, names in _by_reason((reason, node) for node, reason in found.unknown.items())
        ],
        "reachable": {
            name: {"least": amount.least // samples.get(name, 1), "whole": amount.whole // samples.get(name, 1)}
            for name, amount in reachable(found).items()
        },
    }


def _group(group: Group) -> dict[str, Any]:
    members = {f"{member.tensor}[{member.dim}]": member.positions for member in group.members}
    return {"name": group.name, "units": len(group.units), "members": members, "inexact": group.inexact}


def _dimension(frozen: Frozen) -> tuple[str, str]:
    reason = NODE.sub(lambda match: f" ({match['op']})" if match["op"] else "", frozen.reason)
    return reason, f"{frozen.tensor}[{frozen.dim}]"


def _by_reason(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Gather names by reason, the most frequent reason first."""
    found: dict[str, list[str]] = {}
    for reason, name in pairs:
        found.setdefault(reason, []).append(name)
    return sorted(found.items(), key=lambda item: -len(item[1]))
