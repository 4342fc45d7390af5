"""What a result may cost: the options max_drop and max_latency, read from what the user wrote."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from fxopt.errors import ModelError

Measure = Literal["metric", "sqnr", "kl", "agreement"]
DROP_FORM = (
    "write a number (what the metric of `evaluate` may lose), or, without labels, 'sqnr=30' (dB, at least), 'kl=0.01' "
    "(nats, at most) or 'agreement=0.99' (share of equal argmax, at least)"
)
LATENCY_FORM = "write a number (share of the float model's latency, for example 0.5) or a time, for example '3ms'"
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
DROP = re.compile(rf"\s*(?:(?P<measure>[a-z]+)\s*[= ]\s*)?(?P<bound>{NUMBER})\s*")
LATENCY = re.compile(rf"\s*(?P<bound>{NUMBER})\s*(?P<unit>[a-zµ]*)\s*")


@dataclass(frozen=True)
class Drop:
    """How much accuracy may be lost.

    - `measure`: "metric" (of `evaluate`, float minus result, at most `bound`), or of the outputs against the float
      model's, the worst output counting: "sqnr" in dB, at least; "kl" in nats, the mean divergence of the softmax over
      the last dimension, at most; "agreement", the share of equal argmax over the last dimension, at least.
    """

    measure: Measure
    bound: float

    @property
    def is_least(self) -> bool:
        """Whether a higher figure is better."""
        return self.measure in ("sqnr", "agreement")

    def lost(self, figure: float) -> float:
        """Return what orders figures, the better the lower; NaN is worst."""
        return math.inf if math.isnan(figure) else -figure if self.is_least else figure

    def allows(self, figure: float) -> bool:
        """Say whether a figure is within the bound."""
        return self.lost(figure) <= self.lost(self.bound) + 1e-12

    def text(self, figure: float) -> str:
        """Write a figure with its name and unit."""
        words = {"metric": f"metric {-figure:+.4g}", "sqnr": f"{figure:.1f} dB", "kl": f"KL {figure:.3g}"}
        return words.get(self.measure, f"{100 * figure:.4g} % equal argmax")

    def __str__(self) -> str:
        """Write the bound as the user does."""
        return f"{self.bound:g}" if self.measure == "metric" else f"{self.measure}={self.bound:g}"


@dataclass(frozen=True)
class Latency:
    """How slow a result may be: a `share` of the float model's latency timed in turn, or `seconds` a call.

    One thread and the example inputs, as everywhere in compile(). Exactly one of the two is not None.
    """

    share: float | None = None
    seconds: float | None = None

    def limit(self, float_seconds: float) -> float:
        """Return the seconds allowed where the float model takes so many."""
        return self.seconds if self.seconds is not None else (self.share or 0.0) * float_seconds

    def __str__(self) -> str:
        """Write the bound as the user does."""
        return f"{self.share:g}" if self.share is not None else f"{1e3 * (self.seconds or 0.0):g}ms"


@dataclass(frozen=True)
class Budget:
    """Both bounds; None is no bound."""

    drop: Drop | None
    latency: Latency | None

    def __str__(self) -> str:
        """Write the options as the user does."""
        parts = [f"{name}={bound}" for name, bound in (("max_drop", self.drop), ("max_latency", self.latency)) if bound]
        return " and ".join(parts)


def read_budget(max_drop: float | str | None, max_latency: float | str | None, evaluated: bool) -> Budget | None:
    """Read both options; None if there is no bound. `evaluated`: whether there is a metric.

    Raises ModelError for what is not understood or can hold for no model.
    """
    if max_drop is None and max_latency is None:
        return None
    return Budget(_drop(max_drop, evaluated), _latency(max_latency))


def _drop(given: float | str | None, evaluated: bool) -> Drop | None:
    if given is None:
        return None
    match = DROP.fullmatch(str(given))
    measure = match["measure"] or "metric" if match else ""
    if match is None or measure not in get_args(Measure):
        raise ModelError(f"max_drop={given!r} is not understood: {DROP_FORM}.")
    bound = float(match["bound"])
    if measure == "metric" and not evaluated:
        raise ModelError(f"max_drop={given!r} is in units of a metric: pass `evaluate`; or {DROP_FORM}.")
    if measure in ("metric", "kl") and bound < 0:
        raise ModelError(f"max_drop={given!r} is below 0: nothing can be demanded to become better than float.")
    if measure == "agreement" and not 0 <= bound <= 1:
        raise ModelError(f"max_drop={given!r}: an agreement is a share, 0 to 1.")
    return Drop(measure, bound)  # type: ignore[arg-type]  # it is one of Measure


def _latency(given: float | str | None) -> Latency | None:
    if given is None:
        return None
    match = LATENCY.fullmatch(str(given))
    if match is None or (match["unit"] and match["unit"] not in UNITS):
        raise ModelError(f"max_latency={given!r} is not understood: {LATENCY_FORM}.")
    bound = float(match["bound"])
    if bound <= 0:
        raise ModelError(f"max_latency={given!r} is no time: {LATENCY_FORM}.")
    return Latency(seconds=bound * UNITS[match["unit"]]) if match["unit"] else Latency(share=bound)
