"""MaskWeights and FoldMasks: what goes, that it stays gone, and that all else works on a masked Program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxopt.errors import DataError, PassError
from fxopt.export.to_onnx import to_onnx
from fxopt.export.validate import validate
from fxopt.graph.cost import macs
from fxopt.graph.ops import dequantize
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.rewrite import constant, get_attribute
from fxopt.graph.serialize import load
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP, FoldMasks, MaskWeights, Quantize, RemoveChannels
from fxopt.passes.prune import (
    L1,
    L2,
    ActivationTimesWeight,
    BatchNormScale,
    Blocks,
    HessianDiagonal,
    Lamp,
    Magnitude,
    NofM,
    Random,
    Sparsity,
    Taylor,
)
from fxopt.passes.prune.weight_scores import weight_scores
from fxopt.passes.prune.weights import weights_of
from tests.conftest import Golden
from tests.passes.cleanup.checks import check, program_of, refuses, snapshot

aten = torch.ops.aten
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _network(m: Any, x: Tensor) -> Any:
    return m.head(m.second(torch.relu(m.norm(m.first(x)))).flatten(1))


@pytest.fixture(scope="module")
def network() -> Program:
    torch.manual_seed(0)
    return program_of(
        _network,
        IMAGE,
        dynamic="batch",
        first=nn.Conv2d(3, 8, 3),
        norm=nn.BatchNorm2d(8),
        second=nn.Conv2d(8, 8, 3, groups=2),
        head=nn.Linear(128, 10),
    )


def linear_of(*rows: list[float]) -> Program:
    weight = nn.Parameter(torch.tensor(rows))
    return program_of(
        lambda m, x: torch.nn.functional.linear(x, m.weight), torch.randn(2, weight.shape[1]), weight=weight
    )


def mask(program: Program, name: str = "weight") -> list[Any]:
    values: list[Any] = get_attribute(program.module, f"{name}_mask").int().tolist()
    return values


def masks(program: Program) -> dict[str, Tensor]:
    return {weight.name: weight.mask for weight in weights_of(program)}


def share_gone(program: Program) -> float:
    found = masks(program).values()
    return 1 - sum(int(mask.sum()) for mask in found) / sum(mask.numel() for mask in found)


def test_golden_mask_weights(golden: Golden) -> None:
    def tied(m: Any, x: Tensor) -> Any:
        return torch.nn.functional.linear(m.table(x).mean(1) @ m.square, m.table.weight, m.bias)

    members: dict[str, Any] = {
        "table": nn.Embedding(10, 4),
        "square": nn.Parameter(torch.randn(4, 4)),
        "bias": torch.zeros(10),
    }
    program = program_of(tied, torch.zeros(2, 5, dtype=torch.int64), **members)
    golden(program, MaskWeights(Sparsity(0.5))(program))


def test_magnitude_by_hand() -> None:
    program = linear_of([0.1, -0.2, 0.3], [-0.3, 0.2, 0.0])
    assert mask(MaskWeights(Magnitude(0.2))(program)) == [[0, 1, 1], [1, 1, 0]]


def test_sparsity_by_hand() -> None:
    program = linear_of([1.0, -2.0, 3.0, -4.0], [8.0, 7.0, -6.0, 5.0])
    assert mask(MaskWeights(Sparsity(0.5))(program)) == [[0, 0, 0, 0], [1, 1, 1, 1]]
    assert mask(MaskWeights(Sparsity(0.5, across="output"))(program)) == [[0, 0, 1, 1], [1, 1, 0, 0]]


def test_across_the_model_small_layers_lose_more() -> None:
    members: dict[str, Any] = {"small": nn.Linear(4, 4), "large": nn.Linear(4, 4)}
    program = program_of(lambda m, x: m.large(m.small(x)), torch.randn(2, 4), **members)
    with torch.no_grad():
        get_attribute(program.module, "small.weight").mul_(1e-3)
    found = masks(MaskWeights(Sparsity(0.5, across="model"))(program))
    assert not found["small.weight"].any() and found["large.weight"].all()


def test_two_of_four_by_hand() -> None:
    program = linear_of([1.0, -2.0, 3.0, -4.0, 1.0, 2.0], [8.0, 7.0, -6.0, 5.0, 0.0, 0.0])
    assert mask(MaskWeights(NofM(2, 4))(program)) == [[0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1]]


def test_blocks_by_hand() -> None:
    program = linear_of([3.0, 3.0, 5.0, 0.0, 9.0], [3.0, 3.0, 0.0, 0.0, 0.0])
    assert mask(MaskWeights(Blocks((2, 2), 0.5))(program)) == [[1, 1, 0, 0, 1], [1, 1, 0, 0, 1]]  # 36 and 25
    program = linear_of([3.0, 3.0, 7.0, 0.0], [3.0, 3.0, 0.0, 0.0])
    assert mask(MaskWeights(Blocks((2, 2), 0.5), "l1")(program))[0] == [1, 1, 0, 0]  # 12 and 7
    assert mask(MaskWeights(Blocks((2, 2), 0.5), "l2")(program))[0] == [0, 0, 1, 1]  # 36 and 49


def test_training_leaves_zeros_alone(network: Program) -> None:
    program = MaskWeights(Sparsity(0.5))(network).train()
    weights = weights_of(program)
    before = [weight.value.detach().clone() for weight in weights]
    program.module(IMAGE)[0].square().sum().backward()
    for weight in weights:
        assert isinstance(weight.value, nn.Parameter) and weight.value.grad is not None
        assert (weight.value.grad[~weight.mask] == 0).all() and (weight.value.grad[weight.mask] != 0).any()
    with torch.no_grad():
        for weight in weights:
            weight.value.sub_(weight.value.grad, alpha=0.1)  # type: ignore[arg-type]
    try:
        found = {name: value for name, value in FoldMasks()(program).module.named_parameters()}
        for weight, old in zip(weights, before, strict=True):
            assert torch.equal(found[weight.name] == 0, ~weight.mask)
            assert torch.equal(weight.value[~weight.mask], old[~weight.mask])
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, before, strict=True):
                weight.value.copy_(old)
                weight.value.grad = None


def test_input_programs_stay_as_they_are(network: Program) -> None:
    masked = MaskWeights(Sparsity(0.5))(network)
    text, values = snapshot(masked)
    MaskWeights(Sparsity(0.9))(masked)
    FoldMasks()(masked)
    after, kept = snapshot(masked)
    assert text == after and all(torch.equal(values[name], kept[name]) for name in values)
    assert get_attribute(masked.module, "head.weight") is get_attribute(network.module, "head.weight")


PATTERNS = st.sampled_from([
    Sparsity(0.3), Sparsity(0.6, "model"), Sparsity(0.5, "output"), NofM(2, 4), NofM(1, 2), Blocks((2, 2), 0.5),
    Blocks((4, 1), 0.7), Magnitude(0.05),
])  # fmt: skip


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.lists(st.tuples(PATTERNS, st.sampled_from([L2(), Random(), Lamp()])), min_size=2, max_size=3))
def test_masks_only_grow(network: Program, steps: list[tuple[Any, Any]]) -> None:
    program = network
    for pattern, score in steps:
        before = masks(program)
        program = MaskWeights(pattern, L1() if isinstance(pattern, Magnitude) else score)(program)
        after = masks(program)
        assert all(not (after[name] & ~before[name]).any() for name in before)
    verify(program)


@pytest.mark.parametrize(
    "make", [Sparsity, lambda share: Sparsity(share, "model"), lambda share: Blocks((2, 1), share)]
)
def test_higher_shares_extend_masks_to_just_that_share(network: Program, make: Any) -> None:
    program = MaskWeights(make(0.3), Random(1))(network)
    for share in (0.5, 0.9):
        program = MaskWeights(make(share), Random(2))(program)
        assert share_gone(program) == pytest.approx(share, abs=0.05 if isinstance(make(share), Blocks) else 0.001)
    refuses(MaskWeights(make(0.5)), program)


def test_folding_is_exact_and_counts_zeros(network: Program) -> None:
    masked = MaskWeights(Sparsity(0.5))(network)
    folded = check(FoldMasks(), masked, IMAGE, bound=0)
    zeros = sum(int((weight.value == 0).sum()) for weight in weights_of(folded))
    count = sum(weight.value.numel() for weight in weights_of(folded))
    assert f"{zeros:,} of {count:,} weights in 3 masked tensors are zero ({zeros / count:.1%})." in folded.notes[-1]
    assert "not faster" in folded.notes[-1]
    assert [name for name, _ in folded.module.named_parameters()] == [n for n, _ in masked.module.named_parameters()]
    refuses(FoldMasks(), network)


def test_the_cleanup_folds_masks_too(network: Program) -> None:
    masked = MaskWeights(Sparsity(0.5))(network)
    folded, cleaned = Pipeline((FoldMasks(), *CLEANUP))(masked), Pipeline(CLEANUP)(masked)
    for (name, left), (other, right) in zip(
        folded.module.named_parameters(), cleaned.module.named_parameters(), strict=True
    ):
        assert name == other and torch.equal(left, right)
    assert torch.equal(folded.module(IMAGE)[0], cleaned.module(IMAGE)[0])


def test_export(network: Program, tmp_path: Path) -> None:
    masked = MaskWeights(Sparsity(0.5))(network)
    for program in (masked, FoldMasks()(masked)):
        to_onnx(program, tmp_path / "model.onnx")
        validate(tmp_path / "model.onnx", program, (IMAGE,), raise_on_failure=True)


def test_save_and_load(network: Program, tmp_path: Path) -> None:
    masked = MaskWeights(NofM(2, 4))(network)
    masked.save(tmp_path / "masked.pt2")
    loaded = load(tmp_path / "masked.pt2")
    assert all(torch.equal(mask, masks(masked)[name]) for name, mask in masks(loaded).items())
    assert torch.equal(loaded.module(IMAGE)[0], masked.module(IMAGE)[0])


def test_zeros_are_zeros_as_integers(network: Program) -> None:
    masked = MaskWeights(Sparsity(0.5))(network)
    mask = masks(masked)["head.weight"]
    result = Quantize([IMAGE])(Pipeline((FoldMasks(), *CLEANUP))(masked))
    linear = next(node for node in result.graph.nodes if node.target is aten.linear.default)
    assert linear.args[1].target is dequantize
    stored = constant(result.module, linear.args[1].args[0])
    assert stored is not None and stored.dtype is torch.int8 and (stored[~mask] == 0).all()


def test_without_folding_quantization_leaves_masked_layers_float(network: Program) -> None:
    masked = MaskWeights(Sparsity(0.5))(network)
    result = Quantize([IMAGE])(masked)
    assert any("its weight is computed, not stored" in note for note in result.notes)
    assert torch.equal(result.module(IMAGE)[0], masked.module(IMAGE)[0])


def test_channels_leave_with_their_masks(network: Program) -> None:
    masked = MaskWeights(Sparsity(0.5))(network)
    small = verify(RemoveChannels(macs=0.5, round_to=1)(masked), full=True)
    assert abs(macs(small) / macs(network) - 0.5) <= 0.02
    left = weights_of(small)
    assert len(left) == 3 and all(weight.product is not None for weight in left)
    expected = masks(masked)["second.weight"]
    for dim, positions in small.kept["second_weight"].items():
        expected = expected.index_select(dim, torch.tensor(positions))
    assert expected.numel() < 8 * 4 * 9 and torch.equal(left[1].mask, expected)


@pytest.mark.parametrize(("keep", "left"), [(("head",), {"first", "second"}), (("first.weight", "head"), {"second"})])
def test_kept_names_get_no_mask(network: Program, keep: tuple[str, ...], left: set[str]) -> None:
    found = weights_of(MaskWeights(Sparsity(0.5), keep=keep)(network))
    assert {weight.name.split(".")[0] for weight in found if weight.product is not None} == left


@pytest.mark.parametrize("pattern", [NofM(2, 4), Blocks((2, 4), 0.5), Blocks((4, 4), 0.5)])
def test_weights_too_small_for_the_pattern_are_named(network: Program, pattern: Any) -> None:
    result = MaskWeights(pattern)(network)
    assert result.notes[-1] == "Weights that no mask takes anything from: first.weight."
    assert masks(result)["first.weight"].all() and not masks(result)["second.weight"].all()


def test_random_masks_follow_the_seed(network: Program) -> None:
    first, again, other = (MaskWeights(Sparsity(0.5), Random(seed))(network) for seed in (0, 0, 1))
    assert all(torch.equal(mask, masks(again)[name]) for name, mask in masks(first).items())
    assert not torch.equal(masks(first)["head.weight"], masks(other)["head.weight"])


def test_wanda_by_hand() -> None:
    program = linear_of([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0])
    data = [torch.tensor([[10.0, 1.0, 1.0, 1.0], [10.0, 1.0, 1.0, 1.0]]), torch.tensor([[0.0, 1.0, 2.0, 5.0]] * 2)]
    # |w| ||x||: norms 200, 4, 10, 52 before the root
    result = MaskWeights(Sparsity(0.5, "output"), ActivationTimesWeight(data))(program)
    scores = torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]]) * torch.tensor([200.0, 4, 10, 52]).sqrt()
    lowest = scores.argsort(1)[:, :2]
    assert mask(result) == torch.ones(2, 4).int().scatter(1, lowest, 0).tolist()
    again = MaskWeights(Sparsity(0.75, "output"), ActivationTimesWeight(data))(result)
    assert mask(again) == torch.ones(2, 4).int().scatter(1, scores.argsort(1)[:, :3], 0).tolist()


def test_taylor_by_hand() -> None:
    program = linear_of([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0])
    data = [torch.tensor([[1.0, 0.0, 5.0, 1.0], [1.0, 1.0, 1.0, 1.0]])]

    # loss = 3 y_0 + y_1, summed: its gradient in w is the sum of x, times 3 and 1
    def loss(outputs: Any, batch: Any) -> Tensor:
        total: Tensor = (outputs * torch.tensor([3.0, 1.0])).sum()
        return total

    taylor, hessian = (MaskWeights(Sparsity(0.5), kind(data, loss))(program) for kind in (Taylor, HessianDiagonal))
    gradient = torch.tensor([[3.0], [1.0]]) * torch.tensor([2.0, 1.0, 6.0, 2.0])
    scores = (torch.tensor([[1.0, 2, 3, 4], [4, 3, 2, 1]]) * gradient).flatten()  # 6 6 54 24 8 3 12 2
    expected = torch.ones(8).int().scatter(0, scores.argsort()[:4], 0).reshape(2, 4).tolist()
    assert mask(taylor) == mask(hessian) == expected  # one batch: the square of the same


def test_lamp_by_hand() -> None:
    program = linear_of([1.0, -2.0, 3.0, 4.0])
    (scores,) = weight_scores(program, weights_of(program), Lamp())
    torch.testing.assert_close(scores, torch.tensor([[1 / 30, 4 / 29, 9 / 25, 1.0]]))


def test_a_model_without_weights_comes_back() -> None:
    refuses(MaskWeights(Sparsity(0.5)), program_of(lambda m, x: x @ x.T, torch.randn(2, 3)))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Sparsity(1.0), "share"),
        (lambda: Sparsity(-0.1), "share"),
        (lambda: Sparsity(0.5, "everything"), "across"),  # type: ignore[arg-type]
        (lambda: Magnitude(-1), "0 or more"),
        (lambda: Magnitude(float("nan")), "0 or more"),
        (lambda: NofM(4, 4), "n of every m"),
        (lambda: NofM(0, 4), "n of every m"),
        (lambda: Blocks((0, 2), 0.5), "a block has"),
        (lambda: Blocks((2, 2), 1.5), "share"),
    ],
)
def test_patterns_that_make_no_sense(make: Any, text: str) -> None:
    with pytest.raises(PassError, match=text):
        make()


@pytest.mark.parametrize(
    ("by", "error", "text"),
    [
        (MaskWeights(Sparsity(0.5), keep=("haed",)), PassError, "no tensor or module is named 'haed'"),
        (MaskWeights(Sparsity(0.5), "l7"), PassError, "no score 'l7'"),  # type: ignore[arg-type]
        (MaskWeights(Sparsity(0.5), Taylor), PassError, "pass an object"),  # type: ignore[arg-type]
        (MaskWeights(Sparsity(0.5), BatchNormScale()), PassError, "nothing of single weights"),
        (MaskWeights(Sparsity(0.5), ActivationTimesWeight([])), DataError, "empty"),
        (MaskWeights(Sparsity(0.5), Taylor([])), DataError, "empty"),
        (MaskWeights(Magnitude(0.1), Random()), PassError, "compares"),
    ],
)
def test_bad_input(network: Program, by: MaskWeights, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        by(network)


def test_wanda_says_which_weights_it_does_not_know() -> None:
    program = program_of(lambda m, x: m.lstm(x)[0], torch.randn(2, 3, 4), lstm=nn.LSTM(4, 4))
    with pytest.raises(PassError, match=r"lstm\.weight_ih_l0, lstm\.weight_hh_l0"):
        MaskWeights(Sparsity(0.5), ActivationTimesWeight([torch.randn(2, 3, 4)]))(program)
