"""Pipeline: runs passes in order, verifies, times, and says which pass failed."""

import itertools
from dataclasses import dataclass, replace

import pytest
import torch

from fxopt.errors import DataError, PassError, UnsupportedOpError, VerifyError
from fxopt.graph.capture import capture
from fxopt.graph.pipeline import Pipeline, Step
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit
from tests.graph.models import ConvNet

aten = torch.ops.aten


@dataclass(frozen=True)
class Scale:
    """Multiply what each relu gives."""

    factor: float

    def __call__(self, program: Program) -> Program:
        edit = Edit(program, by=self)
        for node in edit.calls(aten.relu.default):
            product = edit.call(aten.mul.Tensor, node, self.factor, before=node.next)
            edit.replace(node, product)
        return edit.finish()


def nothing(program: Program) -> Program:
    return Edit(program, by=nothing).finish()


def broken(program: Program) -> Program:
    return replace(program, inputs=())


def crash(program: Program) -> Program:
    raise ValueError("no luck")


def unsupported(program: Program) -> Program:
    raise UnsupportedOpError("aten.roll.default has no row in CHANNEL_RULES.")


def bad_data(program: Program) -> Program:
    raise DataError("The calibration set is empty.")


@pytest.fixture
def program() -> Program:
    return capture(ConvNet(), torch.randn(2, 3, 8, 8))


def test_passes_run_in_order_and_are_observed(program: Program) -> None:
    steps: list[Step] = []
    result = Pipeline([nothing, Scale(2.0), Scale(0.5)], observe=steps.append)(program)
    assert result.history == ("nothing", "Scale(factor=2.0)", "Scale(factor=0.5)")
    assert [step.name for step in steps] == ["nothing", "Scale", "Scale"]
    assert steps[0].before is program and steps[-1].after is result
    assert all(left.after is right.before for left, right in itertools.pairwise(steps))
    assert all(step.seconds > 0 for step in steps)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(result(x), program(x))


def test_a_pipeline_is_a_pass_and_a_value(program: Program) -> None:
    inner = Pipeline([Scale(2.0)])
    assert Pipeline([inner, nothing])(program).history == ("Scale(factor=2.0)", "nothing")
    assert inner == Pipeline((Scale(2.0),)) and repr(inner) == "Pipeline(passes=(Scale(factor=2.0),))"
    assert Pipeline([])(program) is program


@pytest.mark.parametrize(
    ("bad", "message", "cause"),
    [
        (crash, r"The pass crash failed after nothing, Scale: ValueError: no luck", ValueError),
        (broken, r"The pass broken failed after nothing, Scale: The Program .* is not valid", VerifyError),
        (
            unsupported,
            r"The pass unsupported failed after nothing, Scale: aten.roll.default has no",
            UnsupportedOpError,
        ),
        (lambda program: None, r"The pass <lambda> failed .*: it returned NoneType instead of a Program", PassError),
    ],
)
def test_a_failure_names_the_pass_and_those_before(
    program: Program, bad: object, message: str, cause: type[Exception]
) -> None:
    with pytest.raises(PassError, match=f"(?s){message}") as error:
        Pipeline([nothing, Scale(2.0), bad])(program)  # type: ignore[list-item]
    assert isinstance(error.value.__cause__, cause)


def test_errors_about_the_users_data_pass_through(program: Program) -> None:
    with pytest.raises(DataError, match=r"calibration set is empty"):
        Pipeline([nothing, bad_data])(program)


@pytest.mark.parametrize(
    ("item", "message"), [(Scale, r"Item 1 .* is no pass .*; write Scale\(\)"), ("fold", "Item 1 .* is 'fold'")]
)
def test_what_is_no_pass_is_refused_at_once(item: object, message: str) -> None:
    with pytest.raises(PassError, match=message):
        Pipeline([nothing, item])  # type: ignore[list-item]


def test_debug_prints_diffs(
    program: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Pipeline([Scale(2.0)])(program)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FXOPT_DEBUG", "diff")
    Pipeline([Scale(2.0), nothing])(program)
    lines = capsys.readouterr().err.splitlines()
    assert "+  %mul_1 = mul.Tensor(%relu_1, 2.0): float32[2, 4, 8, 8]" in lines
    assert lines[-2:] == ["--- nothing", "no change"]
