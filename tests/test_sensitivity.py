"""The noise of one quantized value: against a Program in which nothing else is quantized."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxopt.graph.interpret import run
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import Edit
from fxopt.passes.quantize import Calibrate, InsertObservers, QuantizeDynamic
from fxopt.sensitivity import dynamic_key, sensitivity
from tests.passes.quantize.nets import Residual, images, program_of


def relative(exact: Sequence[Any], found: Sequence[Any]) -> tuple[float, ...]:
    pairs = [(left.double(), right.double()) for left, right in zip(exact, found, strict=True)]
    return tuple(float((left - right).square().sum() / left.square().sum()) for left, right in pairs)


def only(calibrated: Program, name: str | None) -> Program:
    """Return the Program without all its fake quantizations but one."""
    edit = Edit(calibrated, by=None)
    for node in list(edit.calls(fake_quantize)):
        if named(node) != name:
            edit.replace(node, node.args[0])  # type: ignore[arg-type]
    return edit.finish()


def named(fake: fx.Node) -> str:
    source = fake.args[0]
    assert isinstance(source, fx.Node)
    return str(source.target) if is_constant(source) else source.name


ITEMS = [(torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)),) for seed in range(6)]


@pytest.fixture(scope="module")
def calibrated() -> Program:
    torch.manual_seed(0)
    program = program_of(Residual(), images())
    return Calibrate([item for (item,) in ITEMS])(InsertObservers()(program))


def test_each_value_alone_makes_its_own_noise(calibrated: Program) -> None:
    item = (images(),)
    exact = run(only(calibrated, None), item)
    found = sensitivity(calibrated, [item])
    assert set(found) == {named(node) for node in calibrated.graph.nodes if node.target is fake_quantize}
    for name in ("x", "relu", "max_pool2d", "first.weight", "head.weight"):
        assert found[name] == pytest.approx(relative(exact, run(only(calibrated, name), item)), rel=1e-6)


def test_noise_is_that_of_all_items_together_and_about_adds_up(calibrated: Program) -> None:
    together = sensitivity(calibrated, ITEMS)
    exact = torch.cat([run(only(calibrated, None), item)[0] for item in ITEMS])
    every = torch.cat([run(calibrated, item)[0] for item in ITEMS])
    found = torch.cat([run(only(calibrated, "first.weight"), item)[0] for item in ITEMS])
    assert together["first.weight"] == pytest.approx(relative([exact], [found]), rel=1e-6)
    rows = [row for name, row in together.items() if name != "max_pool2d"]  # it has the rounding of what it reads
    assert sum(row[0] for row in rows) == pytest.approx(relative([exact], [every])[0], rel=0.5)
    assert sensitivity(calibrated, ITEMS) == together


def test_what_the_time_box_leaves_is_estimated(calibrated: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock takes a second: the box of four is full after the first few values."""
    ticks = iter(range(10_000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    item = (images(),)
    found = sensitivity(calibrated, [item, item], seconds=4.0)
    monkeypatch.undo()
    exact = sensitivity(calibrated, [item])
    assert set(found) == set(exact)
    same = [name for name in found if found[name] == exact[name]]
    assert 1 <= len(same) <= 5
    assert all(row[0] > 0 for name, row in found.items() if exact[name][0] > 0)


class Linears(nn.Module):
    """Three linears, of which two read one value."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.nn.functional.gelu(self.first(x))
        return self.left(x), self.right(x) * x


def test_nodes_with_ranges_of_every_run() -> None:
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    program = program_of(Linears(), x)
    names = [node.name for node in program.graph.nodes if node.target is torch.ops.aten.linear.default]
    found = sensitivity(program, [(x,)], QuantizeDynamic()(program))
    exact = run(program, (x,))
    for name in names:
        alone = QuantizeDynamic([other for other in names if other != name])(program)
        assert found[dynamic_key(name)] == pytest.approx(relative(exact, run(alone, (x,))), rel=1e-6)
    assert found[dynamic_key(names[1])][1] == 0 < found[dynamic_key(names[1])][0]
