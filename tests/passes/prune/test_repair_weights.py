"""RepairWeights: what the rest can make up for, it does; least squares are numpy's; what does not help is left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt import export
from fxopt.errors import DataError, PassError
from fxopt.graph.capture import capture
from fxopt.graph.interpret import relative_noise
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.rewrite import get_attribute
from fxopt.graph.serialize import load
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP, RemoveChannels, RepairWeights, channel_groups
from fxopt.passes.prune import repair_weights
from fxopt.passes.prune.masked import relative_error
from fxopt.passes.prune.remove_channels import remove_units, units_mask
from tests.passes.cleanup.checks import program_of

IMAGE = torch.randn(4, 3, 8, 8)


def without(program: Program, tensor: str, *positions: int) -> Program:
    """Remove the units that take these positions of dimension 0 of a tensor."""
    groups = channel_groups(program)
    units = [
        unit
        for group in groups.groups
        for unit in group.units
        for cut in groups.slices(unit)
        if (cut.tensor, cut.dim) == (tensor, 0) and set(cut.indices) & set(positions)
    ]
    return remove_units(groups, units_mask(groups.coordinates, units), "test")


def outputs(program: Program, x: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = program.eval()(x)
    return result


def weight(program: Program, name: str) -> Tensor:
    value: Tensor = get_attribute(program.module, name).detach()
    return value


def conv_network(consumer: nn.Module, dynamic: str | None = "batch") -> Program:
    """Eight channels behind relu, of which 3 and 7 are twice channels 1 and 5, and what reads them."""
    first = nn.Conv2d(3, 8, 3, padding=1)
    with torch.no_grad():
        for tensor in first.parameters():
            tensor[[3, 7]] = 2 * tensor[[1, 5]]
    return program_of(
        lambda m, x: m.consumer(torch.relu(m.first(x))), IMAGE, dynamic=dynamic, first=first, consumer=consumer
    )


CONSUMERS = [
    nn.Conv2d(8, 6, 3, bias=False),
    nn.Conv2d(8, 6, (3, 1), stride=2, padding=(2, 1), dilation=(2, 1)),
    nn.Conv2d(8, 4, 3, groups=2, padding=1),
    nn.ConvTranspose2d(8, 5, 3, stride=2, padding=1, output_padding=1),
    nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.Conv2d(8, 5, 1)),
    nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5, bias=False)),
]


@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda value: type(value).__name__)
def test_a_channel_that_is_a_combination_of_others_is_made_up_for(consumer: nn.Module) -> None:
    if isinstance(consumer, nn.Sequential) and isinstance(consumer[0], nn.Conv2d):
        with torch.no_grad():  # what is proportional before stays so
            consumer[0].weight[[3, 7]] = consumer[0].weight[[1, 5]]
    program = conv_network(consumer)
    small = without(program, "first.weight", 3, 7)
    repaired = verify(RepairWeights(program, [torch.randn(8, 3, 8, 8) for _ in range(8)])(small), full=True)
    x = torch.randn(5, 3, 8, 8)
    exact = outputs(program, x)
    assert relative_error(exact, outputs(small, x)) > 1e-2
    assert relative_error(exact, outputs(repaired, x)) < 1e-4


def test_constant_channels_go_into_the_bias() -> None:
    first, second = nn.Linear(6, 8), nn.Linear(8, 3, bias=False)
    with torch.no_grad():
        first.weight[[2, 5]] = 0
        first.bias[[2, 5]] = torch.tensor([1.5, 4.0])
    x = torch.randn(16, 6)
    program = program_of(lambda m, x: m.second(torch.relu(m.first(x))), x, first=first, second=second, dynamic="batch")
    repaired = RepairWeights(program, [torch.randn(16, 6) for _ in range(8)])(without(program, "first.weight", 2, 5))
    expected = second.weight[:, [2, 5]] @ torch.tensor([1.5, 4.0])
    torch.testing.assert_close(weight(repaired, "second.bias"), expected, atol=1e-4, rtol=1e-4)
    assert relative_error(outputs(program, x), outputs(repaired, x)) < 1e-4


def fitted_by_numpy(rows: Tensor, targets: Tensor) -> tuple[Any, Any]:
    augmented = np.concatenate([rows.double().numpy(), np.ones((len(rows), 1))], 1)
    found = np.linalg.lstsq(augmented, targets.double().numpy(), rcond=None)[0].T
    return found[:, :-1], found[:, -1]


def test_a_linear_is_fitted_as_numpy_fits_it() -> None:
    x = torch.randn(64, 6)
    program = program_of(
        lambda m, x: m.second(torch.relu(m.first(x))), x, first=nn.Linear(6, 8), second=nn.Linear(8, 3)
    )
    small = without(program, "first.weight", 0, 4, 5)
    repaired = RepairWeights(program, [x, x])(small)  # fitted to the first, judged on the second
    hidden = torch.relu(functional.linear(x, weight(small, "first.weight"), weight(small, "first.bias")))
    expected, bias = fitted_by_numpy(hidden, outputs(program, x))
    np.testing.assert_allclose(weight(repaired, "second.weight"), expected, atol=1e-4)
    np.testing.assert_allclose(weight(repaired, "second.bias"), bias, atol=1e-4)


def test_a_convolution_is_fitted_as_numpy_fits_it() -> None:
    program = conv_network(nn.Conv2d(8, 4, 3, stride=2, padding=1), dynamic=None)
    small = without(program, "first.weight", 0, 4, 6)
    repaired = RepairWeights(program, [IMAGE, IMAGE])(small)
    hidden = torch.relu(functional.conv2d(IMAGE, weight(small, "first.weight"), weight(small, "first.bias"), padding=1))
    rows = functional.unfold(hidden, 3, padding=1, stride=2).transpose(1, 2).flatten(0, 1)
    targets = outputs(program, IMAGE).movedim(1, -1).reshape(-1, 4)
    expected, bias = fitted_by_numpy(rows, targets)
    # Two channels are twice two others, so that many weights do the same: the results are compared.
    found = rows @ weight(repaired, "consumer.weight").flatten(1).t() + weight(repaired, "consumer.bias")
    np.testing.assert_allclose(found, rows.numpy() @ expected.T + bias, atol=1e-3)


def _block(m: Any, x: Tensor) -> Any:
    x = torch.relu(m.norm(m.stem(x)))
    x = torch.relu(m.last(torch.relu(m.mid(x))) + m.short(x))
    return m.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def residual() -> Program:
    torch.manual_seed(1)
    norm = nn.BatchNorm2d(16)
    for tensor in (*norm.parameters(), norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.2, 1.0)  # type: ignore[arg-type]
    return program_of(
        _block,
        IMAGE,
        dynamic="batch",
        stem=nn.Conv2d(3, 16, 3, bias=False),
        norm=norm,
        mid=nn.Conv2d(16, 16, 3, padding=1),
        last=nn.Conv2d(16, 12, 3, padding=1),
        short=nn.Conv2d(16, 12, 1),
        head=nn.Linear(12, 5),
    ).eval()


@pytest.fixture(scope="module")
def small(residual: Program) -> Program:
    return RemoveChannels(macs=0.5, round_to=1)(residual)


DATA = [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(16)]


def noise(program: Program, found: Program) -> float:
    x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(99))
    return relative_noise([outputs(program, x)], [outputs(found, x)])


def test_outputs_on_new_data_come_nearer(residual: Program, small: Program) -> None:
    assert noise(residual, RepairWeights(residual, DATA)(small)) < 0.3 * noise(residual, small)


def test_outputs_come_nearer_where_batch_norms_are_folded(residual: Program) -> None:
    program = Pipeline(CLEANUP)(residual)
    less = RemoveChannels(macs=0.5, round_to=1)(program)
    assert noise(program, RepairWeights(program, DATA)(less)) < 0.3 * noise(program, less)


def test_the_end_of_a_branch_makes_up_for_the_other_branch() -> None:
    def network(m: Any, x: Tensor) -> Any:
        x = torch.relu(m.first(x))
        return torch.tanh(m.wide(x)) + m.last(x)

    x = torch.randn(64, 6)
    layers: dict[str, Any] = {"first": nn.Linear(6, 8), "wide": nn.Linear(8, 3), "last": nn.Linear(8, 3)}
    program = program_of(network, x, **layers)
    small = without(program, "first.weight", 0, 4, 5)
    repaired = RepairWeights(program, [x, x])(small)
    left = (outputs(program, x) - outputs(repaired, x)).double()
    hidden = torch.relu(functional.linear(x, weight(small, "first.weight"), weight(small, "first.bias"))).double()
    # Least squares leave nothing that goes along with what the last layer reads, or with its bias.
    torch.testing.assert_close(left.mT @ hidden / 64, torch.zeros(3, 5, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(left.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    assert float(left.abs().max()) > 1e-2


def test_layers_with_unchanged_inputs_share_their_tensors(residual: Program) -> None:
    small = without(residual, "mid.weight", *range(8))
    repaired = RepairWeights(residual, DATA)(small)
    assert weight(repaired, "last.weight") is not weight(small, "last.weight")
    for name in ("stem.weight", "norm.weight", "mid.weight"):
        assert get_attribute(repaired.module, name) is get_attribute(small.module, name)


def test_a_layer_norm_over_fewer_channels_is_fitted_channel_by_channel() -> None:
    x = torch.randn(256, 6)
    program = program_of(
        lambda m, x: m.second(torch.relu(m.norm(m.first(x)))),
        x,
        first=nn.Linear(6, 8),
        norm=nn.LayerNorm(8),
        second=nn.Linear(8, 3),
    )
    small = without(program, "first.weight", 1, 6)
    repaired = RepairWeights(program, [x, x])(small)
    left = [0, 2, 3, 4, 5, 7]
    hidden = functional.linear(x, weight(small, "first.weight"), weight(small, "first.bias"))
    normalized = functional.layer_norm(hidden, [6])
    wanted = functional.layer_norm(
        functional.linear(x, weight(program, "first.weight"), weight(program, "first.bias")), [8]
    )
    for channel, place in enumerate(left):
        slope, shift = np.polyfit(normalized[:, channel].double().numpy(), wanted[:, place].double().numpy(), 1)
        assert float(weight(repaired, "norm.weight")[channel]) == pytest.approx(slope, abs=1e-4)
        assert float(weight(repaired, "norm.bias")[channel]) == pytest.approx(shift, abs=1e-4)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Any:
        return self.second(torch.relu(self.first(x))) + 0 * attention_mask[..., None]


def test_what_padding_holds_does_not_count() -> None:
    mask = (torch.arange(5) < torch.arange(1, 6).repeat(4)[:, None]).float()
    x = torch.randn(20, 5, 6)
    program = capture(Masked(), (x, mask))
    small = without(program, "first.weight", 0, 4)
    other = torch.where(mask[..., None] > 0, x, 100.0)
    found = [weight(RepairWeights(program, [(item, mask)])(small), "second.weight") for item in (x, other)]
    torch.testing.assert_close(*found)
    assert not torch.equal(found[0], weight(small, "second.weight"))


def test_what_does_not_help_is_left_out(residual: Program, small: Program, monkeypatch: Any) -> None:
    def worse(program: Program, *_: Any) -> dict[str, tuple[Tensor, Tensor]]:
        return {"linear": (weight(program, "head.weight") * 50, weight(program, "head.bias"))}

    monkeypatch.setattr(repair_weights, "repaired_weights", worse)
    found = RepairWeights(residual, DATA)(small)
    assert torch.equal(weight(found, "head.weight"), weight(small, "head.weight"))
    assert any("does not bring the outputs nearer" in note for note in found.notes)


@pytest.mark.parametrize("dynamic", ["batch", None])
def test_few_samples_in_one_item_are_not_learnt_by_heart(dynamic: str | None) -> None:
    """What is gone is independent of what is left: 16 samples are fitted well by 15 others, and nothing new is."""
    first, second = nn.Linear(16, 16, bias=False), nn.Linear(16, 4)
    with torch.no_grad():
        first.weight.copy_(torch.eye(16))
        second.weight.fill_(1.0)
    program = capture(nn.Sequential(first, second).eval(), (torch.randn(16, 16),), dynamic=dynamic)
    pruned = without(program, "0.weight", 0)
    fresh = [torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(1, 9)]
    exact, before = ([outputs(which, x) for x in fresh] for which in (program, pruned))
    for seed in range(10, 20):
        data = [torch.randn(16, 16, generator=torch.Generator().manual_seed(seed))]
        after = [outputs(RepairWeights(program, data)(pruned), x) for x in fresh]
        assert relative_noise(exact, after) < 4 * relative_noise(exact, before)  # 200 without judges


def test_a_layer_over_fewer_heads_beside_the_batch_is_left_alone() -> None:
    """Its rows are other ones than the original's: heads are gone from [batch * heads, width]."""

    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(6, 12), nn.Linear(4, 4), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.last(self.inner(self.first(x).reshape(x.shape[0] * 3, 4)).relu().reshape(-1, 12))
            return result

    torch.manual_seed(0)
    program = capture(Folded().eval(), (torch.randn(4, 6),), dynamic="batch")
    small = without(program, "first.weight", 0, 4)  # position 0 of every head, and a head
    data = [torch.randn(16, 6) for _ in range(8)]
    repaired = RepairWeights(program, data)(small)
    assert torch.equal(weight(repaired, "inner.weight"), weight(small, "inner.weight"))
    x = torch.randn(32, 6)
    exact = [outputs(program, x)]
    assert relative_noise(exact, [outputs(repaired, x)]) < relative_noise(exact, [outputs(small, x)])


