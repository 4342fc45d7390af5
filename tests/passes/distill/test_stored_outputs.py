"""A teacher's outputs on disk: what is read is what the teacher gives, and nothing else is accepted."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxopt.errors import DataError, PassError
from fxopt.graph.capture import capture
from fxopt.graph.program import Program
from fxopt.graph.taps import Tap, tap_losses
from fxopt.passes.distill import KLDivergence, StoredOutputs, store_outputs, with_ids
from tests.passes.cleanup.checks import program_of


def _classify(m: Any, x: Tensor) -> Any:
    hidden = m.norm(m.first(x))
    return m.dropout(m.second(hidden.relu())), None, hidden.unsqueeze(-1)


@pytest.fixture(scope="module")
def teacher() -> Program:
    torch.manual_seed(0)
    layers = {
        "first": nn.Linear(4, 6),
        "norm": nn.BatchNorm1d(6),
        "second": nn.Linear(6, 3),
        "dropout": nn.Dropout(0.5),
    }
    return program_of(_classify, torch.randn(2, 4), dynamic="batch", **layers)


X = torch.randn(11, 4, generator=torch.Generator().manual_seed(1))


def loader() -> DataLoader[Any]:
    return DataLoader(with_ids(TensorDataset(X, torch.zeros(11))), batch_size=4, shuffle=True)


def items(count: int = 1) -> list[tuple[Tensor, Tensor]]:
    return [(X[:2], torch.tensor([2 * number, 2 * number + 1])) for number in range(count)]


@pytest.fixture(scope="module")
def stored(teacher: Program, tmp_path_factory: pytest.TempPathFactory) -> StoredOutputs:
    return store_outputs(teacher, loader(), tmp_path_factory.mktemp("stored") / "teacher.safetensors")


def test_values_are_those_of_the_teacher(teacher: Program, stored: StoredOutputs) -> None:
    expected = teacher.eval()(X)[0].detach()
    for ids in (torch.tensor([3]), torch.tensor([10, 0, 7, 7]), torch.arange(11, dtype=torch.int32), torch.tensor([])):
        torch.testing.assert_close(stored(ids), expected[ids.long()])
    assert len(stored) == 11 and stored.metadata["output"] == "output_0"
    assert repr(stored) == f"StoredOutputs(path={stored.path!r})"


def test_the_teacher_runs_in_inference_mode(teacher: Program, tmp_path: Path) -> None:
    """Without dropout, and without a change of batch norm's statistics."""
    before = {name: value.clone() for name, value in teacher.module.named_buffers()}
    stored = store_outputs(teacher.train(), loader(), tmp_path / "file")
    torch.testing.assert_close(stored(torch.arange(11)), teacher.eval()(X)[0].detach())
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.named_buffers())


def test_another_output_in_float16(teacher: Program, tmp_path: Path) -> None:
    stored = store_outputs(teacher, loader(), tmp_path / "file", output=2, dtype=torch.float16)
    values = stored(torch.tensor([4, 9]))
    assert values.dtype is torch.float32 and values.shape == (2, 6, 1)
    assert torch.equal(values, teacher.eval()(X[[4, 9]])[2].half().float())
    assert stored.metadata["output"] == "output_2"


def test_it_is_what_a_tap_reads(teacher: Program, stored: StoredOutputs) -> None:
    student, ids = torch.randn(3, 3), torch.tensor([8, 1, 5])
    loss = KLDivergence(4.0)
    found = tap_losses([Tap("logits", loss, 0, stored)], [student], None, None, ids)
    expected = loss(student, teacher.eval()(X[ids])[0].detach(), None, None)
    torch.testing.assert_close(found["logits"], expected)


def test_a_second_one_is_equal_and_reads_the_same(stored: StoredOutputs) -> None:
    again = StoredOutputs(stored.path)
    assert again == stored and hash(again) == hash(stored)
    assert torch.equal(again(torch.tensor([6])), stored(torch.tensor([6])))


def test_ids_that_are_missing(stored: StoredOutputs) -> None:
    with pytest.raises(DataError, match=r"no outputs of 2 of 4 samples: 11, -1\. Store"):
        stored(torch.tensor([3, 11, -1, 4]))
    with pytest.raises(DataError, match=r"samples: 20, 21, 22, 23, 24, \.\.\.\. Store"):
        stored(torch.arange(20, 30))


