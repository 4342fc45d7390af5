"""How far a file may be from its Program, and when the Program's own rounding noise excuses a larger distance.

Deep networks can amplify a single rounding. Where the strict bound fails, the Program is asked how well it is defined
at all: it runs once more with its float nodes in float64. An output as near to that as the bound demands is good too.
What float64 and errors of the size of float32's change is the Program's rounding noise; the file may differ by about as
much, down to a floor. With optimisations, a graph of integer kernels alone has no such noise, so no excuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial, reduce

from torch import Tensor

from fxopt.export.compare import OutputError, compare_output, compare_outputs
from fxopt.export.session import Level
from fxopt.export.sweep import Run, reference_outputs
from fxopt.graph.program import Program

MARGIN = 6.0  # dB: the file may be this much farther from the Program than the Program's own noise
# Without optimisations a quantized graph runs in float between its rounding points, and so is compared with the Program
# run that way. Sums that end near a rounding boundary may still fall to either side there, a whole step apart; how far
# the Program is from itself in exact integers, or with floats of other last bits, tells what such steps amount to.
UNFUSED_SQNR = 20.0
FLOOR: dict[Level, float] = {"all": 12.0, "none": 3.0}  # dB; unrelated values score 0 dB
JITTER = 2.0**-22  # two units in the last place of float32: what approximations of exp and erf differ by
SHAKES = 4  # runs with such errors, at least: one alone may happen to change little
FLOAT_NOISE = 4.0  # a float file may differ by this many times the Program's own noise
FLOAT_FLOOR = 10.0  # but never by more than this many times the tolerance


@dataclass(frozen=True)
class _Precise:
    """What the runs give with float nodes in float64: the outputs of each run, and the worst noise of each output."""

    outputs: list[list[Tensor]]
    noise: list[OutputError]


@dataclass
class Judge:
    """The verdict on outputs: `tolerance` for float Programs (error over range), `sqnr` in dB for quantized ones."""

    program: Program
    is_quantized: bool
    tolerance: float
    sqnr: float
    runs: Sequence[Run]
    notes: list[str] = field(default_factory=list)

    def accepts(self, result: OutputError, value: Tensor, level: Level, run: Run, index: int) -> bool:
        """Say whether output number `index` of a run is near enough; `result` is its distance from the Program's."""
        if self._is_strictly_good(result, level):
            return True
        precise = self._precise if level == "all" else self._precise_unfused
        if precise is None:
            return False
        expected = precise.outputs[self.runs.index(run)][index]
        if self._is_strictly_good(compare_output(result.name, expected, value), level):
            return True
        own = precise.noise[index]
        if self.is_quantized:
            if level == "none":
                own = own.worse(self._unfused_noise(index))
            limit = max(min(FLOOR[level], self.sqnr), own.sqnr - MARGIN)
            accepted = result.sqnr >= limit
        else:
            accepted = result.relative <= min(FLOAT_FLOOR * self.tolerance, FLOAT_NOISE * own.relative)
        if accepted and level == "all":
            self.notes.append(
                f"{run.label}: output '{result.name}' differs from the Program by {_figures(result)}; float rounding "
                f"alone moves it by {_figures(own)}."
            )
        return accepted

    def _is_strictly_good(self, result: OutputError, level: Level) -> bool:
        if not self.is_quantized:
            return result.relative <= self.tolerance
        return result.sqnr >= (self.sqnr if level == "all" else min(self.sqnr, UNFUSED_SQNR))

    @cached_property
    def _precise(self) -> _Precise | None:
        return self._in_float64(fused=True)

    @cached_property
    def _precise_unfused(self) -> _Precise | None:
        return self._in_float64(fused=False) if self.is_quantized else self._precise

    def _in_float64(self, fused: bool) -> _Precise | None:
        """Run once more in float64; None where the Program does not run so.

        The noise is the worst of all runs: a rounding that falls to the other side is a rare event in a single one.
        """
        names = [spec.name for spec in self.program.outputs if spec is not None]
        run_again = partial(reference_outputs, self.program, precise=True, fused=fused)
        try:
            outputs = [run_again(run.inputs) for run in self.runs]
            again = [run for _ in range(-(-SHAKES // len(self.runs))) for run in self.runs]
            shaken = [run_again(run.inputs, jitter=JITTER, seed=seed) for seed, run in enumerate(again)]
        except RuntimeError:  # an op without a float64 kernel: then the strict bound stands
            return None
        pairs = zip([*outputs, *shaken], [*self.runs, *again], strict=True)
        noise = [compare_outputs(names, exact, run.outputs if fused else run.unfused) for exact, run in pairs]
        return _Precise(outputs, [reduce(OutputError.worse, of_output) for of_output in zip(*noise, strict=True)])

    def _unfused_noise(self, index: int) -> OutputError:
        pairs = ((run.outputs[index], run.unfused[index]) for run in self.runs)
        return reduce(OutputError.worse, (compare_output("", *pair) for pair in pairs))


def _figures(result: OutputError) -> str:
    return f"{result.relative:.2g} of its range (SQNR {result.sqnr:.1f} dB)"
