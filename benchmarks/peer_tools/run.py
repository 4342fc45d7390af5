"""Take one model through every tool, each in a process (and where it needs one, an environment) of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peer_tools.environments import python_of
from benchmarks.peer_tools.real_cases import ALL_CASES
from benchmarks.peer_tools.score import FLOAT
from benchmarks.peer_tools.tools import LATENCY, OURS, TOOLS
from benchmarks.peer_tools.verdict import judge

ROOT = Path(__file__).parent.parent.parent
ERROR_CHARACTERS = 300
ENVIRONMENT = {  # of all tools
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "PYTHONNOUSERSITE": "1",
    "HF_HUB_OFFLINE": "1",
    "NNCF_CI": "1",  # it sends no usage data then
}


@dataclass(frozen=True)
class Settings:
    """How to run the comparison.

    - `tools`: names of TOOLS. `environments`: the folder that --install made, if any.
    - `calibration`, `held_out`: samples. `seconds`: of timing a model and number of threads. `limit`: seconds a tool
      may take for one model and setting. `matches`: how often fxopt may answer a peer's point that none of its own
      dominates: with the most exact model that is as fast as the fastest such peer (compile's max_latency).
    - `exporter`: of the float file that the peers start from.
    """

    tools: Sequence[str]
    environments: Path | None
    calibration: int
    held_out: int
    seconds: float
    threads: Sequence[int]
    limit: float
    matches: int = 0
    exporter: str = "fxopt"


def compare(name: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """Return a model's figures: {"model", "rows": a list with "tool" and "setting", and "error" for what failed}.

    What the folder holds of an earlier comparison of this model is not made again, only timed and compared.
    """
    error = _prepare(name, settings, folder)
    if error is not None:
        return {"model": name, "error": error, "rows": []}
    wanted = [(tool, setting) for tool in settings.tools for setting in TOOLS[tool].settings_for(ALL_CASES[name].kind)]
    result = _measure(name, wanted, settings, folder)
    for _ in range(settings.matches):
        missed = judge(result["rows"]).undominated
        answer = OURS, as_fast_as(max(point.speedup for point in missed)) if missed else ""
        if not missed or answer in wanted:
            break
        wanted.insert(len(TOOLS[OURS].settings), answer)
        result = _measure(name, wanted, settings, folder)
    return result


def _prepare(name: str, settings: Settings, folder: Path) -> str | None:
    """Write what the tools start from, unless it is there; return why that is not possible."""
    start = {"calibration": settings.calibration, "held_out": settings.held_out, "exporter": settings.exporter}
    case = folder / "case.json"
    if case.exists():
        kept = json.loads(case.read_text())
        found = {key: kept.get(key) for key in start}
        return None if found == start else f"{folder} holds files made with {found}, not {start}: choose another folder"
    options = [text for key, value in start.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    return _python(Path(sys.executable), "prepare", [str(folder), name, *options], settings.limit)


def as_fast_as(speedup: float) -> str:
    """Name fxopt's setting for a model that is so many times as fast as float."""
    return f"{LATENCY}{1 / speedup:.3f}"


def _measure(name: str, wanted: Sequence[tuple[str, str]], settings: Settings, folder: Path) -> dict[str, Any]:
    """Let tools write their files, where there are none yet; time and compare all of them."""
    made = [
        {"tool": tool, "setting": setting, **_quantize(tool, setting, settings, folder)} for tool, setting in wanted
    ]
    threads = [str(count) for count in settings.threads]
    timing = [str(folder), "--seconds", str(settings.seconds), "--threads", *threads]
    error = _python(Path(sys.executable), "score", timing, settings.limit)
    if error is not None:
        return {"model": name, "error": error, "rows": made}
    scores: Mapping[str, Any] = json.loads((folder / "scores.json").read_text())
    rows = [{**row, **scores.get(f"{row['tool']}-{row['setting']}", {})} for row in made]
    return {"model": name, "rows": [{"tool": FLOAT, "setting": "", **scores[FLOAT]}, *rows]}


def _quantize(tool: str, setting: str, settings: Settings, folder: Path) -> dict[str, Any]:
    """Let a tool write its file; return what it noted, or the error, now or in an earlier run."""
    python = python_of(settings.environments, tool) if TOOLS[tool].own_environment else Path(sys.executable)
    if python is None:
        return {"error": "no environment: make it with --install FOLDER, and name it with --environments FOLDER"}
    output = folder / f"{tool}-{setting}.onnx"
    note = output.with_suffix(".json")
    if not note.exists():
        error = _python(python, TOOLS[tool].module, [str(folder), setting, str(output)], settings.limit)
        if error is None and not output.exists():
            error = "it wrote no file"
        if error is not None:
            output.unlink(missing_ok=True)
            note.write_text(json.dumps({"error": error}))
    noted: dict[str, Any] = json.loads(note.read_text())
    return noted


def _python(python: Path, module: str, arguments: Sequence[str], limit: float) -> str | None:
    """Run a module of this package; return None, or the end of what it wrote if it failed."""
    environment = {**os.environ, **ENVIRONMENT}
    command = [str(python), "-m", f"benchmarks.peer_tools.{module}", *arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=limit
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    if done.returncode == 0:
        return None
    return reason(done.stderr) or f"ended with code {done.returncode}"


def reason(text: str) -> str:
    """Return the exception that ended the last traceback of a text, else the last line, shortened."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    starts = [number for number, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if starts:
        exceptions = [line for line in lines[starts[-1] + 1 :] if not line.startswith(" ")]
        lines = exceptions[:1] or lines
    return lines[-1][:ERROR_CHARACTERS] if lines else ""
