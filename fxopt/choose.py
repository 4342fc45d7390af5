"""The choice among candidates: every way of quantizing is timed against float, and the best one is taken.

Not slower than float and of use at all come first, then speed, and of what is about equally fast the most exact is the
best, or the fastest of those that are about equally exact too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fxopt.export.measure import Measurement, race
from fxopt.export.session import Session
from fxopt.graph.memory import return_free_memory
from fxopt.graph.padding import real_positions, without_padding

FLOAT = "float"
NOISE = 1.03  # times of one file differ by so much from run to run
MARGIN = 1.10  # what is faster by less gives way to what is more exact
USABLE = 10.0  # dB: with less, noise has more than a tenth of the power of the outputs
ALIKE = 1.0  # dB between outputs that are equally exact: a few samples tell no more
SECONDS, LOADS = 2.0, 3  # of timing a candidate; where a load puts its buffers moves the times of all of its runs
SAMPLES, AT_ONCE = 8, 2  # compared in all, and run at once: several runtimes are in memory beside their values


@dataclass(frozen=True)
class Candidate:
    """One way to compile the model.

    - `latency`: its time in turn with the float model's, of the middle one of LOADS loads of both files.
    - `sqnr`: of its outputs against the float model's, in dB, over the first SAMPLES calibration samples without their
      padding, the worst output counting. `figure`: what max_drop bounds, see limits.Drop.
    """

    name: str
    latency: Measurement
    sqnr: float
    figure: float | None = None

    @property
    def speedup(self) -> float:
        """How many times faster than float."""
        return self.latency.speedup or 1.0


def choose(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the best candidate, or None if float is better than all of them."""
    fit = [candidate for candidate in candidates if candidate.speedup * NOISE >= 1 and candidate.sqnr >= USABLE]
    if not fit:
        return None
    fastest = max(candidate.speedup for candidate in fit)
    near = [candidate for candidate in fit if candidate.speedup * MARGIN >= fastest]
    most_exact = max(candidate.sqnr for candidate in near)
    exact = [candidate for candidate in near if candidate.sqnr + ALIKE >= most_exact]
    return max(exact, key=lambda candidate: candidate.speedup)


def try_candidates(
    files: Mapping[str, Path],
    baseline: Path,
    inputs: tuple[Tensor, ...],
    samples: Sequence[tuple[Tensor, ...]],
    settings: Mapping[str, str],
) -> list[Candidate]:
    """Time each file in turn with the baseline, and compare its outputs with the baseline's on the samples.

    Two runtimes are in memory at a time, each with all weights, beside those of the Programs.
    """
    expected = _outputs(baseline, samples, {})
    found = []
    for name, path in files.items():
        heats = [_heat(path, baseline, inputs, settings) for _ in range(LOADS)]
        latency = sorted(heats, key=lambda heat: heat.speedup or 1.0)[LOADS // 2]
        outputs = _outputs(path, samples, settings)
        found.append(Candidate(name, latency, worst_sqnr(zip(expected, outputs, strict=True))))
    return found


def _heat(path: Path, baseline: Path, inputs: tuple[Tensor, ...], settings: Mapping[str, str]) -> Measurement:
    """Load a file and the baseline and time them in turn."""
    session = Session(path, settings=settings)
    reference = Session(baseline)  # last: the other one takes several times its weights to load
    latency = race([reference, session], inputs, SECONDS / LOADS)[-1]
    del session, reference
    return_free_memory()
    return latency


def _outputs(path: Path, samples: Sequence[tuple[Tensor, ...]], settings: Mapping[str, str]) -> list[list[Tensor]]:
    """Load a file and run it on the samples."""
    session = Session(path, settings=settings)
    outputs = [real_outputs(session, item) for item in samples]
    del session
    return_free_memory()
    return outputs


def real_outputs(session: Session, item: Sequence[Tensor]) -> list[Tensor]:
    """Run a session and return the real positions of its outputs."""
    real = real_positions(session.inputs, item)
    return [without_padding(value, real) for value in session(*item)]


def worst_sqnr(pairs: Iterable[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> float:
    """Return the least SQNR over outputs, in dB, each over all pairs of (expected, actual) outputs at once."""
    power: dict[int, float] = {}
    noise: dict[int, float] = {}
    for left, right in pairs:
        for place, (reference, value) in enumerate(zip(left, right, strict=True)):
            if reference.is_floating_point():
                power[place] = power.get(place, 0.0) + float(reference.double().square().sum())
                noise[place] = noise.get(place, 0.0) + float((reference.double() - value.double()).square().sum())
    ratios = [power[place] / noise[place] if noise[place] else math.inf for place in power]
    return min((10 * math.log10(ratio) if ratio > 0 else -math.inf for ratio in ratios), default=math.inf)


def fast_but_inexact(candidates: Sequence[Candidate]) -> bool:
    """Say whether a candidate that is too inexact is so fast that a more exact one may still be worth it."""
    return any(candidate.speedup >= MARGIN and candidate.sqnr < USABLE for candidate in candidates)


def why_float(candidates: Sequence[Candidate]) -> str:
    """Say what all candidates lack."""
    if any(candidate.speedup * NOISE >= 1 for candidate in candidates):
        return f"none is as fast as float with outputs of {USABLE:.0f} dB or more"
    return "none is as fast as float on this machine"


def explain(candidates: Sequence[Candidate], chosen: Candidate | None) -> list[str]:
    """Say in a note what was tried and why the choice fell as it did; nothing if nothing was tried."""
    if not candidates:
        return []
    tried = "; ".join(f"{c.name} {c.speedup:.2f}x as fast as float, {c.sqnr:.1f} dB" for c in candidates)
    others = [c for c in candidates if c is not chosen and c.sqnr >= USABLE]
    if chosen is None:
        end = "so a more exact one is searched" if fast_but_inexact(candidates) else "so the model stays float"
        reason = f"{why_float(candidates)}, {end}"
    elif all(c.speedup <= chosen.speedup for c in others):
        reason = f"{chosen.name} is the fastest" if others else f"{chosen.name} is not slower than float"
    else:
        reason = f"{chosen.name} is about as fast and about as exact as any"
    noise = "".join(f"; {c.name} is too inexact" for c in candidates if chosen is not None and c.sqnr < USABLE)
    return [f"Tried {tried}: {reason}{noise}."]
