"""Calibration data: every form of it gives the same inputs, and bad data is named."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fxopt.data import CalibrationData, calibration_inputs, first_samples, import_attribute, split_items
from fxopt.errors import DataError, FxoptError, ModelError
from fxopt.graph.capture import capture
from fxopt.graph.program import Program

IMAGES: Any = torch.arange(20 * 3, dtype=torch.float32).reshape(20, 3) / 60


class Weighted(nn.Module):
    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        return x * index.unsqueeze(-1)


@pytest.fixture(scope="module")
def program() -> Program:
    return capture(nn.Linear(3, 2), torch.ones(4, 3), dynamic="batch")


@pytest.fixture(scope="module")
def two_inputs() -> Program:
    return capture(Weighted(), (torch.ones(4, 3), torch.ones(4, dtype=torch.int64)), dynamic="batch")


def gathered(data: Any, program: Program) -> Tensor:
    return torch.cat([item[0] for item in calibration_inputs(data, program)])


def test_every_form_gives_the_same_inputs(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    np.savez(tmp_path / "images.npz", input=IMAGES.numpy())
    (tmp_path / "some_data.py").write_text(
        f"import torch\ndef batches():\n    x = torch.tensor({IMAGES.tolist()})\n    yield from x.split(7)\n"
    )
    monkeypatch.chdir(tmp_path)
    labels = torch.zeros(20)
    forms: dict[str, Any] = {
        "tensors": list(IMAGES.split(6)),
        "tuples": [(batch,) for batch in IMAGES.split(6)],
        "dicts": [{"input": batch} for batch in IMAGES.split(6)],
        "generator": (batch for batch in IMAGES.split(6)),
        "loader with labels": DataLoader(TensorDataset(IMAGES, labels), batch_size=6),
        "npy": tmp_path / "images.npy",
        "npz": str(tmp_path / "images.npz"),
        "file": f"{tmp_path / 'some_data.py'}:batches",
        "module": "some_data:batches",
    }
    for form, data in forms.items():
        assert torch.equal(gathered(data, program), IMAGES), form
    sys.modules.pop("some_data", None)


def test_arrays_go_to_the_inputs_of_their_names(two_inputs: Program, tmp_path: Path) -> None:
    index = np.arange(20, dtype=np.int32)
    np.savez(tmp_path / "data.npz", index=index, x=IMAGES.numpy())
    items = list(calibration_inputs(tmp_path / "data.npz", two_inputs))
    assert torch.equal(torch.cat([x for x, _ in items]), IMAGES)
    assert torch.equal(torch.cat([i for _, i in items]), torch.arange(20))


def test_arrays_go_to_keywords_in_any_order(tmp_path: Path) -> None:
    example = {"index": torch.ones(4, dtype=torch.int64), "x": torch.ones(4, 3)}  # forward has them the other way round
    program = capture(Weighted(), example, dynamic="batch")
    np.savez(tmp_path / "data.npz", x=IMAGES.numpy(), index=np.arange(20))
    for item in calibration_inputs(tmp_path / "data.npz", program):
        named = dict(zip([spec.name for spec in program.inputs], item, strict=True))
        assert named["x"].dtype == torch.float32
        assert named["index"].dtype == torch.int64


def test_fewer_samples_than_a_fixed_batch(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    with pytest.raises(DataError, match="20 samples, fewer than the model's fixed batch of 32"):
        list(calibration_inputs(tmp_path / "images.npy", capture(nn.Linear(3, 2), torch.ones(32, 3))))


def test_arrays_are_cut_to_a_fixed_batch(tmp_path: Path) -> None:
    fixed = capture(nn.Linear(3, 2), torch.ones(8, 3))
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    items = [item[0] for item in calibration_inputs(tmp_path / "images.npy", fixed)]
    assert [len(item) for item in items] == [8, 8]  # the last 4 of 20 do not fill a batch
    assert torch.equal(torch.cat(items), IMAGES[:16])


def test_calibration_data_is_read_again_and_again(two_inputs: Program) -> None:
    seen: list[tuple[int, int | None]] = []
    generator = ((x, torch.ones(len(x), dtype=torch.int64), "a label") for x in IMAGES.split(8))
    data = CalibrationData(generator, two_inputs, lambda number, count: seen.append((number, count)))
    first: list[Any] = list(data)
    second: list[Any] = list(data)
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2
    assert torch.equal(torch.cat([item[0] for item in first]), IMAGES)
    assert torch.equal(torch.cat([item[0] for item in second]), IMAGES)
    assert {len(item) for item in first} == {2}


def test_calibration_data_has_the_structure_of_the_call(tmp_path: Path) -> None:
    program = capture(Weighted(), {"x": torch.ones(4, 3), "index": torch.ones(4, dtype=torch.int64)}, dynamic="batch")
    np.savez(tmp_path / "data.npz", x=IMAGES.numpy(), index=np.arange(20))
    items: list[Any] = list(CalibrationData(tmp_path / "data.npz", program))
    assert [program(**item).shape for item in items] == [(16, 3), (4, 3)]


def test_data_streams(program: Program) -> None:
    taken = []

    def items() -> Iterator[Tensor]:
        for number in range(3):
            taken.append(number)
            yield IMAGES[:2]

    stream = calibration_inputs(items(), program)
    next(stream)
    assert taken == [0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "is empty"),
        (iter([]), "is empty"),
        (IMAGES, "one Tensor"),
        (3, "must be iterable, got int"),
        ([IMAGES, torch.ones(2, 4)], "item 1: .*dimension 1 has size 4"),
        ([torch.ones(3)], "item 0: .*1 dimensions instead of 2"),
        ([IMAGES.double()], "item 0: .*dtype is float64"),
        ([{"pixels": IMAGES}], "item 0: .*structure"),
        ([IMAGES, IMAGES * float("nan")], "item 1: input 'input' holds NaN"),
        ([IMAGES / 0], "item 0: input 'input' holds NaN or infinity"),
        ([None], "item 0"),
        (["text"], "item 0"),
        ("images.txt", "Cannot read calibration data"),
        ("nowhere.npy", "no calibration file nowhere.npy"),
        ("nowhere.py:make", "no file nowhere.py"),
        ("math:pi", "math:pi is a float"),
    ],
)
def test_bad_data_is_named(program: Program, data: Any, says: str) -> None:
    with pytest.raises(FxoptError, match=says):
        list(calibration_inputs(data, program))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": IMAGES.numpy()}, r"not the input\(s\) index"),
        ({"x": IMAGES.numpy(), "index": np.zeros(3, np.int64)}, "different numbers of samples"),
        ({"x": IMAGES.numpy()[:0], "index": np.zeros(0, np.int64)}, "is empty"),
        ({"x": IMAGES.numpy()[:, :2], "index": np.zeros(20, np.int64)}, "item 0: .*dimension 1 has size 2"),
    ],
)
def test_bad_arrays_are_named(two_inputs: Program, tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=says):
        list(calibration_inputs(tmp_path / "data.npz", two_inputs))


@pytest.mark.parametrize("name", ["data.npz", "data.npy"])
def test_a_file_that_holds_no_arrays(program: Program, tmp_path: Path, name: str) -> None:
    for content in (b"", b"no arrays", b"PK\x03\x04 broken"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match="cannot be read"):
            list(calibration_inputs(tmp_path / name, program))


def test_objects_are_not_unpickled(program: Program, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        list(calibration_inputs(tmp_path / "data.npy", program))
    np.savez(tmp_path / "data.npz", input=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        list(calibration_inputs(tmp_path / "data.npz", program))


def test_a_scalar_array_holds_no_samples(program: Program, tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.float32(3))
    with pytest.raises(DataError, match="samples"):
        list(calibration_inputs(tmp_path / "data.npy", program))


def test_a_function_that_fails_is_named(program: Program, tmp_path: Path) -> None:
    (tmp_path / "some_failing.py").write_text("def batches():\n    raise KeyError('lost')\n")
    with pytest.raises(DataError, match="batches failed: KeyError"):
        list(calibration_inputs(f"{tmp_path / 'some_failing.py'}:batches", program))
    sys.modules.pop("some_failing", None)


def test_an_attribute_that_does_not_exist() -> None:
    with pytest.raises(ModelError, match=r"fxopt\.demo has no 'model_demo'"):
        import_attribute("fxopt.demo:model_demo")
    with pytest.raises(ModelError, match="not of the form"):
        import_attribute("demo_model")


def test_only_as_many_samples_as_asked_for_are_taken() -> None:
    items = [(torch.zeros(4, 3),) for _ in range(10)]
    assert len(first_samples(items, 9)) == 3
    assert len(first_samples(items, 1)) == 1
    assert first_samples([], 5) == []


def test_items_are_split_along_a_dynamic_batch_only() -> None:
    """Every sample is there once, in order; a batch that is fixed, or inputs of which one has none, stay whole."""

    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y.sum()

    x, y = torch.arange(20.0).reshape(10, 2), torch.arange(10.0).reshape(10, 1)
    both = capture(Two(), (x, y), dynamic="batch")
    parts = split_items([(x, y)], both, 4)
    assert [len(part[0]) for part in parts] == [4, 4, 2]
    assert torch.equal(torch.cat([part[0] for part in parts]), x)
    assert torch.equal(torch.cat([part[1] for part in parts]), y)
    assert split_items([{"x": x, "y": y}], both, 10)[0].keys() == {"x", "y"}
    fixed = capture(Two(), (x, y))
    assert len(split_items([(x, y)], fixed, 4)) == 1