def test_nothing_removed_is_nothing_to_do(residual: Program) -> None:
    assert RepairWeights(residual, DATA)(residual) is residual


def test_a_program_pruned_twice_is_repaired_towards_either(residual: Program, small: Program) -> None:
    twice = without(small, "mid.weight", 0, 3)
    for original in (residual, small):
        assert noise(original, RepairWeights(original, DATA)(twice)) < 0.5 * noise(original, twice)


def test_a_layer_that_was_folded_since_is_named() -> None:
    norm = nn.BatchNorm1d(3)
    nn.init.uniform_(norm.running_mean)  # type: ignore[arg-type]
    x = torch.randn(32, 6)
    program = program_of(
        lambda m, x: m.norm(m.second(torch.relu(m.first(x)))),
        x,
        first=nn.Linear(6, 8),
        second=nn.Linear(8, 3),
        norm=norm,
    ).eval()
    small = without(Pipeline(CLEANUP)(program), "first.weight", 1)
    repaired = RepairWeights(program, [x])(small)
    assert [note.startswith("Not repaired: linear_1: original has no such node") for note in repaired.notes] == [True]
    assert RepairWeights(Pipeline(CLEANUP)(program), [x])(small).notes == ()


def test_a_weight_that_two_layers_read_is_left_alone() -> None:
    x = torch.randn(32, 6)
    layers: dict[str, Any] = {"a": nn.Linear(6, 8), "b": nn.Linear(6, 8), "tied": nn.Linear(8, 3)}
    program = program_of(lambda m, x: m.tied(torch.relu(m.a(x))) * m.tied(torch.tanh(m.b(x))), x, **layers)
    small = without(program, "a.weight", 1, 4)
    notes = RepairWeights(program, [x])(small).notes
    assert sum("it has no weights of its own that can be fitted" in note for note in notes) == 2


