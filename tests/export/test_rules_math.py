"""The rules for arithmetic, reductions, views, indexing and sizes: every row against torch, many rows in one graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxopt.export.onnx_rules import (
    ONNX_RULES,
    cast,
    comparison,
    creation,
    elementwise,
    indexing,
    linear_algebra,
    reduction,
    scatter,
    slicing,
    symbolic,
    view,
)
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.capture import capture
from tests.export import index_cases, math_cases
from tests.export.op_cases import OPSETS, Case, Input, SizeOf, assert_close, check, emit, session_of

aten = torch.ops.aten

FAMILIES: dict[ModuleType, Sequence[Case]] = {
    elementwise: math_cases.ELEMENTWISE,
    comparison: math_cases.COMPARISON,
    reduction: math_cases.REDUCTION,
    linear_algebra: math_cases.LINEAR_ALGEBRA,
    creation: math_cases.CREATION,
    cast: math_cases.CAST,
    view: index_cases.VIEW,
    slicing: index_cases.SLICING,
    indexing: index_cases.INDEXING,
    scatter: index_cases.SCATTER,
}
# Rows that only show with dynamic sizes or around an in-place op: test_arithmetic_on_sizes has them.
DYNAMIC_ONLY: dict[ModuleType, tuple[Any, ...]] = {
    creation: (aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default)
}
GROUP = 40
GROUPS = [
    pytest.param(cases[start : start + GROUP], id=f"{family.__name__.rsplit('.', 1)[1]}-{start // GROUP}")
    for family, cases in FAMILIES.items()
    for start in range(0, len(cases), GROUP)
]
# torch's advice on ops that are deprecated but still met.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("cases", GROUPS)
def test_rules_agree_with_torch_at_two_batch_sizes(cases: Sequence[Case]) -> None:
    opset = OPSETS[len(cases[0].name) % len(OPSETS)]
    assert not check(cases, opset).delegated


@pytest.mark.slow
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("cases", GROUPS)
def test_rules_agree_with_torch_in_every_opset(cases: Sequence[Case], opset: int) -> None:
    check(cases, opset)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_every_row_has_a_case(family: ModuleType) -> None:
    assert set(family.RULES) - {case.op for case in FAMILIES[family]} == set(DYNAMIC_ONLY.get(family, ()))


def test_no_op_has_two_rules() -> None:
    families = {rule.__globals__["__name__"] for rule in ONNX_RULES.values()}
    assert {family.__name__ for family in FAMILIES} <= families
    rows = [op for family in [*FAMILIES, symbolic] for op in family.RULES]
    assert len(set(rows)) == len(rows)
    assert all(ONNX_RULES[op] is family.RULES[op] for family in [*FAMILIES, symbolic] for op in family.RULES)


def test_cases_emit_the_ops_they_name() -> None:
    for case in math_cases.LINEAR_ALGEBRA:
        if case.emits:
            types = {node.op_type for node in emit([case], 21)[1].proto.graph.node}
            assert set(case.emits) <= types, case.name


def test_identities_emit_nothing() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.contiguous().clone().detach()[:, :].to(torch.float32).reshape(x.shape[0], 3, 4).view_as(x)
            y = y.expand(-1, 3, 4).permute(0, 1, 2).repeat(1, 1, 1).roll(3, 1).flip([]).squeeze(1).narrow(1, 0, 3)
            joined = torch.cat([y, torch.zeros(x.shape[0], 0, 4)], 1)
            return torch.add(joined.chunk(1, 1)[0], 1)

    proto = to_onnx(capture(Nothing(), torch.randn(2, 3, 4), dynamic="batch")).proto
    assert [node.op_type for node in proto.graph.node] == ["Add"]


untyped: Any = torch  # torch's functions on symbolic numbers have no annotations
# Arithmetic on the sizes n (of x) and m (of y), and which rules it meets.
SIZE_EXPRESSIONS: list[Callable[[Any, Any], Any]] = [
    lambda n, m: (n + m) * 2 - 3 + -n,
    lambda n, m: n // 2 + (n * m - 20) // 3 - -(-m // 4),
    lambda n, m: n % 3 + (n - 10) % 4 + n**2,
    lambda n, m: untyped.sym_int((n * 1.5) // 2) + untyped.sym_int(m * 1.5 % 2),
    lambda n, m: untyped.sym_max(n, 2 * m) - untyped.sym_min(n, m) + abs(n - m),
    lambda n, m: math.ceil(n / 2) + math.floor(m / 3) + math.trunc(n * 0.3) + round(n / 2),
    lambda n, m: untyped.sym_int(untyped._sym_sqrt(n * m)) + untyped.sym_int(untyped.sym_float(n) * 0.7),
    lambda n, m: untyped.sym_sum([n, 5 * m, 7]),
    lambda n, m: untyped.sym_ite(n > 5, n, m) + untyped.sym_ite(m >= 7, n, m) + untyped.sym_ite(n < m, 1, 2),
    lambda n, m: untyped.sym_ite(untyped.sym_not((n == m) | (n != 3) & (n <= m)), n, m),
]


class Sizes(nn.Module):
    """The values of size expressions, and what takes floats and values computed from sizes or data."""

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Return each expression as a tensor."""
        n, m = x.shape[0], y.shape[1]
        values = [torch.full((2,), expression(n, m), dtype=torch.int64) for expression in SIZE_EXPRESSIONS]
        made = [
            torch.arange(n + 1) * m,
            torch.arange(1, n / 2, 0.5),
            torch.zeros(n, m, dtype=torch.int32),
            torch.empty(n, 3).fill_(1.5),
            torch.full((n, 2), m),
            torch.ones(n, m) * n,
            torch.eye(n, m + 1, dtype=torch.bool),
            torch.eye(m),
            torch.empty_like(x).copy_(y[:, :2].sum(0)),
            x.new_empty(n, m).fill_(0) + m,
            torch.scalar_tensor(n / 2),
            torch.linspace(0, n - 1, 7),
        ]
        return [*values, *made, x + x.numel(), x * (n / m), x * y.sum().item(), y[0].repeat(m // 2)]


def test_arithmetic_on_sizes() -> None:
    model = Sizes()
    example = (torch.randn(4, 2), torch.rand(2, 6))
    program = capture(model, example, dynamic={"x": {0: "n"}, "y": {1: "m"}})
    met = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert set(symbolic.RULES) - met <= {aten._local_scalar_dense.default}
    assert set(DYNAMIC_ONLY[creation]) <= met
    emitted = to_onnx(program)
    assert not emitted.delegated
    session = session_of(emitted.proto)
    for n, m in ((4, 6), (3, 5), (7, 9), (10, 10), (6, 13)):
        x, y = torch.randn(n, 2), torch.rand(2, m)
        for got, want in zip(session.run(None, {"x": x.numpy(), "y": y.numpy()}), model(x, y), strict=True):
            assert_close(got, want.numpy(), 1e-5, f"sizes {n} and {m}")


# Random shapes, indices and dtypes. Many calls go into one graph, because starting torch.export costs most.
FEW = settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # the failing call is named in the message, and each step of shrinking would cost a second
)
DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64]


