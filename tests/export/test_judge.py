"""Outputs are judged strictly, or by the Program's own rounding noise, but never past the floor."""

import math

import pytest
import torch
from torch import Tensor, nn

from fxopt.export.compare import OutputError, compare_output
from fxopt.export.judge import JITTER, SHAKES, Judge
from fxopt.export.session import Level
from fxopt.export.sweep import Run, reference_outputs
from fxopt.graph.capture import capture
from fxopt.graph.interpret import run
from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.program import Program
from fxopt.passes.quantize import Quantize


class Cancelling(nn.Module):
    """Loses most of its digits: (x + 30000) - 30000 keeps some ten bits."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x + 30000.0 - 30000.0)


class Doubled(nn.Module):
    """One float operation."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0


class Ties(nn.Module):
    """Half the sum of two integers, rounded to even integers: each odd half sum is as far from one as from the next."""

    input_scale: Tensor
    output_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name, value in {"input": 1.0, "weight": 0.5, "output": 2.0}.items():
            self.register_buffer(f"{name}_scale", torch.tensor(value))
        self.register_buffer("zero", torch.tensor(0, dtype=torch.int8))
        self.register_buffer("ones", torch.ones(1, 1, 2, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        weight = dequantize(self.ones, self.weight_scale, self.zero, None)
        y = nn.functional.conv1d(self.rounded(x, self.input_scale), weight)
        return self.rounded(y, self.output_scale)

    def rounded(self, x: Tensor, scale: Tensor) -> Tensor:
        result: Tensor = dequantize(quantize(x, scale, self.zero, None, -128, 127, torch.int8), scale, self.zero, None)
        return result


X = torch.linspace(-1, 1, 101).reshape(1, -1)


def judge_of(program: Program, unfused: Tensor | None = None) -> Judge:
    """A judge with one run; `is_quantized` if there is an `unfused` output."""
    outputs = reference_outputs(program, (X,))
    run = Run({}, (X,), outputs, outputs if unfused is None else [unfused])
    return Judge(program, unfused is not None, tolerance=1e-4, sqnr=30, runs=[run])


def accepts(judge: Judge, result: OutputError, level: Level = "all", value: Tensor | None = None) -> bool:
    wrong = torch.full_like(judge.runs[0].outputs[0], math.nan)
    return judge.accepts(result, wrong if value is None else value, level, judge.runs[0], 0)


def error(relative: float, sqnr: float = 100.0) -> OutputError:
    return OutputError("output", relative, relative, sqnr, 1.0)


def test_a_well_conditioned_float_program_gets_no_more_than_the_tolerance() -> None:
    program = capture(nn.Tanh(), X)
    judge = judge_of(program)
    assert accepts(judge, error(1e-4))
    assert not accepts(judge, error(1.1e-4))
    assert judge.notes == []


def test_rounding_noise_is_allowed_for_and_noted_but_not_without_limit() -> None:
    program = capture(Cancelling(), X)
    judge = judge_of(program)
    (precise,) = reference_outputs(program, (X,), precise=True)
    noise = compare_output("output", precise, judge.runs[0].outputs[0]).relative
    assert 1e-4 < noise < 1e-3
    assert accepts(judge, error(noise))
    assert "float rounding alone moves it" in judge.notes[0]
    assert not accepts(judge, error(1.01e-3))
    assert accepts(judge, error(1.01e-3), value=precise)


def test_precise_outputs_are_those_of_the_model_in_float64() -> None:
    model = nn.Sequential(nn.Linear(101, 7), nn.GELU())
    program = capture(model, X)
    (precise,) = reference_outputs(program, (X,), precise=True)
    torch.testing.assert_close(precise, model.double()(X.double()).float(), rtol=0, atol=0)


def test_jitter_moves_each_result_by_no_more_than_asked_for_and_always_the_same() -> None:
    program = capture(nn.Identity(), X)
    doubled = capture(Doubled(), X)
    (same,) = reference_outputs(program, (X,), precise=True, jitter=0.01)
    assert torch.equal(same, X)  # nothing is computed
    first, second = (reference_outputs(doubled, (X,), precise=True, jitter=0.01)[0] for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, 2 * X)
    assert ((first - 2 * X).abs() <= 0.0101 * (2 * X).abs()).all()


def test_the_noise_of_a_single_run_is_the_worst_of_several_shakes() -> None:
    program = capture(Cancelling(), X)
    judge = judge_of(program)
    options = [{}, *({"jitter": JITTER, "seed": seed} for seed in range(SHAKES))]
    found = [reference_outputs(program, (X,), precise=True, **option)[0] for option in options]  # type: ignore[arg-type]
    errors = [compare_output("output", value, judge.runs[0].outputs[0]).relative for value in found]
    assert len(set(errors)) == SHAKES + 1
    assert judge._precise is not None and judge._precise.noise[0].relative == max(errors)


@pytest.fixture(scope="module")
def integer() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (1, 101)), nn.Conv1d(1, 16, 3), nn.ReLU(), nn.Conv1d(16, 16, 4), nn.ReLU())
    return Quantize([X], target="portable")(capture(model, X))


def test_integer_kernels_have_no_rounding_noise(integer: Program) -> None:
    (exact,) = reference_outputs(integer, (X,))
    judge = judge_of(integer, exact)
    assert torch.equal(reference_outputs(integer, (X,), precise=True)[0], exact)
    assert accepts(judge, error(0.1, 30.0))
    assert not accepts(judge, error(0.1, 29.9))


def test_without_optimisations_roundings_to_either_side_are_allowed_for(integer: Program) -> None:
    (exact,) = reference_outputs(integer, (X,))
    other = exact + 0.2 * exact.abs().max() * torch.sign(torch.sin(torch.arange(exact.numel()))).reshape(exact.shape)
    judge, own = judge_of(integer, other), compare_output("output", exact, other).sqnr
    assert own < 20
    assert accepts(judge, error(0.1, max(own - 6, 3)), "none")
    assert not accepts(judge, error(0.1, max(own - 6, 3) - 0.1), "none")
    assert not accepts(judge, error(0.1, own), "all")
    assert not accepts(judge, error(math.inf, -math.inf), "none")


def test_without_optimisations_last_bits_of_floats_before_roundings_are_allowed_for() -> None:
    """In integers there is one answer, of floats without errors too; with errors each tie goes to either side."""
    x = torch.randint(-9, 10, (1, 1, 400)).float()
    program = capture(Ties(), x)
    exact, unfused = reference_outputs(program, (x,)), list(run(program, (x,)))
    assert torch.equal(exact[0], unfused[0])
    judge = Judge(program, is_quantized=True, tolerance=1e-4, sqnr=60, runs=[Run({}, (x,), exact, unfused)])
    shaken = reference_outputs(program, (x,), precise=True, jitter=JITTER, fused=False)[0]
    moved = (shaken - exact[0]).abs()
    assert set(moved.flatten().tolist()) == {0.0, 2.0} and 0.1 < float((moved > 0).float().mean()) < 0.9
    own = compare_output("output", unfused[0], shaken).sqnr
    far = error(0.1, max(own - 5, 3))
    assert far.sqnr < 20
    assert accepts(judge, far, "none") and not accepts(judge, far, "all")
    assert not accepts(judge, error(0.1, own - 9), "none")
