"""Calibration in two processes. Run as a module, it calibrates with every observer and writes what was found."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from fxopt.errors import PassError
from fxopt.graph.program import Program
from fxopt.passes import Calibrate, InsertObservers
from fxopt.passes.quantize.histogram import Histogram
from fxopt.passes.quantize.joint_observers import Share, joined, share_of
from fxopt.passes.quantize.observers import Observer, quantiles
from tests.passes.quantize.nets import Residual, images, program_of
from tests.two_processes import launch


def histogram_of(values: Tensor) -> Histogram:
    result = Histogram()
    for part in torch.split(values, 100):
        result.update(part, float(part.min()), float(part.max()))
    return result


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    scales=st.lists(st.floats(0.01, 100), min_size=1, max_size=4),
    shift=st.floats(-50, 50),
)
def test_a_joined_histogram_is_that_of_all_values(seed: int, scales: list[float], shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [scale * torch.randn(400, generator=generator) + shift for scale in scales]
    found, whole = joined([histogram_of(part) for part in parts]), histogram_of(torch.cat(parts))
    assert (found.low, found.high) == (whole.low, whole.high)
    assert found.counts.sum() == pytest.approx(400 * len(scales))
    assert found.start <= found.low and found.edges()[-1] >= found.high
    shares = (0.01, 0.25, 0.5, 0.75, 0.99)
    bound = 2 * (found.width + whole.width)
    gaps = _quantile_gaps(torch.cat(parts), shares)
    for ours, theirs, gap in zip(quantiles(found, shares), quantiles(whole, shares), gaps, strict=True):
        assert abs(ours - theirs) <= bound + gap


def _quantile_gaps(values: Tensor, shares: tuple[float, ...]) -> list[float]:
    """Return how far the values next to each quantile are apart: in between, a histogram may say anything."""
    ordered = values.sort().values
    places = [min(max(int(share * len(ordered)), 2), len(ordered) - 3) for share in shares]
    return [float(ordered[place + 2] - ordered[place - 2]) for place in places]


def test_histograms_of_single_values() -> None:
    same = [histogram_of(torch.full((5,), 2.0)), histogram_of(torch.full((3,), 2.0))]
    assert joined(same).counts[0] == 8 and joined(same).width == 0 and joined(same).low == 2
    spread = joined([*same, histogram_of(torch.tensor([0.0, 4.0]))])
    assert (spread.low, spread.high) == (0.0, 4.0) and spread.counts.sum() == pytest.approx(10)
    centers, counts = spread.points()
    assert counts[(centers - 2).abs() < 0.01].sum() == pytest.approx(8)
    assert joined([Histogram(), Histogram()]).counts.sum() == 0
    assert joined([Histogram(), same[0]]).low == 2


def test_shares_take_turns() -> None:
    assert [[number for number in range(5) if Share(index, 2).has(number)] for index in (0, 1)] == [[0, 2, 4], [1, 3]]


def test_all_processes_need_a_group() -> None:
    with pytest.raises(PassError, match=r'processes="all"\) needs torch\.distributed'):
        share_of("all")
    with pytest.raises(PassError, match="processes='both': choose"):
        share_of("both")  # type: ignore[arg-type]


OBSERVERS = get_args(Observer)


def observed() -> Program:
    torch.manual_seed(0)
    return InsertObservers()(program_of(Residual(), images()))


def data() -> list[Tensor]:
    """Return items of which the last is by far the largest."""
    generator = torch.Generator().manual_seed(1)
    return [(1 + 4 * (number == 6)) * torch.randn(images().shape, generator=generator) for number in range(7)]


def scales(observer: Observer, processes: Any) -> dict[str, Tensor]:
    """Return the scales and zero points that calibration finds."""
    buffers = Calibrate(data(), observer=observer, processes=processes)(observed()).module.named_buffers()
    return {name: value for name, value in buffers if name.endswith(("_scale", "_zero_point"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two")
    launch(["tests.passes.quantize.test_joint_observers", str(path)])
    return path


@pytest.mark.slow
@pytest.mark.parametrize("observer", OBSERVERS)
def test_two_processes_find_the_scales_of_one(observer: Observer, folder: Path) -> None:
    first, second = (load_file(folder / f"{observer}_{rank}.safetensors") for rank in range(2))
    expected = scales(observer, "this")
    assert first.keys() == second.keys() == expected.keys() and len(expected) > 3
    for name, value in expected.items():
        assert torch.equal(first[name], second[name])
        assert observer != "minmax" or torch.equal(first[name], value)
        close = 0.1 if observer in ("entropy", "auto") else 0.02  # divergences jump with the grid of the histogram
        torch.testing.assert_close(first[name].double(), value.double(), rtol=close, atol=1.0 * name.endswith("point"))


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    for each in OBSERVERS:
        path = Path(sys.argv[1]) / f"{each}_{torch.distributed.get_rank()}.safetensors"
        save_file({name: value.contiguous() for name, value in scales(each, "all").items()}, path)
    torch.distributed.destroy_process_group()
