"""The `fxopt` command: what it writes, prints and returns, and what a wrong call gets."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner, Result

import fxopt.commands
from benchmarks.zoo_models.shim import declare_torchvision_ops
from fxopt.version import __version__
from tests import cli_models

MODELS = Path(cli_models.__file__)
SMALL = f"{MODELS}:small"
FLOAT = ["--recipe", "float", "--no-measure"]


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(fxopt.commands.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"exit {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def run_onnx(path: Path, x: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(output)


def reference(x: torch.Tensor) -> Any:
    with torch.no_grad():
        return cli_models.small()[0](x)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the float model, its program and its report."""
    folder = tmp_path_factory.mktemp("compiled")
    files = ["-o", folder / "model.onnx", "--program", folder / "model.pt2", "--html", folder / "report.html"]
    result = run("compile", SMALL, "--dynamic", "batch", *FLOAT, *files)
    assert str(folder / "model.onnx") in result.stdout
    return folder


class TestCompile:
    def test_the_float_file_computes_the_model(self, compiled: Path) -> None:
        x = torch.randn(5, 4, 16, 16)  # a batch that the example did not have
        torch.testing.assert_close(run_onnx(compiled / "model.onnx", x), reference(x), rtol=1e-5, atol=1e-5)

    def test_all_files_and_no_others_are_written(self, compiled: Path) -> None:
        assert sorted(path.name for path in compiled.iterdir()) == ["model.onnx", "model.pt2", "report.html"]

    def test_int8_and_json(self, tmp_path: Path) -> None:
        output = tmp_path / "model.onnx"
        data = ["--calibration", f"{MODELS}:batches", "--evaluate", f"{MODELS}:mean_logit"]
        how = ["--recipe", "int8-static", "--target", "x86", "--dynamic", "batch"]
        result = run("compile", f"{MODELS}:talking", "-o", output, *how, *data, "--json")
        report = json.loads(result.stdout)
        assert "a factory may print" in result.stderr
        x = torch.randn(3, 4, 16, 16)
        wanted, got = reference(x), run_onnx(output, x)
        assert 0 < float((wanted - got).abs().max()) < 0.1 * float(wanted.max() - wanted.min())
        assert report["recipe"] == "int8-static"
        assert report["census"]["integer_kernels"] >= 1
        assert report["result"]["file_bytes"] == output.stat().st_size < report["baseline"]["file_bytes"]
        assert report["latency"]["speedup"] > 0
        measured = float(reference(next(cli_models.batches())).mean())
        assert report["baseline"]["metric"] == pytest.approx(measured, abs=1e-5)
        assert report["result"]["metric"] == pytest.approx(measured, abs=0.1)
        operators = {node.op_type for node in onnx.load(output).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= operators

    def test_channels_go(self, tmp_path: Path) -> None:
        options = ["--recipe", "prune", "--macs", "0.4", "--no-measure", "--json"]
        report = json.loads(run("compile", SMALL, "-o", tmp_path / "m.onnx", *options).stdout)
        assert report["result"]["macs"] == pytest.approx(0.4 * report["baseline"]["macs"], rel=0.02)
        assert onnx.load(tmp_path / "m.onnx").graph.output[0].type.tensor_type.shape.dim[1].dim_value == 4

    def test_a_program_file_is_a_model(self, compiled: Path, tmp_path: Path) -> None:
        run("compile", compiled / "model.pt2", "-o", tmp_path / "again.onnx", *FLOAT)
        x = torch.randn(2, 4, 16, 16)
        assert torch.equal(run_onnx(tmp_path / "again.onnx", x), run_onnx(compiled / "model.onnx", x))

    def test_opset_and_input_shape(self, tmp_path: Path) -> None:
        options = ["--input", "2x4x24x24", "--opset", "18", "--target", "portable"]
        run("compile", f"{MODELS}:no_example", "-o", tmp_path / "model.onnx", *options, *FLOAT)
        model = onnx.load(tmp_path / "model.onnx")
        assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
        assert [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim] == [2, 4, 24, 24]

    def test_weights_from_a_file(self, tmp_path: Path) -> None:
        model = cli_models.small()[0]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        run("compile", SMALL, "-o", tmp_path / "m.onnx", "--state-dict", tmp_path / "weights.pt", *FLOAT)
        x = torch.randn(1, 4, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(run_onnx(tmp_path / "m.onnx", x), model(x), rtol=1e-4, atol=1e-5)

    def test_a_timm_name(self, tmp_path: Path) -> None:
        declare_torchvision_ops()
        run("compile", "timm:test_resnet", "-o", tmp_path / "m.onnx", "--dynamic", "batch", *FLOAT)
        assert run_onnx(tmp_path / "m.onnx", torch.randn(3, 3, 160, 160)).shape == (3, 1000)

    def test_a_transformers_folder(self, tmp_path: Path) -> None:
        declare_torchvision_ops()
        import transformers

        config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        config.intermediate_size = 32
        model: Any = transformers.BertModel(config)
        model.save_pretrained(tmp_path / "bert")
        run("compile", f"hf:{tmp_path / 'bert'}", "-o", tmp_path / "m.onnx", *FLOAT)
        ids, mask = torch.randint(0, 50, (3, 9)), torch.ones(3, 9, dtype=torch.int64)  # other sizes than the example's
        mask[1, 4:] = 0
        session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
        got = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]
        with torch.no_grad():
            wanted = model.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-4)


