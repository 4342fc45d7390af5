"""The comparison with the peers: its arithmetic, its tables, and what it says when a tool fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.peer_tools import environments, fxopt_tool, run
from benchmarks.peer_tools.job import samples
from benchmarks.peer_tools.run import Settings, reason
from benchmarks.peer_tools.run import _quantize as quantize_with
from benchmarks.peer_tools.table import model_table, summary
from benchmarks.peer_tools.tools import TOOLS
from benchmarks.peer_tools.verdict import Point, geometric_mean, judge


def row(tool: str, setting: str, speedup: float, sqnr: float) -> dict[str, Any]:
    return {"tool": tool, "setting": setting, "speedup_1": speedup, "sqnr": sqnr, "bytes": 50, "cpu_seconds": 1.0}


FLOAT = {"tool": "float", "setting": "", "speedup_1": 1.0, "seconds_1": 0.02, "bytes": 200}
ROWS = [
    FLOAT,
    row("fxopt", "int8", 2.0, 30.0),
    row("fxopt", "int8-static", 3.0, 20.0),
    row("onnxruntime", "minmax", 2.06, 30.0),  # 3 % faster: noise
    row("onnxruntime", "dynamic", 1.0, 30.1),  # more exact than all of ours
    row("nncf", "default", 3.0, 20.0),  # the same as one of ours
    row("quark", "u8s8", 3.2, 10.0),  # too fast
    {"tool": "aimet", "setting": "minmax", "error": "ValueError: no"},
]


@pytest.mark.parametrize(
    ("speedup", "sqnr", "dominated"),
    [
        (2.0, 30.0, True),
        (2.06, 30.0, True),
        (2.07, 30.0, False),
        (1.0, 30.01, False),
        (1.0, float("inf"), False),
        (1.0, float("-inf"), True),
    ],
)
def test_a_point_dominates_what_is_neither_faster_nor_more_exact(speedup: float, sqnr: float, dominated: bool) -> None:
    assert Point("ours", 2.0, 30.0).dominates(Point("peer", speedup, sqnr)) is dominated


def test_verdict_of_a_model() -> None:
    verdict = judge(ROWS)
    assert [point.label for point in verdict.undominated] == ["onnxruntime dynamic", "quark u8s8"]
    assert verdict.fastest == Point("quark u8s8", 3.2, 10.0)
    assert verdict.default == Point("fxopt int8", 2.0, 30.0)
    assert verdict.gain == pytest.approx(2.0 / 3.2)
    assert verdict.default_dominates is False


def test_verdict_without_peers_or_without_ours() -> None:
    assert judge(ROWS[:3]).gain is None
    alone = judge([FLOAT, ROWS[3]])
    assert (alone.default, alone.gain, alone.default_dominates) == (None, None, None)
    assert [point.label for point in alone.undominated] == ["onnxruntime minmax"]


def test_geometric_mean() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_table_shows_figures_errors_and_stars() -> None:
    lines = model_table({"model": "net", "rows": ROWS}).splitlines()
    assert lines[0] == "net: float 20.00 ms with 1 thread(s)"
    table = {tuple(line.split()[:2]): line.split()[2:] for line in lines[2:-1]}
    assert table["fxopt", "int8"] == ["2.00", "30.0", "0.25", "1.0"]
    assert table["quark", "u8s8"] == ["3.20", "10.0", "0.25", "1.0", "*"]
    assert table["aimet", "minmax"] == ["ValueError:", "no"]
    assert lines[-1] == "the default does not dominate the fastest peer (quark u8s8): its time over ours 0.62"


def test_table_of_a_model_that_could_not_be_built() -> None:
    assert model_table({"model": "net", "rows": [], "error": "no such package"}) == "net: no such package"


def test_summary() -> None:
    slow = [FLOAT, row("fxopt", "int8", 0.9, 40.0), row("nncf", "default", 0.45, 30.0)]
    text = summary([{"model": "a", "rows": ROWS}, {"model": "b", "rows": slow}])
    assert text == (
        "2 models: the fastest peer's time over ours 1.12 (geometric mean), least 0.62; the default dominates the "
        "fastest peer on 1, all peers are dominated on 1, the default is slower than float on 1"
    )
    assert summary([]) == "No model has both our default and a peer."


def test_reason_is_the_exception_that_ended_the_process() -> None:
    text = (
        "Traceback (most recent call last):\n  File 'a'\nKeyError: 1\n\nDuring handling:\n\n"
        "Traceback (most recent call last):\n  File 'b'\n    raise x\na.b.ValueError: wrong\n  more\nwarning\n"
    )
    assert reason(text) == "a.b.ValueError: wrong"
    assert reason("Killed\n\n") == "Killed"
    assert reason("") == ""


def test_a_missing_environment_is_reported(tmp_path: Path) -> None:
    settings = Settings(["nncf"], tmp_path, 1, 1, 1.0, [1], 10.0)
    assert "--install" in quantize_with("nncf", "default", settings, tmp_path)["error"]


def test_a_tool_that_fails_is_reported(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text(json.dumps({"name": "net", "kind": "cnn"}))
    settings = Settings(["onnxruntime"], None, 1, 1, 1.0, [1], 300.0)
    row = quantize_with("onnxruntime", "dynamic", settings, tmp_path)
    assert "float.onnx" in row["error"]


def test_a_file_or_a_failure_of_an_earlier_run_is_kept(tmp_path: Path) -> None:
    settings = Settings(["onnxruntime"], None, 1, 1, 1.0, [1], 300.0)
    (tmp_path / "onnxruntime-minmax.onnx").touch()
    (tmp_path / "onnxruntime-minmax.json").write_text(json.dumps({"cpu_seconds": 2.5}))
    assert quantize_with("onnxruntime", "minmax", settings, tmp_path) == {"cpu_seconds": 2.5}
    (tmp_path / "onnxruntime-entropy.json").write_text(json.dumps({"error": "ValueError: no"}))
    assert quantize_with("onnxruntime", "entropy", settings, tmp_path) == {"error": "ValueError: no"}


def test_a_point_that_nothing_dominates_is_answered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The peer at 2.5 is answered by one as fast; what is left is answered once more, and then no answer is new."""
    (tmp_path / "case.json").write_text(json.dumps({"calibration": 1, "held_out": 1, "exporter": "fxopt"}))
    asked: list[tuple[str, str]] = []

    def measure(name: str, wanted: list[tuple[str, str]], *rest: Any) -> dict[str, Any]:
        asked[:] = wanted
        ours = [row(tool, setting, 2.0, 30.0 + len(wanted)) for tool, setting in wanted if tool == "fxopt"]
        return {"model": name, "rows": [FLOAT, *ours, row("quark", "u8s8", 2.5, 20.0)]}

    monkeypatch.setattr(run, "_measure", measure)
    settings = Settings(["fxopt", "quark"], None, 1, 1, 1.0, [1], 300.0, matches=3)
    run.compare("resnet18", settings, tmp_path)
    assert asked == [
        *(("fxopt", s) for s in ("int8", "int8-static", "int8-dynamic", "latency-0.400")),
        ("quark", "u8s8"),
    ]


