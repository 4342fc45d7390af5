"""The texts that the command line takes for inputs, dynamic dimensions and files."""

import os
from pathlib import Path

import pytest
import torch

from fxopt.errors import DataError, ExportError
from fxopt.options import check_writable, parse_dynamic, parse_inputs, write_text


def test_inputs_without_names_are_positional() -> None:
    first, second = parse_inputs(["1x3x8x8", "2,5:int64"])
    assert (tuple(first.shape), first.dtype) == ((1, 3, 8, 8), torch.float32)
    assert (tuple(second.shape), second.dtype) == ((2, 5), torch.int64)
    assert first.std() > 0.5


def test_inputs_with_names_are_keywords() -> None:
    inputs = parse_inputs(["ids=1x128:int64", "mask=1x128:bool"])
    assert {name: (tuple(value.shape), value.dtype) for name, value in inputs.items()} == {
        "ids": ((1, 128), torch.int64),
        "mask": ((1, 128), torch.bool),
    }


def test_no_input_is_none() -> None:
    assert parse_inputs([]) is None


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["1x3xhigh"], "is not understood"),
        (["x="], "is not understood"),
        (["1x3:float31"], "no dtype 'float31'"),
        (["x=1x3", "1x3"], "none of them a name"),
        (["x=1x3", "x=1x4"], "another name"),
    ],
)
def test_wrong_inputs(texts: list[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse_inputs(texts)


@pytest.mark.parametrize(
    ("texts", "dims"),
    [
        ([], None),
        (["none"], None),
        (["batch"], "batch"),
        (["ids:0=batch,1=sequence"], {"ids": {0: "batch", 1: "sequence"}}),
        (["ids:0=batch", "mask:0=batch,-1=sequence"], {"ids": {0: "batch"}, "mask": {0: "batch", -1: "sequence"}}),
        (["ids:0=batch", "ids:1=sequence"], {"ids": {0: "batch", 1: "sequence"}}),
    ],
)
def test_dynamic(texts: list[str], dims: object) -> None:
    assert parse_dynamic(texts) == dims


@pytest.mark.parametrize("texts", [["ids:batch"], ["ids:0=1"], ["ids"] * 2, [""], ["0=batch"]])
def test_wrong_dynamic(texts: list[str]) -> None:
    with pytest.raises(DataError, match="is not understood"):
        parse_dynamic(texts)


def test_writable_paths(tmp_path: Path) -> None:
    check_writable(None, ".onnx")
    check_writable(tmp_path / "new.onnx", ".onnx")
    for path, says in (
        (tmp_path / "new.txt", "should end in .onnx"),
        (tmp_path / "no" / "new.onnx", "no folder"),
    ):
        with pytest.raises(ExportError, match=says):
            check_writable(path, ".onnx")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ExportError, match="is a folder"):
        check_writable(tmp_path / "folder.onnx", ".onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_a_text_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "new \ud800")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_text_file_in_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Cannot write"):
        write_text(tmp_path / "no" / "page.html", "text")