def numbers(dtype: torch.dtype) -> Callable[[Sequence[int], torch.Generator], Tensor]:
    return lambda shape, generator: torch.randint(0, 7, list(shape), generator=generator).to(dtype)


@st.composite
def slices(draw: st.DrawFn) -> Case:
    dim = draw(st.integers(0, 2))
    bound = st.one_of(st.none(), st.integers(-5, 5), st.just(2**63 - 1))
    start, end = draw(bound), draw(bound)
    return Case(aten.slice.Tensor, (Input((4, 5, 3)), dim, start, end, draw(st.integers(1, 3))))


@st.composite
def selects(draw: st.DrawFn) -> Case:
    return Case(aten.select.int, (Input(("B", 4, 5)), draw(st.sampled_from([1, 2, -1, -2])), draw(st.integers(-4, 3))))


@st.composite
def indices(draw: st.DrawFn) -> Case:
    """Draw x[...] with index tensors that broadcast, or a mask, and gaps."""

    def places(shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randint(-3, 3, list(shape), generator=generator)

    def mask(shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.rand(list(shape), generator=generator) < 0.6

    common = [Input((2,), places), Input((1,), places), Input((4, 2), places), Input((4, 1), places)]
    first = [*common, Input((), places)]  # only there: torch 2.13 infers a wrong shape for a later 0-D index tensor
    masks = [Input((3,), mask), Input((3, 3), mask), Input((3, 3, 3), mask)]
    gaps: list[Input | None] = [None] * draw(st.integers(0, 1))
    if draw(st.booleans()):  # torch.export captures few mixtures of masks and index tensors
        chosen = [*gaps, draw(st.sampled_from(masks))]
    else:
        some = st.lists(st.one_of(st.none(), st.sampled_from(common)), max_size=2)
        chosen = [*gaps, draw(st.sampled_from(first)), *draw(some)]
    return Case(draw(st.sampled_from([aten.index.Tensor, aten._unsafe_index.Tensor])), (Input((3, 3, 3, 3)), chosen))


@st.composite
def reshapes(draw: st.DrawFn) -> Case:
    pieces = draw(st.permutations([2, 2, 3, 5]))
    cuts = sorted(draw(st.sets(st.integers(1, 3))))
    sizes: list[Any] = [math.prod(pieces[a:b]) for a, b in zip([0, *cuts], [*cuts, 4], strict=True)]
    if draw(st.booleans()):
        sizes[draw(st.integers(0, len(sizes) - 1))] = -1
        sizes.insert(0, SizeOf(0))
    else:
        sizes.insert(0, -1)  # at other places torch.export fixes the batch size
    return Case(draw(st.sampled_from([aten.view.default, aten.reshape.default])), (Input(("B", 4, 5, 3)), sizes))


@st.composite
def broadcasts(draw: st.DrawFn) -> Case:
    shape: tuple[Any, ...] = ("B", 3, 2)
    left, right = (
        tuple(size if draw(st.booleans()) else 1 for size in shape)[draw(st.integers(0, 3)) :] for _ in range(2)
    )
    op = draw(st.sampled_from([aten.add.Tensor, aten.mul.Tensor, aten.lt.Tensor, aten.maximum.default]))
    return Case(op, (Input(left), Input(right)))


@st.composite
def promotions(draw: st.DrawFn) -> Case:
    kinds = st.sampled_from(DTYPES)
    left = Input(draw(st.sampled_from([(), (3,)])), numbers(draw(kinds)))
    right = Input(draw(st.sampled_from([(), (3,)])), numbers(draw(kinds)))
    op = draw(st.sampled_from([aten.add, aten.mul, aten.eq, aten.lt, aten.ge]))
    if draw(st.booleans()):
        return Case(op.Tensor, (left, right))
    return Case(op.Scalar, (left, draw(st.sampled_from([2, 2.5, True, -1]))))


def check_random(cases: list[Case]) -> None:
    anchor = Case(aten.add.Scalar, (Input(("B",)), 1))  # a graph needs an input, which a slice may leave unread
    check([anchor, *cases], 21)


@pytest.mark.parametrize("kind", [slices, selects, reshapes, broadcasts, promotions], ids=lambda kind: kind.__name__)
def test_random_calls_agree_with_torch(kind: Callable[[], st.SearchStrategy[Case]]) -> None:
    @FEW
    @given(cases=st.lists(kind(), min_size=12, max_size=16))
    def check_many(cases: list[Case]) -> None:
        check_random(cases)

    check_many()


@FEW
@given(cases=st.lists(indices(), min_size=8, max_size=10))
def test_random_indices_agree_with_torch(cases: list[Case]) -> None:
    def is_valid(case: Case) -> bool:
        x, chosen = case.args
        generator = torch.Generator().manual_seed(0)
        tensors = [None if i is None else i.tensor({}, generator) for i in chosen]
        try:
            case.op(x.tensor({}, generator), tensors)
        except (IndexError, RuntimeError):  # shapes of index tensors that do not broadcast
            return False
        return True

    check_random([case for case in cases if is_valid(case)])