def test_kept_files_of_other_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text(json.dumps({"calibration": 64, "held_out": 1, "exporter": "torch"}))
    found = run.compare("resnet18", Settings(["fxopt"], None, 64, 1, 1.0, [1], 300.0), tmp_path)
    assert "'exporter': 'torch'" in found["error"] and "choose another folder" in found["error"]


def test_what_a_setting_of_ours_means() -> None:
    assert fxopt_tool.arguments("int8-static") == {"recipe": "int8-static"}
    assert fxopt_tool.arguments(run.as_fast_as(2.5)) == {"recipe": "int8", "max_latency": 0.4}


def test_samples_are_of_batch_one_and_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=np.arange(6).reshape(3, 2), mask=np.ones((3, 1)))
    found = list(samples(tmp_path / "a.npz"))
    assert [list(sample) for sample in found] == [["ids", "mask"]] * 3
    np.testing.assert_array_equal(found[1]["ids"], [[2, 3]])


def test_every_peer_with_an_environment_has_its_versions_and_every_tool_its_file() -> None:
    for name, tool in TOOLS.items():
        assert (environments.HERE / f"{tool.module}.py").exists()
        assert environments.requirements(name).exists() is tool.own_environment
    assert "matmul" in TOOLS["onnxruntime"].settings_for("transformer")
    assert "matmul" not in TOOLS["onnxruntime"].settings_for("cnn")


def test_own_pins_replace_the_project_s() -> None:
    constraints = "# tested\ntorch==2.13.0\nonnx==1.23.2\nonnx-ir==1.1.0\nml-dtypes==0.6.0\n"
    assert environments.constraints_for("peer[x]==1.0\nonnx==1.22.0\nml_dtypes==0.5.0\ntorch\n", constraints) == (
        "torch==2.13.0\nonnx-ir==1.1.0"
    )
