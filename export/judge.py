"""How far a file may be from its Program, and when the Program's own rounding noise excuses a larger distance.

Deep networks can amplify a single rounding. Where the strict bound fails, the Program is asked how well it is defined
at all: it runs once more with its float nodes in float64, and what that changes is its rounding noise. A quantized
graph whose nodes are all integer kernels has none, so no excuse; the others never get past a floor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fxopt.export.compare import OutputError, compare_outputs
from fxopt.export.session import Level
from fxopt.export.sweep import Run, reference_outputs
from fxopt.graph.program import Program

MARGIN = 6.0  # dB: the file may be this much farther from the Program than the Program's own noise
# Without optimisations a quantized graph runs in float between its rounding points, and so is compared with the Program
# run that way. Sums that end near a rounding boundary may still fall to either side there, a whole step apart; how far
# the Program is from itself in exact integers tells what such steps amount to.
UNFUSED_SQNR = 20.0
FLOOR: dict[Level, float] = {"all": 20.0, "none": 3.0}  # dB; unrelated values score 0 dB
FLOAT_NOISE = 4.0  # a float file may differ by this many times the Program's own noise
FLOAT_FLOOR = 10.0  # but never by more than this many times the tolerance


@dataclass
class Judge:
    """The verdict on outputs: `tolerance` for float Programs (error over range), `sqnr` in dB for quantized ones."""

    program: Program
    is_quantized: bool
    tolerance: float
    sqnr: float
    notes: list[str] = field(default_factory=list)
    _noise: dict[str, list[OutputError] | None] = field(default_factory=dict)

    def accepts(self, result: OutputError, level: Level, run: Run, index: int) -> bool:
        """Say whether output number `index` of a run is as near to the Program's as it must be."""
        strict = self.sqnr if level == "all" else min(self.sqnr, UNFUSED_SQNR)
        if result.sqnr >= strict if self.is_quantized else result.relative <= self.tolerance:
            return True
        noise = self._noise_of(run)
        if noise is None:
            return False
        own = noise[index]
        if self.is_quantized:
            if level == "none":
                own = own.worse(compare_outputs([own.name], [run.outputs[index]], [run.unfused[index]])[0])
            accepted = result.sqnr >= max(min(FLOOR[level], strict), own.sqnr - MARGIN)
        else:
            accepted = result.relative <= min(FLOAT_FLOOR * self.tolerance, FLOAT_NOISE * own.relative)
        if accepted and level == "all":
            self.notes.append(
                f"{run.label}: output '{result.name}' differs from the Program by {_figures(result)}; float rounding "
                f"alone moves it by {_figures(own)}."
            )
        return accepted

    def _noise_of(self, run: Run) -> list[OutputError] | None:
        """Measure the rounding noise of a run; None where the Program does not run in float64."""
        if run.label not in self._noise:
            names = [spec.name for spec in self.program.outputs if spec is not None]
            try:
                precise = reference_outputs(self.program, run.inputs, precise=True)
            except Exception:  # an op without a float64 kernel: then the strict bound stands
                self._noise[run.label] = None
            else:
                self._noise[run.label] = compare_outputs(names, precise, run.outputs)
        return self._noise[run.label]


def _figures(result: OutputError) -> str:
    return f"{result.relative:.2g} of its range (SQNR {result.sqnr:.1f} dB)"
