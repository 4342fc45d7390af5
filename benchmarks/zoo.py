"""Compile whole model zoos and prove every file: `python -m benchmarks.zoo --suite timm --task float --json out.json`.

Models run in child processes, so that a crash or a leak costs one of them. The float task compares onnxruntime with
the eager model at two batch sizes (and a second sequence length where there is one), the int8 task with the converted
Program, for the target of this machine: static ranges, and in transformers and recurrent networks dynamic ones for what
has no static form. The prune task removes channels, so that a share of the multiply-accumulate operations goes
(--ratio); that the rest computes what the masked original does is proved by the pass, and onnxruntime is compared with
that. The task prune-torch-pruning does the same with that package (pip install --no-deps torch-pruning), see
benchmarks/torch_pruning.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import queue
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from benchmarks.torch_pruning import run_torch_pruning
from benchmarks.zoo_models import ZooModel, suite
from benchmarks.zoo_models.outcome import Outcome
from fxopt.errors import FxoptError
from fxopt.export.compare import compare_outputs
from fxopt.export.session import Session
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import Validation, validate
from fxopt.graph.capture import call_of, capture
from fxopt.graph.cost import macs_by_node
from fxopt.graph.pipeline import Pass, Pipeline
from fxopt.graph.program import Program
from fxopt.machine import this_machine
from fxopt.passes.cleanup import CLEANUP, FoldBatchNorm
from fxopt.passes.prune import ReestimateBatchNorm, RemoveChannels, channel_groups
from fxopt.passes.quantize import Quantize, QuantizeDynamic, QuantizeEmbeddings, place
from fxopt.target import find_target

SUITES = ("torchvision", "timm", "transformers", "rnn")
TASKS = ("float", "int8", "prune", "prune-torch-pruning")
BATCHES = (2, 3)
MODELS_A_PROCESS = 12
EAGER_TOLERANCE = 1e-4


def run_model(model: ZooModel, outcome: Outcome) -> None:
    """Take one model through the whole path; raises at the stage that fails."""
    if outcome.task == "prune-torch-pruning":
        return run_torch_pruning(model, outcome)
    with outcome.timed("build"):
        module = model.build()
    inputs = model.inputs(BATCHES[0])
    with outcome.timed("capture"):
        program = capture(module, inputs, dynamic=model.dynamic)
    if outcome.task == "prune":
        program = _prune(model, program, outcome)
    with outcome.timed("passes"):
        program = Pipeline(tuple(CLEANUP))(program)
    if outcome.task == "int8":
        program = _quantize(model, program, outcome)
    with tempfile.TemporaryDirectory(prefix="fxopt-zoo-") as folder:
        path = Path(folder) / "model.onnx"
        target = this_machine() if outcome.task == "int8" else "portable"
        with outcome.timed("emit"):
            emitted = to_onnx(program, path, target=target)
        outcome.delegated = {op: len(nodes) for op, nodes in emitted.delegated.items()}
        outcome.notes = list(program.notes)
        args, kwargs = call_of(inputs)
        with outcome.timed("validate"):
            _record(outcome, validate(path, program, program.flatten(*args, **kwargs), target=target))
        if outcome.task == "float":
            with outcome.timed("eager"):
                _compare_with_eager(model, module, program, path, outcome)
    outcome.ok, outcome.stage = True, "done"


def _quantize(model: ZooModel, program: Program, outcome: Outcome) -> Program:
    data = [model.inputs(4), model.other_inputs(4)]
    target = this_machine()
    reasons = place(program, find_target(target)).float_reasons
    outcome.float_reasons = dict(Counter(reasons.values()))
    steps: list[Pass] = [Quantize(data, target=target)]
    if not model.is_cnn:  # recurrent ops have dynamic ranges alone, and tables are most of a small text model
        steps += [QuantizeDynamic(target=target), QuantizeEmbeddings()]
    with outcome.timed("quantize"):
        return Pipeline(steps)(program)


def _prune(model: ZooModel, program: Program, outcome: Outcome) -> Program:
    """Remove channels, and let batch norms know what is left, as the random models' were made to know what there was.

    Without that the deepest of them amplify float32's last bits beyond comparison, as they would without any at all.
    """
    program = Pipeline(tuple(step for step in CLEANUP if not isinstance(step, FoldBatchNorm)))(program)
    with outcome.timed("grouping"):
        channel_groups(program)
    with outcome.timed("prune"):
        result = RemoveChannels(macs=1 - outcome.ratio)(program)
    outcome.macs_left = sum(macs_by_node(result).values()) / sum(macs_by_node(program).values())
    with outcome.timed("batch norms"):
        return ReestimateBatchNorm([model.inputs(8), model.other_inputs(8)])(result)


def _record(outcome: Outcome, validation: Validation) -> None:
    outcome.max_error = max((error.relative for error in validation.outputs), default=None)
    outcome.sqnr = min((error.sqnr for error in validation.outputs), default=None)
    if validation.census is not None:
        outcome.kernels = dict(validation.census.kernels)
        outcome.integer = len(validation.census.integer)
        outcome.weight_dequantize = validation.census.weight_dequantize
    outcome.notes += [f"skipped {text}" for text in validation.skipped] + list(validation.notes)
    if not validation.ok:
        raise FxoptError("; ".join(validation.failures[:3]))


def _compare_with_eager(
    model: ZooModel, module: torch.nn.Module, program: Program, path: Path, outcome: Outcome
) -> None:
    """Require onnxruntime to return what the eager model does, at several sizes.

    Random deep networks amplify some inputs so much that float32 means nothing there. An input for which the eager
    model is that far from itself in float64 is left out, with a note.
    """
    session = Session(path)
    fixed = isinstance(program.inputs[0].shape[0], int)
    tried = [model.inputs(BATCHES[0])]
    if not fixed:
        tried += [model.inputs(BATCHES[1]), model.other_inputs(BATCHES[1])]
    good = 0
    for inputs in tried:
        args, kwargs = call_of(inputs)
        expected = _eager(module, args, kwargs)
        worst = _worst(program, expected, session(*program.flatten(*args, **kwargs)))
        if (
            worst > EAGER_TOLERANCE
            and (own := _own_error(program, module, args, kwargs, expected)) > EAGER_TOLERANCE / 10
        ):
            outcome.notes.append(f"an input is left out: float32 eager is {own:.1g} of the range off its float64 self")
            continue
        outcome.max_error = max(outcome.max_error or 0.0, worst)
        if worst > EAGER_TOLERANCE:
            raise FxoptError(f"an output differs from eager by {worst:.2g} of its range")
        good += 1
    if good < min(len(BATCHES), len(tried)):
        raise FxoptError("too few inputs on which float32 can be judged")


def _eager(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, Tensor)]


def _worst(program: Program, expected: list[Tensor], values: list[Tensor]) -> float:
    names = [spec.name for spec in program.outputs if spec is not None]
    return max(error.relative for error in compare_outputs(names, expected, values))


def _own_error(
    program: Program, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], expected: list[Tensor]
) -> float:
    """Return how far the eager float32 model is from itself in float64."""

    def widened(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    wide_args, wide_kwargs = pytree.tree_map(widened, (args, kwargs))
    try:
        exact = _eager(module.double(), wide_args, wide_kwargs)
    finally:
        module.float()
    return _worst(program, expected, [value.to(like.dtype) for value, like in zip(exact, expected, strict=True)])


def _models(suite_name: Any, task: str) -> tuple[ZooModel, ...]:
    return suite(suite_name, scored=task.startswith("prune"))


def run_named(suite_name: str, name: str, task: str, ratio: float = 0.5) -> dict[str, Any]:
    """Run one model in this process and return its outcome."""
    model = next(m for m in _models(suite_name, task) if m.name == name)
    outcome = Outcome(model.name, model.family, suite_name, task, ratio)
    try:
        run_model(model, outcome)
    except FxoptError as error:
        outcome.reason = str(error)
    except Exception as error:
        outcome.reason = f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
    gc.collect()
    return asdict(outcome)


def _work(suite_name: str, task: str, ratio: float, names: Any, results: Any) -> None:
    """Run the models whose names come in, one after the other."""
    torch.set_num_threads(1)
    while (name := names.get()) is not None:
        results.put(run_named(suite_name, name, task, ratio))


class Worker:
    """A child process and the model it is at."""

    def __init__(self, suite_name: str, task: str, ratio: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.suite, self.task, self.ratio = suite_name, task, ratio
        self.names, self.results = context.Queue(), context.Queue()
        self.process = context.Process(
            target=_work, args=(suite_name, task, ratio, self.names, self.results), daemon=True
        )
        self.process.start()
        self.model: ZooModel | None = None
        self.start, self.done = 0.0, 0

    def give(self, model: ZooModel) -> None:
        """Start a model."""
        self.model, self.start = model, time.monotonic()
        self.names.put(model.name)

    def poll(self, timeout: float) -> dict[str, Any] | None:
        """Return the outcome of the model if it is there, or what is to be said if the child died or takes too long."""
        assert self.model is not None
        try:
            outcome: dict[str, Any] = self.results.get(timeout=0.2)
        except queue.Empty:
            late = time.monotonic() - self.start > timeout
            if self.process.is_alive() and not late:
                return None
            lost = Outcome(self.model.name, self.model.family, self.suite, self.task, self.ratio)
            lost.stage = "timeout" if late else "crash"
            lost.reason = f"after {timeout:.0f} s" if late else f"exit code {self.process.exitcode}"
            self.done = MODELS_A_PROCESS
            outcome = asdict(lost)
        self.model, self.done = None, self.done + 1
        return outcome

    def stop(self) -> None:
        """End the child."""
        self.process.kill()
        self.process.join()


def run_suite(
    suite_name: str, task: str, only: list[str], jobs: int, timeout: float, ratio: float = 0.5
) -> Iterator[dict[str, Any]]:
    """Run the models of a suite, `jobs` at a time, and yield their outcomes as they come."""
    waiting = [m for m in _models(suite_name, task) if not only or any(word in (m.name, m.family) for word in only)]
    workers: list[Worker] = []
    total, count = len(waiting), 0
    while waiting or workers:
        while waiting and len(workers) < jobs:
            workers.append(Worker(suite_name, task, ratio))
        for worker in list(workers):
            if worker.model is None and waiting and worker.done < MODELS_A_PROCESS:
                worker.give(waiting.pop(0))
            elif worker.model is None:
                worker.stop()
                workers.remove(worker)
                continue
            outcome = worker.poll(timeout)
            if outcome is not None:
                count += 1
                _print(outcome, count, total)
                yield outcome


def _print(outcome: dict[str, Any], done: int, total: int) -> None:
    state = (
        "ok  "
        if outcome["ok"]
        else f"FAIL in {outcome['stage']}: {outcome['reason'].splitlines()[0][:200] if outcome['reason'] else ''}"
    )
    error = f"{outcome['max_error']:.1e}" if outcome["max_error"] is not None else "-"
    seconds = sum(outcome["seconds"].values())
    left = f" {outcome['macs_left']:.3f} of the operations left" if outcome["macs_left"] is not None else ""
    print(f"[{done}/{total}] {outcome['name']:<40} {state} error {error}{left} {seconds:.1f} s", flush=True)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True, choices=SUITES)
    parser.add_argument("--task", default="float", choices=TASKS)
    parser.add_argument("--ratio", type=float, default=0.5, help="prune: the share of the operations to remove")
    parser.add_argument("--only", nargs="*", default=[], help="names of models or families")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds a model may take")
    parser.add_argument("--json", type=Path, help="where to write all outcomes")
    options = parser.parse_args()
    outcomes: list[dict[str, Any]] = []
    for outcome in run_suite(options.suite, options.task, options.only, options.jobs, options.timeout, options.ratio):
        outcomes.append(outcome)
        if options.json:
            options.json.write_text(json.dumps(sorted(outcomes, key=lambda o: o["name"]), indent=1))
    good = sum(outcome["ok"] for outcome in outcomes)
    print(f"{good} of {len(outcomes)} ok")
    for outcome in outcomes:
        if not outcome["ok"]:
            reason = outcome["reason"].splitlines()[0][:300] if outcome["reason"] else ""
            print(f"  {outcome['name']}: {outcome['stage']}: {reason}")
    return 0 if good == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
