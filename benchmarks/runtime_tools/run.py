"""Compile one model to portable ONNX, float and int8, and run both files in every runtime."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.peer_tools.environments import python_of
from benchmarks.peer_tools.prepare import in_order
from benchmarks.peer_tools.run import ENVIRONMENT, ROOT, reason
from benchmarks.runtime_tools.cases import ALL_CASES
from benchmarks.runtime_tools.exchange import read_arrays, write_arrays
from benchmarks.zoo_models.model import Inputs
from fxopt import FxoptError, compile
from fxopt.compile import Name
from fxopt.export.census import take_census
from fxopt.export.session import Level, Session

FLOAT: Name = "float"
HERE = Path(__file__).parent
WEB: Literal["onnxruntime-web"] = "onnxruntime-web"  # its folder among the environments
NO_ENVIRONMENT = "no environment: make it with --install FOLDER, and name it with --environments FOLDER"
INTEGER_COMPUTE = {"MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearConv", "QLinearMatMul"}


@dataclass(frozen=True)
class Runtime:
    """A runtime and one setting of it."""

    name: Literal["onnxruntime", "openvino", "onnxruntime-web"]
    setting: str


REFERENCE = Runtime("onnxruntime", "all")
RUNTIMES = (
    REFERENCE,
    Runtime("onnxruntime", "none"),  # no optimisations: float arithmetic between the roundings
    Runtime("openvino", "default"),
    Runtime("openvino", "accuracy"),
    Runtime(WEB, "wasm"),
)


@dataclass(frozen=True)
class Settings:
    """How to run the comparison.

    `environments`: the folder that --install made, if any. `recipes`: those of compile() besides "float".
    `calibration`, `held_out`: samples of batch 1. `limit`: seconds that a runtime may take for one file.
    """

    environments: Path | None
    recipes: Sequence[Name]
    calibration: int
    held_out: int
    limit: float


@dataclass(frozen=True)
class Ran:
    """What one runtime made of one file: the outputs of all samples (None with an "error" in `facts`)."""

    file: Name
    runtime: Runtime
    outputs: Tensor | None
    facts: Mapping[str, Any]


def run_model(name: str, settings: Settings, folder: Path) -> tuple[Tensor, list[Ran]]:
    """Return the outputs of the eager float model on the held-out samples, and those of every runtime and file.

    Raises FxoptError if the model does not compile, or a package with its weights is missing.
    """
    case = ALL_CASES[name]
    model = case.build()
    samples = list(case.samples("held-out", settings.held_out))
    files = (FLOAT, *settings.recipes)
    _compile(name, model, files, list(case.samples("calibration", settings.calibration)), folder)
    columns = zip(*(in_order(sample) for sample in samples), strict=True)
    names = Session(folder / f"{FLOAT}.onnx").inputs
    write_arrays(folder / "in.json", dict(zip(names, (torch.cat(column).numpy() for column in columns), strict=True)))
    with torch.no_grad():
        expected = torch.cat([model(*in_order(sample)) for sample in samples])
    return expected, [run_file(file, runtime, settings, folder) for file in files for runtime in RUNTIMES]


def _compile(name: str, model: nn.Module, recipes: Sequence[Name], calibration: Sequence[Inputs], folder: Path) -> None:
    for recipe in recipes:
        compile(
            model,
            calibration[0],
            recipe=recipe,
            calibration=None if recipe == FLOAT else calibration,
            target="portable",
            output=folder / f"{recipe}.onnx",
            measure=False,
            name=name,
        )


def run_file(file: Name, runtime: Runtime, settings: Settings, folder: Path) -> Ran:
    """Run FOLDER/FILE.onnx on the arrays of FOLDER/in.json."""
    path, header = folder / f"{file}.onnx", folder / f"{runtime.name}-{runtime.setting}-{file}.json"
    if runtime.name == "onnxruntime":
        return _natively(file, path, runtime)
    command = _command(runtime, settings, path, header)
    error, printed = (NO_ENVIRONMENT, "") if command is None else _call(command, settings.limit)
    if error is not None:
        return Ran(file, runtime, None, {"error": error})
    arrays, facts = read_arrays(header)
    if runtime.name == WEB:
        facts["integer"] = integer_compute(profiled_kernels(printed))
    return Ran(file, runtime, torch.from_numpy(arrays["output"]), facts)


def profiled_kernels(text: str) -> Counter[str]:
    """Count the nodes of each op type that ran, from the profile that onnxruntime-web prints; other lines are skipped.

    A line is an event in JSON with a comma behind it; a node has one event for each run.
    """
    nodes = {}
    for line in text.splitlines():
        if '"op_name"' in line:
            event = json.loads(line.strip().rstrip(","))
            nodes[event["args"]["node_index"]] = event["args"]["op_name"]
    return Counter(nodes.values())


def integer_compute(kernels: Mapping[str, int]) -> int:
    """Return how many convolutions and matrix products of onnxruntime run in integers."""
    return sum(kernels.get(op, 0) for op in INTEGER_COMPUTE)


def _natively(file: Name, path: Path, runtime: Runtime) -> Ran:
    """Run a file in this process."""
    level: Level = "all" if runtime.setting == "all" else "none"
    arrays, _ = read_arrays(path.parent / "in.json")
    facts: dict[str, Any] = {"version": version("onnxruntime")}
    outputs, seconds = [], []
    try:
        session = Session(path, level=level)
        for index in range(len(next(iter(arrays.values())))):
            feeds = {name: array[index : index + 1] for name, array in arrays.items()}
            start = time.perf_counter()
            outputs.append(session.run(feeds)[0])
            seconds.append(time.perf_counter() - start)
    except FxoptError as error:
        return Ran(file, runtime, None, {**facts, "error": str(error)})
    if level == "all":
        facts["integer"] = integer_compute(take_census(path).kernels)
    return Ran(file, runtime, torch.cat(outputs), {**facts, "seconds": float(np.median(seconds))})


def _command(runtime: Runtime, settings: Settings, path: Path, header: Path) -> list[str] | None:
    """Return how to run a file in another process; None if its environment is missing."""
    inputs = path.parent / "in.json"
    if runtime.name == WEB:
        packages = None if settings.environments is None else settings.environments / WEB
        if packages is None or not (packages / "node_modules" / WEB).exists():
            return None
        return ["node", str(HERE / "web_tool.mjs"), *map(str, (packages, path, inputs, header))]
    python = python_of(settings.environments, runtime.name)
    if python is None:
        return None
    module = f"benchmarks.runtime_tools.{runtime.name}_tool"
    return [str(python), "-m", module, str(path), runtime.setting, str(inputs), str(header)]


def _call(command: Sequence[str], limit: float) -> tuple[str | None, str]:
    """Run a command; return why it failed (None if it did not), and what it printed."""
    environment = {**os.environ, **ENVIRONMENT}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace", timeout=limit
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s", ""
    except OSError as error:
        return str(error), ""
    failed = done.returncode != 0
    return (reason(done.stderr) or f"ended with code {done.returncode}") if failed else None, done.stdout
