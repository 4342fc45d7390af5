"""Program: checked calls, training and inference mode, shared parameters."""

import pytest
import torch
from torch import nn

from fxopt.errors import DataError
from fxopt.graph.capture import capture
from fxopt.graph.program import Program, TensorSpec
from fxopt.graph.verify import verify
from tests.graph.models import ConvNet


@pytest.fixture
def program() -> Program:
    return capture(ConvNet(), torch.randn(1, 3, 8, 8), dynamic="batch")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), "another structure .*Pass x: float32"),
        ((torch.ones(1, 3, 8, 8),) * 2, "another structure"),
        ((3,), "Input 'x' must be a Tensor, got int"),
        ((torch.ones(1, 3, 8, 9),), "Input 'x' does not fit: dimension 3 has size 9. Expected x: float32"),
        ((torch.ones(3, 8, 8),), "it has 3 dimensions instead of 4"),
        ((torch.ones(1, 3, 8, 8, dtype=torch.int64),), r"its dtype is int64.*got int64\[1, 3, 8, 8\]"),
    ],
)
def test_wrong_inputs_are_told(program: Program, inputs: tuple[object, ...], message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        program(*inputs)


def test_a_spec_is_spelled_with_the_users_names() -> None:
    assert str(TensorSpec("ids", torch.int64, ("batch", 7))) == "ids: int64[batch, 7]"


def test_training_mode_normalises_by_the_batch_and_updates_statistics() -> None:
    model = ConvNet()
    model.dropout.p = 0.0
    program = capture(model, torch.randn(2, 3, 8, 8))
    train = verify(program.train())
    x = torch.randn(2, 3, 8, 8)
    twin = ConvNet()
    twin.dropout.p = 0.0
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(train(x), twin.train()(x))
    torch.testing.assert_close(model.norm.running_mean, twin.norm.running_mean)  # the tensors are shared
    torch.testing.assert_close(train.eval()(x), twin.eval()(x))


def test_modes_are_undone_and_history_is_kept(program: Program) -> None:
    assert str(program.train()) != str(program)
    assert str(program.train().eval()) == str(program)
    assert program.train().history == program.history


def test_dropout_is_random_in_training_only(program: Program) -> None:
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(program(x), program(x))
    torch.manual_seed(0)
    train = program.train()
    assert not torch.equal(train(x), train(x))


def test_a_batch_norm_without_statistics_uses_the_batch_in_both_modes() -> None:
    model = nn.BatchNorm1d(4, track_running_stats=False).eval()
    program = capture(model, torch.randn(3, 4))
    x = torch.randn(3, 4)
    torch.testing.assert_close(program(x), model(x))
    torch.testing.assert_close(program.train().eval()(x), model(x))


def test_parameters_are_those_of_the_model_and_trainable() -> None:
    model = ConvNet()
    program = capture(model, torch.randn(2, 3, 8, 8))
    assert {id(p) for p in program.parameters()} == {id(p) for p in model.parameters()}
    program.train()(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_notes_are_kept_once(program: Program) -> None:
    assert program.with_note("a").with_note("a", "b").notes == ("a", "b")


def test_an_instance_norm_without_running_statistics_has_one_mode() -> None:
    x = torch.randn(2, 3, 4, 4)
    program = capture(nn.InstanceNorm2d(3, affine=True), x)
    assert program.eval() is program
    torch.testing.assert_close(program.train()(x), program(x))
