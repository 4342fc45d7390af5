"""Pipeline: passes in a row, each verified, timed and blamed.

A Pass is any `Program -> Program`: a function, or a frozen dataclass with `__call__`. A Pipeline is one too. With
FXOPT_DEBUG=diff in the environment every pass prints what it changed, as a text diff.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fxopt.errors import CaptureError, DataError, FxoptError, ModelError, PassError, TargetError
from fxopt.graph.printer import diff
from fxopt.graph.program import Program
from fxopt.graph.verify import verify

Pass = Callable[[Program], Program]

# Errors about what the user handed in: they are not the pass's fault and are raised as they are.
USER_ERRORS = (CaptureError, DataError, ModelError, TargetError)


class Step(NamedTuple):
    """One pass that ran: what it got, what it made of it, and how long it took (verification not counted)."""

    by: Pass
    before: Program
    after: Program
    seconds: float

    @property
    def name(self) -> str:
        """The name of the pass, without its options."""
        return pass_name(self.by)


@dataclass(frozen=True)
class Pipeline:
    """Passes to run in order; `observe` is called with the Step after each.

    Raises PassError, naming the pass and those before it, if a pass fails or leaves an invalid Program; errors about
    the user's data, model or target pass through.
    """

    passes: Sequence[Pass]
    observe: Callable[[Step], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))
        for number, item in enumerate(self.passes):
            _check_is_pass(number, item)

    def __call__(self, program: Program) -> Program:
        """Run the passes; returns the Program after the last."""
        done: list[str] = []
        for by in self.passes:
            step = _run(by, program, done)
            if os.environ.get("FXOPT_DEBUG") == "diff":
                print(f"--- {_spell(by)}\n{diff(step.before, step.after) or 'no change'}", file=sys.stderr)
            if self.observe is not None:
                self.observe(step)
            program = step.after
            done.append(pass_name(by))
        return program


def _check_is_pass(number: int, item: object) -> None:
    if isinstance(item, type) or not callable(item):
        hint = f"; write {item.__name__}()" if isinstance(item, type) else ""
        raise PassError(f"Item {number} of the Pipeline is {item!r}, which is no pass (Program -> Program){hint}.")


def pass_name(by: Pass) -> str:
    """Return the name of a pass: the function's, or the class's of a configured pass."""
    return str(getattr(by, "__name__", type(by).__name__))


def _spell(by: Pass) -> str:
    """Spell a pass as the history does: a function by its name, a dataclass with its options."""
    return str(getattr(by, "__name__", None) or repr(by))


def _run(by: Pass, program: Program, done: list[str]) -> Step:
    start = time.perf_counter()
    try:
        result = by(program)
        seconds = time.perf_counter() - start
        if not isinstance(result, Program):
            raise PassError(f"it returned {type(result).__name__} instead of a Program")
        verify(result)
    except USER_ERRORS:
        raise
    except Exception as error:
        kind = "" if isinstance(error, FxoptError) else f"{type(error).__name__}: "
        after = f" after {', '.join(done)}" if done else ""
        raise PassError(f"The pass {_spell(by)} failed{after}: {kind}{error}") from error
    return Step(by, program, result, seconds)