def test_ids_that_come_twice(teacher: Program, tmp_path: Path) -> None:
    for ids in ([[0, 1], [1, 2]], [[3, 3]]):
        data = [(X[:2], torch.tensor(numbers)) for numbers in ids]
        with pytest.raises(DataError, match=r"twice: [13]\. .*with_ids"):
            store_outputs(teacher, data, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ends_early_leaves_the_old_file(teacher: Program, tmp_path: Path) -> None:
    path = tmp_path / "file"
    old = store_outputs(teacher, items(), path)
    before = old(torch.tensor([0, 1]))

    def data() -> Iterator[Any]:
        yield from items()
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        store_outputs(teacher, data(), path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert torch.equal(StoredOutputs(path)(torch.tensor([0, 1])), before)
    assert len(store_outputs(teacher, [(X[:6] + 1, torch.arange(6))], path)) == 6
    assert torch.equal(old(torch.tensor([0, 1])), before)  # the old file, which is still open


def test_outputs_of_two_shapes(tmp_path: Path) -> None:
    teacher = capture(nn.ReLU(), torch.randn(2, 4), dynamic={"input": {0: "batch", 1: "tokens"}})
    data = [(torch.randn(2, 4), [0, 1]), (torch.randn(2, 6), [2, 3])]
    with pytest.raises(DataError, match=r"Item 1: output 0 .* is \[2, 6\], but \[\.\.\., 4\] before.*one length"):
        store_outputs(teacher, data, tmp_path / "file")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ([], "nothing to store: the data is empty"),
        ([(X[:2], torch.zeros(2))], "Item 0: its ids are torch.float32"),
        ([(X[:2], torch.arange(3))], r"Item 0: output 0 .* is \[2, 3\] for 3 ids"),
    ],
)
def test_data_that_does_not_fit(data: Any, text: str, teacher: Program, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=text):
        store_outputs(teacher, data, tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"output": 1}, r"no tensor output 1; choose one of \[0, 2\]"),
        ({"output": 3}, "no tensor output 3"),
        ({"dtype": torch.bfloat16}, "one of torch.float32, torch.float16, not torch.bfloat16"),
    ],
)
def test_bad_options(options: Any, text: str, teacher: Program, tmp_path: Path) -> None:
    with pytest.raises(PassError, match=text):
        store_outputs(teacher, items(), tmp_path / "file", **options)


@pytest.mark.parametrize(
    ("value", "dtype", "text"), [(float("nan"), torch.float32, "holds NaN"), (1e6, torch.float16, "1e[+]06, too large")]
)
def test_values_that_cannot_be_kept(value: float, dtype: torch.dtype, text: str, tmp_path: Path) -> None:
    teacher = capture(nn.ReLU(), torch.randn(2, 4), dynamic="batch")
    with pytest.raises(PassError, match=f"Item 0: output 0 .*{text}"):
        store_outputs(teacher, [(torch.full((2, 4), value), [0, 1])], tmp_path / "file", dtype=dtype)


def test_paths_that_cannot_be_used(teacher: Program, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    with pytest.raises(DataError, match="Cannot write"):
        store_outputs(teacher, items(), tmp_path / "nowhere" / "file")
    with pytest.raises(DataError, match=r"no file .*store_outputs"):
        StoredOutputs(tmp_path / "file")
    (tmp_path / "text").write_text("values", "utf-8")
    with pytest.raises(DataError, match="cannot be read as a safetensors file"):
        StoredOutputs(tmp_path / "text")
    save_file({"values": X}, tmp_path / "other")
    with pytest.raises(DataError, match="holds no stored outputs"):
        StoredOutputs(tmp_path / "other")


def test_without_safetensors(
    teacher: Program, stored: StoredOutputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(PassError, match=r'pip install "fxopt\[train\]"'):
        StoredOutputs(stored.path)
    with pytest.raises(PassError, match=r'pip install "fxopt\[train\]"'):
        store_outputs(teacher, items(), tmp_path / "file")
