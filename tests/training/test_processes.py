"""Two processes against one with the joint batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fxopt.errors import DataError, TrainingError
from fxopt.training.items import Item
from fxopt.training.options import Training
from fxopt.training.processes import accelerator_for, part_of
from tests.passes.cleanup.checks import program_of
from tests.training.cases import CASES, run
from tests.training.models import network
from tests.two_processes import launch


class Two:
    """What part_of() asks of an Accelerator."""

    num_processes = 2

    def __init__(self, index: int) -> None:
        self.process_index = index


def test_rows_are_divided() -> None:
    _, program = network()
    item = Item((torch.arange(5.0).reshape(5, 1, 1, 1).expand(5, 3, 8, 8),), torch.arange(5), torch.arange(5) + 10)
    first, second = (part_of(item, program, Two(index)) for index in (0, 1))
    assert first.labels.tolist() == [0, 1] and second.labels.tolist() == [2, 3, 4]
    assert second.ids is not None and second.ids.tolist() == [12, 13, 14]
    assert torch.equal(torch.cat([first.inputs[0], second.inputs[0]]), item.inputs[0])


def test_what_cannot_be_divided() -> None:
    _, program = network()
    with pytest.raises(DataError, match="1 rows for 2 processes"):
        part_of(Item((torch.zeros(1, 3, 8, 8),)), program, Two(0))
    fixed = program_of(lambda m, x: x * 2, torch.randn(4, 3))
    with pytest.raises(TrainingError, match='capture the Program with dynamic="batch"'):
        part_of(Item((torch.zeros(4, 3),)), fixed, Two(0))


def test_one_process_keeps_the_tensors_where_they_are() -> None:
    _, program = network()
    accelerator = accelerator_for(program, Training())
    prepared = accelerator.prepare_model(program.module)
    assert prepared is program.module and accelerator.num_processes == 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Do all cases in one process, and in two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    run(one)
    launch(["tests.training.cases", str(two)])
    return one, two


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_compute_as_one(name: str, folders: tuple[Path, Path]) -> None:
    one, two = (list(map(json.loads, (path / name / "log.jsonl").read_text().splitlines())) for path in folders)
    assert len(one) == len(two) > 2
    for left, right in zip(one, two, strict=True):
        assert right["loss"] == pytest.approx(left["loss"], rel=1e-5)
        for column in left.keys() - {"seconds", "mean_over", "metric"}:  # divergences are small differences, times T^2
            assert right[column] == pytest.approx(left[column], rel=1e-5, abs=1e-6), column
        assert right["metric"] == left["metric"]
    expected, main, other = (
        load_file(folder / name / f"trained_{rank}.safetensors")
        for folder, rank in ((folders[0], 0), (folders[1], 0), (folders[1], 1))
    )
    for tensor, value in expected.items():
        assert torch.equal(main[tensor], other[tensor])
        torch.testing.assert_close(main[tensor], value, atol=1e-5, rtol=1e-4)
