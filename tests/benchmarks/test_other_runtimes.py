"""The comparison of runtimes: the exchange of arrays, the scores, the table, and what it says when a runtime fails."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from benchmarks.other_runtimes import MODELS
from benchmarks.runtime_tools import run as runner
from benchmarks.runtime_tools.cases import ALL_CASES
from benchmarks.runtime_tools.exchange import read_arrays, write_arrays
from benchmarks.runtime_tools.run import REFERENCE, WEB, Ran, Runtime, Settings, profiled_kernels, run_file
from benchmarks.runtime_tools.score import score, table

OPENVINO = Runtime("openvino", "default")
SETTINGS = Settings(None, ["int8-static"], calibration=1, held_out=1, limit=60.0)
FLOAT = torch.tensor([[11.0, 1.0], [9.0, 3.0]])  # centred [[1, -1], [-1, 1]]: two classes, though the first always wins


def ran(outputs: Tensor, runtime: Runtime = OPENVINO) -> Ran:
    return Ran("int8-static", runtime, outputs, {"version": "1", "seconds": 0.0123, "integer": 7})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with float.onnx, y = x + x, and two samples for it."""
    node = helper.make_node("Add", ["x", "x"], ["y"])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy"]
    graph = helper.make_graph([node], "double", values[:1], values[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "float.onnx"
    )
    write_arrays(tmp_path / "in.json", {"x": np.array([[1, 2], [3, 4]], np.float32)})
    return tmp_path


def test_arrays_survive_the_exchange(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "ids": np.arange(6).reshape(2, 3),
        "image": np.full((1, 2), 0.1, np.float32),
        "big": np.array([1, 2], ">i4"),
        "mask": np.array([True, False]),
    }
    write_arrays(tmp_path / "in.json", arrays, {"version": "2"})
    found, facts = read_arrays(tmp_path / "in.json")
    assert facts == {"version": "2"}
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=")
    assert (tmp_path / "in.2.raw").read_bytes() == bytes([1, 0, 0, 0, 2, 0, 0, 0])


def test_a_file_of_another_size_than_the_header_says_is_refused(tmp_path: Path) -> None:
    write_arrays(tmp_path / "out.json", {"y": np.zeros((2, 3), np.float32)})
    (tmp_path / "out.0.raw").write_bytes(bytes(20))
    with pytest.raises(ValueError, match="reshape"):
        read_arrays(tmp_path / "out.json")


def test_scores_are_against_onnxruntime_on_the_same_file_and_against_float() -> None:
    native, other = FLOAT + torch.tensor([[0.1, 0.0], [0.0, 0.0]]), FLOAT + torch.tensor([[0.0, 0.0], [2.1, 0.0]])
    result = score("net", FLOAT, [ran(native, REFERENCE), ran(other)], classifies=True)
    assert (result["samples"], result["classes"]) == (2, 2)
    mine, theirs = result["rows"]
    assert mine["to_onnxruntime"] == {"agreement": 1.0, "sqnr": float("inf"), "centred": float("inf")}
    assert mine["to_float"]["agreement"] == 1.0
    assert mine["to_float"]["sqnr"] == pytest.approx(10 * np.log10((121 + 1 + 81 + 9) / 0.01), abs=1e-3)
    assert mine["to_float"]["centred"] == pytest.approx(10 * np.log10(4 / 0.01), abs=1e-3)
    assert theirs["to_float"]["agreement"] == 0.5  # the second sample becomes [1.1, 1]
    assert theirs["to_onnxruntime"]["agreement"] == 0.5
    assert theirs["to_onnxruntime"]["centred"] == pytest.approx(10 * np.log10((1.21 + 3) / (0.01 + 4.41)), abs=1e-3)


def test_outputs_of_another_shape_agree_in_nothing() -> None:
    row = score("net", FLOAT, [ran(FLOAT[:, :1])], classifies=True)["rows"][0]
    assert row["to_float"] == {"agreement": 0.0, "sqnr": -float("inf"), "centred": -float("inf")}
    assert "to_onnxruntime" not in row


def test_table_shows_figures_and_errors() -> None:
    failed = Ran("int8-static", Runtime(WEB, "wasm"), None, {"error": "no such kernel"})
    result = score("net", FLOAT, [ran(FLOAT, REFERENCE), failed], classifies=True)
    title, _, mine, theirs = table(json.loads(json.dumps(result))).splitlines()
    assert title == "net: 2 samples of 2 classes"
    assert mine.split()[3:] == ["yes", "2/2", "inf", "inf", "2/2", "inf", "inf", "7", "12.3"]
    assert theirs.split()[3:] == ["no", "no", "such", "kernel"]


def test_table_without_classes_and_without_a_model() -> None:
    lines = table(score("net", FLOAT, [ran(FLOAT)], classifies=False)).splitlines()
    assert lines[0] == "net: 2 samples"
    assert lines[2].split()[3:] == ["yes", "inf", "inf", "7", "12.3"]
    assert table({"model": "net", "error": "it does not compile"}) == "net: it does not compile"


def test_profiled_kernels_counts_each_node_once() -> None:
    event = '{"cat" : "Node","name" :"%s_kernel_time","args" : {"op_name" : "%s","node_index" : "%d"}},'
    lines = ["[", '{"cat" : "Session","name" :"run","args" : {}},', *[event % ("a", "QLinearConv", 0)] * 2]
    lines += [event % ("a", "QLinearConv", 1), event % ("b", "Pad", 2), "]"]
    kernels = profiled_kernels("\n".join(lines))
    assert kernels == {"QLinearConv": 2, "Pad": 1}
    assert runner.integer_compute(kernels) == 2


@pytest.mark.parametrize("setting", ["all", "none"])
def test_onnxruntime_runs_sample_by_sample(folder: Path, setting: str) -> None:
    found = run_file("float", Runtime("onnxruntime", setting), SETTINGS, folder)
    assert found.outputs is not None
    assert found.outputs.tolist() == [[2.0, 4.0], [6.0, 8.0]]
    assert found.facts["seconds"] > 0
    assert found.facts.get("integer") == (0 if setting == "all" else None)


def test_a_file_that_does_not_load_is_reported(folder: Path) -> None:
    (folder / "int8-static.onnx").write_bytes(b"not a model")
    assert "does not load" in run_file("int8-static", REFERENCE, SETTINGS, folder).facts["error"]


@pytest.mark.parametrize("name", ["openvino", WEB])
def test_a_missing_environment_is_reported(folder: Path, name: str) -> None:
    runtime = next(runtime for runtime in runner.RUNTIMES if runtime.name == name)
    for environments in (None, folder):
        found = run_file("float", runtime, replace(SETTINGS, environments=environments), folder)
        assert found.outputs is None
        assert "--install" in found.facts["error"]


@pytest.mark.parametrize(
    ("program", "limit", "error"),
    [("import sys; sys.exit('no kernel')", 60.0, "no kernel"), ("import time; time.sleep(60)", 0.2, "stopped")],
)
def test_a_runtime_that_fails_is_reported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, program: str, limit: float, error: str
) -> None:
    monkeypatch.setattr(runner, "_command", lambda *_: [sys.executable, "-c", program])
    found = run_file("float", OPENVINO, replace(SETTINGS, limit=limit), folder)
    assert found.outputs is None
    assert error in found.facts["error"]


def test_models_exist_and_have_their_names() -> None:
    assert set(MODELS) <= set(ALL_CASES)
    assert all(case.name == name for name, case in ALL_CASES.items())