def test_a_repaired_program_is_saved_exported_and_proved(residual: Program, small: Program, tmp_path: Path) -> None:
    repaired = RepairWeights(residual, DATA)(small)
    assert repaired.kept == small.kept and repaired.history[-1].startswith("RepairWeights(")
    repaired.save(tmp_path / "small.pt2")
    assert torch.equal(outputs(load(tmp_path / "small.pt2"), IMAGE), outputs(repaired, IMAGE))
    cleaned = Pipeline(CLEANUP)(repaired)
    export.to_onnx(cleaned, tmp_path / "small.onnx")
    export.validate(tmp_path / "small.onnx", cleaned, (IMAGE,))


BAD: list[tuple[Callable[[Program], Program], str]] = [
    (lambda small: program_of(lambda m, x: m.a(x), torch.randn(2, 4), a=nn.Linear(4, 4)), "other tensors"),
    (lambda small: RemoveChannels(macs=0.5, round_to=1)(small), "in its history"),
    (lambda small: conv_network(nn.Sequential(nn.Conv2d(8, 5, 7), nn.Flatten())), "other tensors|no part of|No node"),
]


@pytest.mark.parametrize(("original", "message"), BAD)
def test_an_original_that_is_none_is_refused(
    small: Program, original: Callable[[Program], Program], message: str
) -> None:
    with pytest.raises(PassError, match=message):
        RepairWeights(original(small), DATA)(small)


@pytest.mark.parametrize("data", [[], [torch.zeros(0, 3, 8, 8)], [torch.zeros(2, 4, 8, 8)], [IMAGE / 0]])
def test_bad_data_is_refused(residual: Program, small: Program, data: list[Tensor]) -> None:
    with pytest.raises(DataError):
        RepairWeights(residual, data)(small)
