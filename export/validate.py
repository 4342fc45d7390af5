"""The proof: an ONNX file against the Program it came from.

1. The checker with full shape inference. 2. onnxruntime loads it with all optimisations and with none. 3. Every output
agrees with the Program at every optimisation level, with one and two threads, and at other sizes of the dynamic
dimensions. 4. The census: what claims to be integer is. 5. A target with kernels of its own for integers that another
target has too gives the very same outputs. On a numeric failure the first node that differs is named.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from torch import Tensor

from fxopt.errors import ValidationError, where
from fxopt.export.bisect import first_difference
from fxopt.export.census import Census, take_census
from fxopt.export.compare import OutputError, compare_outputs
from fxopt.export.judge import Judge
from fxopt.export.session import Level, Session
from fxopt.export.sweep import Run, sweep_inputs
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.program import Program
from fxopt.graph.quantized import integer_nodes, stored_nodes
from fxopt.target import TARGETS, Target, find_target

# What a file is loaded with, one after the other: a title, the optimisation level, and the number of threads.
SESSIONS: tuple[tuple[str, Level, int], ...] = (
    ("all optimisations, 1 thread", "all", 1),
    ("all optimisations, 2 threads", "all", 2),
    ("no optimisations", "none", 1),
)
FLOAT_TOLERANCE = 1e-4
INTEGER_SQNR = 30.0


@dataclass(frozen=True)
class Validation:
    """The result of a proof.

    - `failures`: what is wrong, in words; empty if the file is good.
    - `outputs`: per output, the worst figures over all runs with all optimisations, as in deployment; `unoptimised`:
      the same without. `sizes`: the sizes of the dynamic dimensions tried.
    - `skipped`: sizes that the Program itself refuses. `notes`: where its own rounding noise had to be allowed for.
    - `checks`: what was done. `first_difference`: the first node that differs, on failure.
    """

    failures: tuple[str, ...]
    outputs: tuple[OutputError, ...] = ()
    unoptimised: tuple[OutputError, ...] = ()
    census: Census | None = None
    sizes: tuple[Mapping[str, int], ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    first_difference: str | None = None
    checks: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether the file is proved."""
        return not self.failures

    def raise_on_failure(self, model: str) -> None:
        """Raise ValidationError with all failures, if there are any. `model` names the file in the message."""
        if self.failures:
            text = "\n  ".join(self.failures)
            raise ValidationError(
                f"{model} is not proved:\n  {text}\nDo not deploy it; report the model if fxopt made the file."
            )


def validate(
    model: str | Path,
    program: Program,
    inputs: Sequence[Tensor],
    *,
    target: str | Target = "portable",
    tolerance: float = FLOAT_TOLERANCE,
    sqnr: float = INTEGER_SQNR,
    raise_on_failure: bool = False,
) -> Validation:
    """Prove an ONNX file against its Program.

    `inputs` are the tensor inputs in order. A Program without integer nodes must agree within `tolerance` (largest
    error over the output's range); one with integer nodes to `sqnr` dB, and without optimisations to 20 dB. Both give
    way to the Program's own rounding noise where that is larger, within limits; `notes` tell. Returns all findings;
    with `raise_on_failure`, raises ValidationError instead if there is a failure.
    """
    found = find_target(target)
    claimed = integer_nodes(program)
    proof = _Proof(str(model), program.eval(), found, claimed, stored_nodes(program), tolerance, sqnr)
    result = proof.run(tuple(inputs))
    if raise_on_failure:
        result.raise_on_failure(str(model))
    return result


