"""Every row of CHANNEL_RULES: its groups are those expected, and half of their units can go."""

from __future__ import annotations

import functools

import pytest

from fxopt.graph.program import Program
from fxopt.passes.prune.groups import channel_groups
from fxopt.passes.prune.rules import CHANNEL_RULES
from tests.passes.prune.cases_product import PRODUCT_CASES
from tests.passes.prune.cases_shape import SHAPE_CASES
from tests.passes.prune.cases_value import VALUE_CASES
from tests.passes.prune.checks import Case, check_removal, widths_of

CASES: dict[str, Case] = {**PRODUCT_CASES, **SHAPE_CASES, **VALUE_CASES}


@functools.cache
def program_of(name: str) -> Program:
    return CASES[name].program()


@pytest.mark.parametrize("name", CASES)
def test_units_can_go(name: str) -> None:
    case, program = CASES[name], program_of(name)
    groups = channel_groups(program)
    assert groups.unknown == {}
    assert widths_of(groups) == case.widths
    check_removal(program, case.inputs, case.exact)


def test_every_row_has_a_case() -> None:
    used = {node.target for name in CASES for node in program_of(name).graph.nodes}
    assert sorted(str(op) for op in CHANNEL_RULES if op not in used) == []