class TestInspect:
    def test_counts_are_those_of_the_model(self) -> None:
        data = json.loads(run("inspect", SMALL, "--dynamic", "batch", "--json").stdout)
        model = cli_models.small()[0]
        tensors = {name: value for name, value in model.state_dict().items() if not name.endswith("tracked")}
        assert data["parameters"] == sum(value.numel() for value in tensors.values())
        assert data["macs"] == (16 * 4 * 9 + 16 * 16 * 9) * 16 * 16 + 16 * 4
        assert data["ops"]["conv2d"] == data["ops"]["relu"] == 2
        assert data["inputs"] == ["input: float32[batch, 4, 16, 16]"]

    def test_groups(self) -> None:
        channels = json.loads(run("inspect", SMALL, "--groups", "--json").stdout)["channels"]
        assert [(group["name"], group["units"], group["inexact"]) for group in channels["groups"]] == [
            ("0.weight[0]", 16, False),
            ("3.weight[0]", 16, False),
        ]
        assert channels["groups"][1]["members"] == {"3.weight[0]": 1, "3.bias[0]": 1, "7.weight[1]": 1}
        (kernels,) = [entry for entry in channels["stays"] if "slides along it" in entry["reason"]]
        assert kernels["dimensions"] == ["0.weight[2]", "0.weight[3]", "3.weight[2]", "3.weight[3]"]
        assert channels["no_rule"] == []
        least = (4 * 9 + 9) * 16 * 16 + 4
        assert channels["reachable"]["macs"] == {"least": least, "whole": (16 * 4 * 9 + 16 * 16 * 9) * 16 * 16 + 16 * 4}
        dynamic = json.loads(run("inspect", SMALL, "--groups", "--dynamic", "batch", "--json").stdout)
        assert dynamic["channels"]["reachable"] == channels["reachable"]  # of a sample, whatever was captured
        text = run("inspect", SMALL, "--groups").stdout
        assert all(words in text for words in ("Groups (2)", "3.weight[0]", "What stays", "11.5 k to 737 k (1.6 %"))

    def test_ops_without_a_rule_are_named(self) -> None:
        text = run("inspect", f"{MODELS}:counting", "--groups").stdout
        assert "Ops without a rule" in text and "aten.histc" in text

    def test_text_and_ops(self) -> None:
        text = run("inspect", SMALL, "--text", "--ops").stdout
        assert "program(input: float32[1, 4, 16, 16]):" in text
        assert "batch_norm" in text.split("program(")[0]


class TestValidate:
    def test_a_file_and_its_program(self, compiled: Path) -> None:
        result = run("validate", compiled / "model.onnx", compiled / "model.pt2", "--json")
        data = json.loads(result.stdout)
        assert data["ok"] and data["failures"] == []
        assert {run["batch"] for run in data["sizes"]} >= {1, 2}

    def test_a_file_and_its_model(self, compiled: Path) -> None:
        assert "proved" in run("validate", compiled / "model.onnx", SMALL).stdout

    def test_a_changed_weight_is_found(self, compiled: Path, tmp_path: Path) -> None:
        model = onnx.load(compiled / "model.onnx")
        weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = onnx.numpy_helper.to_array(weight).copy()
        values.flat[0] += 1
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, tmp_path / "changed.onnx")
        result = run("validate", tmp_path / "changed.onnx", compiled / "model.pt2", code=2)
        assert "not proved" in result.stdout
        assert "differs" in result.stdout


