"""Rankings: which units compete with each other. Ranks take the place of scores, so that each class loses its share.

Units are removed in the order of their scores. Where the score of a unit is its rank among the units of its class,
relative to their number, all classes lose about the same share of their units, each its lowest ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.passes.prune.groups import Group
from fxopt.passes.prune.names import check_names, is_below
from fxopt.passes.prune.units import Floats, Integers, Units

Ranking = Literal["global", "local", "isomorphic"] | tuple[str, ...]


def ranked(units: Units, scores: Floats, ranking: Ranking) -> Floats:
    """Return scores in whose order units go, `[units]`; see RemoveChannels.

    Raises PassError for a ranking or a module that does not exist.
    """
    check_ranking(ranking)
    if ranking == "global":
        return scores
    result = scores.copy()
    for members in _classes(units, ranking):
        order = members[np.lexsort((members, scores[members]))]
        result[order] = np.arange(1, len(order) + 1) / len(order)
    return result


def check_ranking(ranking: Ranking) -> None:
    """Raise PassError for a ranking that does not exist."""
    if not isinstance(ranking, tuple) and ranking not in ("global", "local", "isomorphic"):
        raise PassError(f"ranking={ranking!r} must be 'global', 'local', 'isomorphic' or a tuple of module names.")


def _classes(units: Units, ranking: Ranking) -> list[Integers]:
    if ranking == "local":
        return list(units.members)
    if ranking == "isomorphic":
        keys: list[Hashable] = signatures(units.program, units.groups)
    else:
        check_names(units.program, "ranking", ranking)
        keys = [_scope(group, tuple(ranking)) for group in units.groups]
    classes: defaultdict[Hashable, list[Integers]] = defaultdict(list)
    for key, members in zip(keys, units.members, strict=True):
        classes[key].append(members)
    return [np.concatenate(several) for several in classes.values()]


def signatures(program: Program, groups: Sequence[Group]) -> list[Hashable]:
    """Return what is equal for groups of the same structure: the ops that read what they cut, as which argument.

    Fang et al. 2024, "Isomorphic Pruning for Vision Models": only such groups have comparable scores. Widths do not
    count, the number of positions that a unit takes does: an attention head is not like a position of every head.
    """
    roles = {
        str(node.target): sorted((str(user.target), user.all_input_nodes.index(node)) for user in node.users)
        for node in program.graph.find_nodes(op="get_attr")
    }
    return [tuple(sorted((str(roles[m.tensor]), m.dim, m.positions) for m in group.members)) for group in groups]


def _scope(group: Group, prefixes: tuple[str, ...]) -> str:
    """Return the longest prefix that holds what a group begins with; all that none holds is a scope, too."""
    name = group.members[0].tensor
    return max((prefix for prefix in prefixes if is_below(name, prefix)), key=len, default="")
