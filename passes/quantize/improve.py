"""What makes a float Program easier to quantize is kept only where it takes noise out of the quantized outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from fxopt.graph.interpret import relative_noise
from fxopt.graph.memory import release_memory
from fxopt.graph.padding import run_without_padding
from fxopt.graph.pipeline import Pass
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit

WORTH_IT = 0.95  # what must be left of the outputs' noise at most

Trial = Callable[[Program], Program]


def improve(
    program: Program, alternatives: Sequence[Pass], quantize: Trial, items: Sequence[tuple[Tensor, ...]]
) -> Program:
    """Apply the one of some float-to-float passes that takes most noise out of the quantized outputs, if one does.

    - `alternatives`: the cheaper at run time come first; a later one must be worth it beside them.
    - `quantize`: makes a Program that runs in torch as the quantized one will, for a trial.
    - `items`: the tensor inputs that the noise is measured on. Padding does not count.

    What was tried and left out is in the notes of the result, if nothing is kept. The pass that is kept runs twice:
    each result can hold all weights once more, and two of them are never in memory.
    """
    exact = run_without_padding(program.eval(), items)

    def noise(step: Pass | None) -> float | None:
        candidate = step(program) if step is not None else program
        if step is not None and candidate is program:
            return None
        release_memory()
        quantized = quantize(candidate).eval()
        del candidate  # it may hold all weights once more
        release_memory()
        result = relative_noise(exact, run_without_padding(quantized, items))
        del quantized
        release_memory()
        return result

    least: float | None = None
    best: Pass | None = None
    dropped = []
    for step in alternatives:
        found = noise(step)
        if found is None:
            continue
        least = noise(None) if least is None else least
        assert least is not None
        if found < WORTH_IT * least:
            best, least = step, found
        else:
            dropped.append(type(step).__name__)
    return _noted(program, dropped) if best is None else best(program)


def _noted(program: Program, dropped: Sequence[str]) -> Program:
    if not dropped:
        return program
    edit = Edit(program, by=None)
    for name in dropped:
        edit.note(f"{name} does not bring the quantized outputs nearer to the float ones; it is left out.")
    return edit.finish()