@dataclass
class _Proof:
    """One proof under way."""

    model: str
    program: Program
    target: Target
    claimed: Mapping[str, str]
    stored: Collection[str]
    tolerance: float
    sqnr: float
    failures: list[str] = field(default_factory=list)
    worst: dict[Level, dict[str, OutputError]] = field(default_factory=lambda: {"all": {}, "none": {}})

    def run(self, inputs: tuple[Tensor, ...]) -> Validation:
        self._check_model()
        if self.failures:
            return Validation(tuple(self.failures))
        runs, skipped = sweep_inputs(self.program, inputs)
        judge = Judge(self.program, bool(self.claimed), self.tolerance, self.sqnr, runs)
        different: tuple[Tensor, ...] | None = None
        for title, level, threads in SESSIONS:
            different = self._compare_all(judge, title, level, threads) or different
        node = self._bisect(different) if different is not None else None
        checks = [title for title, _, _ in SESSIONS]
        if "conv" in self.claimed.values() and self.target.same_as is not None:
            checks.append(f"the same outputs as with target {self.target.same_as}")
            self._compare_kernels(self.target.same_as, runs)
        census = self._take_census()
        return Validation(
            failures=tuple(self.failures),
            outputs=tuple(self.worst["all"].values()),
            unoptimised=tuple(self.worst["none"].values()),
            census=census,
            sizes=tuple(run.sizes for run in runs),
            skipped=tuple(skipped),
            notes=tuple(dict.fromkeys(judge.notes)),
            first_difference=node,
            checks=("checker and shape inference", *checks),
        )

    def _check_model(self) -> None:
        try:
            onnx.checker.check_model(self.model, full_check=True)
        except Exception as error:
            self.failures.append(f"The ONNX checker refuses the model: {str(error).strip()}")

    def _compare_all(self, judge: Judge, title: str, level: Level, threads: int) -> tuple[Tensor, ...] | None:
        """Compare all runs in one session; returns inputs for which the values differ, or None.

        One session is alive at a time: each holds all weights.
        """
        different = None
        try:
            session = Session(self.model, level=level, threads=threads, settings=self.target.session)
            for run in judge.runs:
                if not self._compare(judge, title, level, run, session(*run.inputs)):
                    different = different or run.inputs
        except ValidationError as error:
            self.failures.append(f"{title}: {error}")
        return different

    def _compare(self, judge: Judge, title: str, level: Level, run: Run, values: list[Tensor]) -> bool:
        names = [spec.name for spec in self.program.outputs if spec is not None]
        expected = run.outputs if level == "all" else run.unfused
        good = True
        for index, result in enumerate(compare_outputs(names, expected, values)):
            self.worst[level][result.name] = result.worse(self.worst[level].get(result.name))
            if not judge.accepts(result, values[index], level, run, index):
                good = False
                self.failures.append(f"{title}, {run.label}: output '{result.name}' differs: {_figures(result)}")
        return good

    def _compare_kernels(self, other: str, runs: Sequence[Run]) -> None:
        """Run the Program as emitted for another target too: other kernels, the same integers, the same outputs."""
        imports = onnx.load(self.model, load_external_data=False).opset_import
        opset = next(int(entry.version) for entry in imports if entry.domain == "")
        try:
            with tempfile.TemporaryDirectory(prefix="fxopt-validate-") as folder:
                path = Path(folder) / "model.onnx"
                to_onnx(self.program, path, target=other, opset=opset)
                expected = _outputs_of_runs(str(path), TARGETS[other], runs)
            actual = _outputs_of_runs(self.model, self.target, runs)
        except ValidationError as error:
            self.failures.append(f"target {self.target.name} beside {other}: {error}")
            return
        names = [spec.name for spec in self.program.outputs if spec is not None]
        for run, left, right in zip(runs, expected, actual, strict=True):
            for result in compare_outputs(names, left, right):
                if result.max_error != 0:
                    self.failures.append(
                        f"{run.label}: output '{result.name}' is not what target {other} gives: {_figures(result)}. "
                        f"The kernels of target {self.target.name} are wrong on this machine; use target='{other}'."
                    )

    def _take_census(self) -> Census | None:
        try:
            census = take_census(self.model, self.claimed, self.target.session, self.stored)
        except ValidationError:
            return None  # the session that failed to load has been reported
        self._judge(census)
        return census

    def _bisect(self, inputs: tuple[Tensor, ...]) -> str | None:
        limit = self.sqnr if self.claimed else None
        node = first_difference(self.model, self.program, inputs, tolerance=self.tolerance, sqnr=limit)
        if node is not None:
            self.failures.append(f"The first value that differs is made by {where(node)}.")
        return None if node is None else node.name

    def _judge(self, census: Census) -> None:
        for name, kernel in census.unfused.items():
            self.failures.append(
                f"'{name}' is quantized but runs as {kernel}, not as an integer kernel of target {self.target.name}. "
                f"If it was quantized for another target, emit and validate it for that one."
            )
        if census.weight_dequantize and (self.claimed or self.stored):
            self.failures.append(f"{census.weight_dequantize} constant weights are dequantized on every run.")


def _outputs_of_runs(model: str, target: Target, runs: Sequence[Run]) -> list[list[Tensor]]:
    session = Session(model, settings=target.session)
    return [session(*run.inputs) for run in runs]


def _figures(result: OutputError) -> str:
    return f"largest error {result.max_error:.3g} ({result.relative:.2g} of the range), SQNR {result.sqnr:.1f} dB"
