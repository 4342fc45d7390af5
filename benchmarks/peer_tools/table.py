"""The results as text: a table a model, and a summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peer_tools.score import FLOAT
from benchmarks.peer_tools.verdict import Verdict, geometric_mean, judge

HEAD = (
    "tool",
    "setting",
    "x 1t",
    "x 2t",
    "SQNR",
    "centred",
    "top-1",
    "metric",
    "size",
    "cpu s",
    "integer",
    "float",
    "wDQ",
    "",
)
ERROR_SHOWN = 90


def model_table(result: Mapping[str, Any]) -> str:
    """Return one model's table; `x`: times as fast as float. A star: no point of ours dominates the row."""
    if not result["rows"]:
        return f"{result['model']}: {result['error']}"
    stars = {point.label for point in judge(result["rows"]).undominated}
    size = next((row["bytes"] for row in result["rows"] if row["tool"] == FLOAT), None)
    cells = [HEAD, *(_cells(row, size, stars) for row in result["rows"])]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD) - 1)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, [*widths, 0], strict=True)) for row in cells]
    return "\n".join([_title(result), *(line.rstrip() for line in lines), *_verdict_lines(judge(result["rows"]))])


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """Return what all models show together."""
    verdicts = [judge(result["rows"]) for result in results]
    gains = [verdict.gain for verdict in verdicts if verdict.gain is not None]
    if not gains:
        return "No model has both our default and a peer."
    dominating = sum(verdict.default_dominates is True for verdict in verdicts)
    all_dominated = sum(not verdict.undominated for verdict in verdicts)
    slower = sum(verdict.default is not None and verdict.default.speedup < 1 for verdict in verdicts)
    return (
        f"{len(gains)} models: the fastest peer's time over ours {geometric_mean(gains):.2f} (geometric mean), "
        f"least {min(gains):.2f}; the default dominates the fastest peer on {dominating}, all peers are dominated on "
        f"{all_dominated}, the default is slower than float on {slower}"
    )


def _title(result: Mapping[str, Any]) -> str:
    row: Mapping[str, Any] = next((row for row in result["rows"] if row["tool"] == FLOAT), {})
    times = [
        f"{row[key] * 1e3:.2f} ms with {key.removeprefix('seconds_')} thread(s)" for key in row if "seconds_" in key
    ]
    return f"{result['model']}: float {', '.join(times)}; {result.get('error', '')}".rstrip("; ")


def _cells(row: Mapping[str, Any], float_bytes: int | None, stars: set[str]) -> tuple[str, ...]:
    label = row["tool"], row["setting"]
    if "error" in row:
        return (*label, *[""] * (len(HEAD) - 3), row["error"][:ERROR_SHOWN])
    return (
        *label,
        *(_number(row.get(key), "{:.2f}") for key in ("speedup_1", "speedup_2")),
        *(_number(row.get(key), "{:.1f}") for key in ("sqnr", "centred_sqnr")),
        _number(row.get("agreement"), "{:.3f}"),
        _number(row.get("metric"), "{:.4f}"),
        _number(float_bytes and row.get("bytes") and row["bytes"] / float_bytes, "{:.2f}"),
        _number(row.get("cpu_seconds"), "{:.1f}"),
        *(_number(row.get(key), "{}") for key in ("integer_kernels", "float_compute", "weight_dequantize")),
        "*" if " ".join(label) in stars else "",
    )


def _number(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def _verdict_lines(verdict: Verdict) -> list[str]:
    if verdict.gain is None or verdict.fastest is None:
        return []
    word = "dominates" if verdict.default_dominates else "does not dominate"
    return [f"the default {word} the fastest peer ({verdict.fastest.label}): its time over ours {verdict.gain:.2f}"]