class TestBench:
    def test_a_model_and_its_baseline(self, compiled: Path) -> None:
        model = compiled / "model.onnx"
        options = ["--baseline", model, "--seconds", "0.2", "--nodes", "--json"]
        data = json.loads(run("bench", model, *options).stdout)
        assert data["seconds"] > 0
        assert data["speedup"] == pytest.approx(data["baseline_seconds"] / data["seconds"])
        assert len(data["nodes"]) >= 3
        assert "baseline" in run("bench", *[model, *options[:-2]]).stdout

    def test_inputs_by_name(self, compiled: Path) -> None:
        assert "[6, 4, 16, 16]" in run("bench", compiled / "model.onnx", "--input", "input=6x4x16x16").stdout


def test_help_lists_the_commands() -> None:
    text = run("--help").stdout
    assert all(name in text for name in ("inspect", "compile", "validate", "bench", "demo"))
    assert __version__ in run("--version").stdout


BAD_COMPILES = {
    "no such file": (["nowhere.py:make", *FLOAT], "no file nowhere.py"),
    "no such function": ([f"{MODELS}:nothing", *FLOAT], "has no 'nothing'"),
    "no such module": (["no_such_package:make", *FLOAT], "no module 'no_such_package'"),
    "no such timm model": (["timm:resnet19", *FLOAT], "Did you mean"),
    "no such folder": (["hf:nowhere", *FLOAT], "is no folder"),
    "no such program": (["nowhere.pt2", *FLOAT], "no file"),
    "no kind of name": (["resnet18", *FLOAT], "Cannot tell what model"),
    "too many examples": ([f"{MODELS}:wrong_example", *FLOAT], "do not fit"),
    "wrong example shape": ([f"{MODELS}:wrong_shape_example", *FLOAT], "cannot capture"),
    "no example": ([f"{MODELS}:no_example", *FLOAT], "--input"),
    "unknown keyword": ([SMALL, *FLOAT, "--input", "pixels=1x4x16x16"], "do not fit"),
    "a branch on a tensor": ([f"{MODELS}:branching", *FLOAT], "branches on tensor values"),
    "unknown dynamic input": ([SMALL, *FLOAT, "--dynamic", "pixels:0=batch"], "dynamic names the input 'pixels'"),
    "misspelt dynamic": ([SMALL, *FLOAT, "--dynamic", "input:batch"], "--dynamic 'input:batch' is not understood"),
    "misspelt shape": ([SMALL, *FLOAT, "--input", "1x4xwide"], "--input '1x4xwide' is not understood"),
    "no calibration": ([SMALL], "needs calibration data"),
    "empty calibration": ([SMALL, "--calibration", f"{MODELS}:no_batches"], "is empty"),
    "misshapen calibration": ([SMALL, "--calibration", f"{MODELS}:misshapen_batches"], "item 1"),
    "undefined calibration": ([SMALL, "--calibration", f"{MODELS}:undefined_batches"], "item 1"),
    "no calibration file": ([SMALL, "--calibration", "nowhere.npz"], "no calibration file nowhere.npz"),
    "unknown target": ([SMALL, *FLOAT, "--target", "vax"], "no target 'vax'"),
    "unknown opset": ([SMALL, *FLOAT, "--opset", "99"], "Opset 99"),
    "unknown recipe": ([SMALL, "--recipe", "int9"], "no recipe 'int9'"),
    "unknown drop": ([SMALL, *FLOAT, "--max-drop", "snr=30"], "max_drop='snr=30' is not understood"),
    "a drop without a metric": ([SMALL, *FLOAT, "--max-drop", "0.5"], "pass `evaluate`"),
    "unknown latency": ([SMALL, *FLOAT, "--max-latency", "fast"], "max_latency='fast' is not understood"),
    "a budget without a choice": ([SMALL, *FLOAT, "--max-latency", "3ms"], "only recipe='int8'"),
    "no weights file": ([SMALL, *FLOAT, "--state-dict", "nowhere.pt"], "no file nowhere.pt"),
    "html in no folder": ([SMALL, *FLOAT, "--html", "no/where.html"], "no folder no"),
    "program of another kind": ([SMALL, *FLOAT, "--program", "program.pth"], "should end in .pt2"),
}


