"""Calibration data: streamed, of any batch size, and refused with a clear error where it cannot be used."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fxopt.errors import DataError
from fxopt.graph.program import Program
from fxopt.graph.rewrite import constant
from fxopt.passes.quantize import Calibrate, InsertObservers, Quantize
from tests.passes.quantize.nets import Residual, images, program_of


@pytest.fixture
def program() -> Program:
    return program_of(Residual(), images())


def scale_of(program: Program, name: str) -> float:
    node = next(node for node in program.graph.find_nodes(op="get_attr") if node.target == f"{name}_scale")
    value = constant(program.module, node)
    assert value is not None
    return float(value)


def test_a_one_shot_iterator_of_items_of_different_batch_sizes(program: Program) -> None:
    def stream() -> Iterator[Tensor]:
        for batch in (1, 3, 2):
            yield images(batch, seed=batch)

    whole = torch.cat([images(batch, seed=batch) for batch in (1, 3, 2)])
    streamed = Quantize(stream(), observer="minmax")(program)
    at_once = Quantize([whole], observer="minmax")(program)
    assert scale_of(streamed, "x") == scale_of(at_once, "x")
    assert scale_of(streamed, "relu") == pytest.approx(scale_of(at_once, "relu"), rel=1e-5)


def test_calibration_is_deterministic(program: Program) -> None:
    data = [images(2, seed=seed) for seed in range(3)]
    assert torch.equal(Quantize(data)(program)(data[0]), Quantize(data)(program)(data[0]))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"x": x}])
def test_an_item_is_a_tensor_a_tuple_or_a_dict(program: Program, wrap: object) -> None:
    assert callable(wrap)
    x = images()
    assert torch.equal(Quantize([wrap(x)])(program)(x), Quantize([x])(program)(x))


def test_an_empty_item_counts_for_nothing(program: Program) -> None:
    x = images()
    assert torch.equal(Quantize([x[:0], x])(program)(x), Quantize([x])(program)(x))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named_with_their_item(program: Program, bad: float) -> None:
    x = images()
    broken = x.clone()
    broken[1, 2, 3, 4] = bad
    with pytest.raises(DataError, match="item 1: input 'x' holds NaN or infinity"):
        Quantize([x, broken])(program)


def test_an_overflow_inside_is_named_with_its_node() -> None:
    module = Residual()
    module.stem.weight.data *= 1e3
    program = program_of(module, images())
    with pytest.raises(DataError, match=r"item 0 makes node 'relu' .* give NaN or infinity"):
        Quantize([images() * 1e37])(program)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "is empty"),
        (iter(()), "is empty"),
        ([torch.randn(2, 3, 32, 33)], "item 0 does not fit .*dimension 3 has size 33"),
        ([images(), torch.randn(3, 32, 32)], "item 1 does not fit .*3 dimensions instead of 4"),
        ([images().double()], "its dtype is float64"),
        ([(images(), images())], "another structure"),
        ([{"y": images()}], "another structure"),
        ([3.5], "item 0 does not fit"),
        (images(), "one Tensor. Put it into a list"),
        ({"x": images()}, "one dict. Put it into a list"),
        (7, "must be an iterable"),
    ],
)
def test_data_that_does_not_fit_is_refused(program: Program, data: object, message: str) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        Quantize(data)(program)  # type: ignore[arg-type]


def test_the_observers_are_fed_once_an_item() -> None:
    calls = []

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return y

    def stream() -> Iterator[Tensor]:
        for item in range(4):
            calls.append(item)
            yield torch.full((1, 8), float(item + 1))

    program = InsertObservers()(program_of(Counting(), torch.randn(1, 8)))
    calibrated = Calibrate(stream(), "minmax")(program)
    assert calls == [0, 1, 2, 3]
    assert scale_of(calibrated, "x") == pytest.approx(4 / 255)