@pytest.mark.parametrize("case", BAD_COMPILES)
def test_a_bad_compile_is_one_message_and_writes_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare_torchvision_ops()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_text("what was there before")
    arguments, says = BAD_COMPILES[case]
    dynamic = [] if "--dynamic" in arguments or arguments[0] != SMALL else ["--dynamic", "batch"]
    result = run("compile", "-o", "model.onnx", *arguments, *dynamic, code=2)
    assert says in result.stderr
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_text() == "what was there before"


@pytest.mark.parametrize(
    ("output", "says"), [("no/model.onnx", "no folder"), ("folder.onnx", "is a folder"), ("model.txt", ".onnx")]
)
def test_an_output_that_cannot_be_written(
    output: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    assert says in run("compile", SMALL, "-o", output, *FLOAT, code=2).stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.onnx"]


BAD_CALLS = {
    "validate no file": (["validate", "nowhere.onnx", SMALL], "no file nowhere.onnx"),
    "validate no model": (["validate", "junk.onnx", SMALL], "does not load"),
    "bench no file": (["bench", "nowhere.onnx"], "no file nowhere.onnx"),
    "bench no model": (["bench", "junk.onnx"], "does not load"),
    "inspect no model": (["inspect", "nowhere.py:make"], "no file nowhere.py"),
    "inspect a branch": (["inspect", f"{MODELS}:branching"], "branches on tensor values"),
    "demo in a file": (["demo", "-o", "junk.onnx"], "Cannot make the folder junk.onnx"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_other_bad_calls(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.onnx").write_bytes(b"no model at all")
    arguments, says = BAD_CALLS[case]
    result = run(*arguments, code=2)
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["junk.onnx"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["validate", "model.onnx", "other"], "made of another model"),
        (["bench", "model.onnx", "--input", "pixels=1x4x16x16"], "--input names pixels"),
        (["bench", "model.onnx", "--input", "1x4x16x16", "--input", "1"], "gives 2 inputs"),
        (["bench", "model.onnx", "--input", "1x5x16x16"], "fails on inputs"),
    ],
)
def test_a_file_and_inputs_that_do_not_fit(compiled: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "other.py").write_text(
        "import torch\nclass Two(torch.nn.Module):\n    def forward(self, x, y): return x + y\n"
        "def make(): return Two(), (torch.ones(2), torch.ones(2))\n"
    )
    names = {"model.onnx": str(compiled / "model.onnx"), "other": f"{tmp_path / 'other.py'}:make"}
    assert says in run(*[names.get(argument, argument) for argument in arguments], code=2).stderr


def test_debug_shows_the_traceback_of_an_error() -> None:
    error = run("inspect", f"{MODELS}:nothing", "--debug", code=2).stderr
    assert "Traceback" in error and "in import_attribute" in error
    assert run("--debug", "inspect", f"{MODELS}:nothing", code=2).stderr == error


@pytest.mark.parametrize("arguments", [["compile", SMALL], ["explode"], ["bench", "m.onnx", "--threads", "0"]])
def test_a_misuse_is_exit_2(arguments: list[str]) -> None:
    assert "Usage" in run(*arguments, code=2).stderr


def test_an_unexpected_failure_is_called_a_bug(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(fxopt.commands, "compile_model", fail)
    arguments = ["compile", SMALL, "-o", tmp_path / "m.onnx", *FLOAT]
    short, long = run(*arguments, code=1).stderr, run(*arguments, "--debug", code=1).stderr
    assert "KeyError: 'lost'" in short and "bug in fxopt" in short
    assert "Traceback" not in short
    assert "Traceback" in long


def subprocess_run(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(MODELS.parent.parent), "PATH": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


def test_the_process_exits_2_without_a_traceback(tmp_path: Path) -> None:
    command = ["-m", "fxopt", "compile", f"{MODELS}:branching", "-o", "m.onnx", "--recipe", "float"]
    done = subprocess_run(*command, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "branches on tensor values" in done.stderr
    assert f"{MODELS}:" in done.stderr  # the user's own line
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("library", ["typer", "rich"])
def test_without_the_cli_extra_the_command_says_what_to_install(library: str, tmp_path: Path) -> None:
    script = f"import sys; sys.modules['{library}'] = None; from fxopt.cli import main; main(['--help'])"
    done = subprocess_run("-c", script, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'pip install "fxopt[cli]"' in done.stderr
    assert "Traceback" not in done.stderr
