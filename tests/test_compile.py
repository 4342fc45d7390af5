"""compile() as a user calls it: what it returns, what it writes, and that nothing unproved appears."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxopt
from fxopt import passes
from fxopt.choose import Candidate
from fxopt.errors import ModelError, PassError, TargetError, ValidationError
from fxopt.export.measure import KernelTime, Measurement
from fxopt.export.session import Session
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.interpret import sqnr
from fxopt.graph.ops import quantize
from fxopt.graph.rewrite import Edit
from fxopt.machine import this_machine
from fxopt.recipes import data_free_int8, quantizations
from fxopt.timed_placement import Losers


class Small(nn.Module):
    """A convolutional net with batch norm and a dict as result."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(4, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()
        )
        self.head = nn.Linear(16, 3)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.body(image)
        return {"logits": self.head(features.mean((2, 3))), "features": features}


# the module: its name in the package is that of the function
COMPILE = sys.modules["fxopt.compile"]
JOB = sys.modules["fxopt.job"]
X = torch.randn(4, 4, 10, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    net = Small().train()
    for _ in range(3):
        net(X)
    return net


@pytest.fixture(scope="module")
def result(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> fxopt.Result:
    path = tmp_path_factory.mktemp("out") / "model.onnx"
    calls: list[str] = []
    score: Callable[[Callable[..., Any]], float] = lambda net: float(net(image=X)["logits"].shape[0])  # noqa: E731
    found = fxopt.compile(
        model,
        X[:1],
        recipe="int8-static",
        calibration=[X],
        dynamic="batch",
        output=path,
        evaluate=score,
        progress=lambda stage, done=0, total=None: calls.append(stage),
    )
    assert {"capture", "cleanup", "quantize", "emit", "validate", "measure", "evaluate"} <= set(calls)
    return found


def test_the_file_is_there_alone_and_agrees_with_the_program(result: fxopt.Result) -> None:
    assert result.output is not None and list(result.output.parent.iterdir()) == [result.output]
    logits, _ = Session(result.output)(X)
    expected = result.program(X)["logits"].detach()
    assert torch.allclose(logits, expected, atol=0.02 * float(expected.max() - expected.min()))


def test_the_model_is_left_as_it_was(model: nn.Module, result: fxopt.Result) -> None:
    assert model.training and all(module.training for module in model.modules())


def test_the_report_has_the_figures_of_both_models(result: fxopt.Result) -> None:
    report = result.report
    assert report.target == this_machine() and report.recipe == "int8-static"
    assert report.baseline.metric == report.result.metric == 4.0
    assert report.latency is not None and report.latency.speedup is not None
    assert report.census.kernels["QLinearConv"] == 2 and not report.census.unfused
    assert {error.name for error in report.differences} == {"logits", "features"}
    assert min(error.sqnr for error in report.differences) > 20
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_report_has_a_row_for_each_layer(result: fxopt.Result) -> None:
    rows = {row.name: row for row in result.report.layers}
    assert [rows[name].precision for name in ("conv2d", "conv2d_1", "linear")] == ["int8"] * 3
    assert sum(row.macs for row in rows.values()) == result.report.baseline.macs
    for name in ("conv2d", "conv2d_1"):
        seconds = rows[name].float_seconds, rows[name].integer_seconds
        assert all(time is not None and 0 <= time < 1 for time in seconds)
    assert all(row.error is not None and row.error > 20 for row in rows.values())
    assert result.report.to_dict()["layers"][0]["name"] == "conv2d"


def test_the_program_is_quantized_and_validated(result: fxopt.Result) -> None:
    assert result.validation.ok
    assert any(node.target is quantize for node in result.program.graph.nodes)
    assert result.report.history[-1].startswith("Quantize(")


@pytest.mark.parametrize(("integer_seconds", "tried"), [(60e-6, True), (40e-6, False)])
def test_dynamic_linears_alone_are_tried_where_they_may_be_about_as_fast(
    integer_seconds: float, tried: bool, model: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of 100 µs in float, 60 go to the linear: dynamic ranges may save 45 of them, and 55 is within 10 % of 60."""
    float_profile = [KernelTime("conv2d_nchwc", "Conv", 40e-6), KernelTime("linear", "Gemm", 60e-6)]
    float_profile.append(KernelTime("Reorder", "ReorderInput", 0.0))  # the least is what recording takes
    integer_profile = [KernelTime("conv2d_token_1", "QLinearConv", integer_seconds)]
    known = {True: float_profile, False: integer_profile}
    monkeypatch.setattr(JOB, "profile", lambda path, *rest, **options: known[path.parent.name == "baseline"])
    monkeypatch.setattr("fxopt.outcome.WORTH_A_TRY", 0.4)  # no placement by such times is
    monkeypatch.setattr("fxopt.outcome.slower_in_integers", lambda *rest: Losers({}, 0.0))

    def timed(files: dict[str, Path], *rest: Any) -> list[Candidate]:
        latency = Measurement(1 / 2, 1.0, 5, 1, 0.0)
        return [Candidate(name, latency, 20.0 + 5 * place) for place, name in enumerate(files)]

    monkeypatch.setattr("fxopt.outcome.try_candidates", timed)
    found = fxopt.compile(model, X[:1], calibration=[X], dynamic="batch", output=tmp_path / "m.onnx")
    assert [candidate.name for candidate in found.report.candidates] == ["static", *(["dynamic"] if tried else [])]
    precisions = {row.name: row.precision for row in found.report.layers}
    assert precisions["linear"] == ("int8 dynamic" if tried else "int8")
    assert precisions["conv2d"] == ("float" if tried else "int8")
    assert found.validation.ok


@pytest.mark.parametrize("data", [None, [torch.randn(4, 7, 64)]], ids=["nearest", "fitted"])
@pytest.mark.parametrize(("recipe", "ratio"), [("int8-weights", 0.4), ("int4-weights", 0.25)])
def test_weights_alone_are_quantized(recipe: Any, ratio: float, data: list[Tensor] | None) -> None:
    model = nn.Sequential(nn.Linear(64, 512), nn.GELU(), nn.Linear(512, 64))
    found = fxopt.compile(model, torch.randn(4, 7, 64), recipe=recipe, calibration=data, target="x86", measure=False)
    assert {row.precision for row in found.report.layers} == {recipe.replace("-", " ")}
    assert all((row.error is None) == (data is None) for row in found.report.layers)
    assert all(row.float_seconds is row.integer_seconds is None for row in found.report.layers)
    assert found.validation.ok and found.report.census.kernels["MatMulNBits"] == 2
    assert found.report.result.file_bytes < ratio * found.report.baseline.file_bytes
    assert found.report.history[-1].startswith("QuantizeWeights(" if data is None else "Gptq(")


def test_weights_alone_include_the_tables_of_embeddings() -> None:
    model = nn.Sequential(nn.Embedding(500, 64), nn.Linear(64, 500))
    tokens = torch.arange(12).view(2, 6)
    found = fxopt.compile(model, tokens, recipe="int4-weights", target="x86", measure=False)
    assert [(row.op, row.precision) for row in found.report.layers] == [
        ("aten.embedding.default", "int8 weights"),
        ("aten.linear.default", "int4 weights"),
    ]
    assert found.validation.ok and found.report.result.file_bytes < 0.25 * found.report.baseline.file_bytes


def test_a_program_can_be_compiled_and_loaded_again(model: nn.Module, tmp_path: Path) -> None:
    program = fxopt.capture(model, X[:1], dynamic="batch")
    program.save(tmp_path / "model.pt2")
    found = fxopt.compile(fxopt.load(tmp_path / "model.pt2"), recipe="float", measure=False)
    assert found.output is None and found.validation.ok
    assert found.report.latency is None


def test_dynamic_int8_needs_no_data_and_leaves_convolutions_float(model: nn.Module, tmp_path: Path) -> None:
    found = fxopt.compile(
        model, X[:1], recipe="int8-dynamic", dynamic="batch", output=tmp_path / "m.onnx", measure=False
    )
    assert found.report.recipe == "int8-dynamic" and found.validation.ok
    assert "DynamicQuantizeMatMul" in found.report.census.integer.values()
    assert "QLinearConv" not in found.report.census.kernels
    assert fxopt.load(_saved(found.program, tmp_path))(X)["logits"].shape == (len(X), 3)


def test_data_free_int8_takes_its_ranges_from_batch_norms(model: nn.Module) -> None:
    found = fxopt.compile(model, X[:1], recipe="int8-data-free", dynamic="batch", measure=False)
    assert found.report.recipe == "int8-data-free" and found.validation.ok
    assert "QLinearConv" in found.report.census.integer.values()
    assert any("from batch-norm statistics, not from data" in note for note in found.report.notes)


@pytest.mark.parametrize("uneven", [False, True])
def test_data_free_int8_equalizes_only_what_is_uneven(uneven: bool) -> None:
    """Channels from 0.01 to 100 times their size, which the next layer undoes."""
    net, scale = nn.Sequential(nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1)), torch.ones(16)
    if uneven:
        scale = torch.logspace(-2, 2, 16)
    net.get_parameter("1.weight").data *= scale
    net.get_parameter("3.weight").data /= scale[:, None, None]
    captured = fxopt.capture(net.eval(), X, dynamic="batch")
    quantized = data_free_int8(captured, fxopt.Pipeline(passes.CLEANUP)(captured), fxopt.TARGETS["x86"])({})[1]
    assert any("EqualizeLayers" in step for step in quantized.history) == uneven
    assert sqnr(captured(X), quantized(X)) > 25


def test_data_free_int8_needs_batch_norms_and_is_named_where_data_is_missing() -> None:
    net, x = nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4)), torch.randn(2, 16)
    with pytest.raises(PassError, match=r"No batch norm.*Give calibration data.*int8-dynamic"):
        fxopt.compile(net, x, recipe="int8-data-free", measure=False)
    with pytest.raises(ModelError, match=r"needs calibration data.*'int8-data-free'"):
        fxopt.compile(net, x, recipe="int8-static", measure=False)


@pytest.mark.parametrize("name", [name for name in fxopt.TARGETS if name.startswith("x86")])
@pytest.mark.parametrize("recipe", ["int8", "int8-dynamic"])
@pytest.mark.vnni
def test_the_target_of_this_machine_is_in_report_and_metadata(
    model: nn.Module, recipe: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxopt.target.this_machine", lambda: name)
    found = fxopt.compile(model, X[:1], recipe=recipe, calibration=[X], dynamic="batch", measure=False)
    assert found.report.target == name and f"target='{name}'" in " ".join(found.report.history)
    assert {entry.key: entry.value for entry in found.model.proto.metadata_props}["fxopt.target"] == name


def test_a_target_of_ones_own_is_added_under_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes look targets up by name: the changed one must not pass for the row it was made of."""
    kernels = replace(fxopt.TARGETS["x86"].convolution, output_minimum=1024)
    own = replace(fxopt.TARGETS["x86"], convolution=kernels)
    net = nn.Conv2d(4, 16, 3).eval()
    x = torch.randn(2, 4, 8, 8)
    with pytest.raises(TargetError, match=r"TARGETS\['mine'\]"):
        fxopt.compile(net, x, recipe="int8-static", calibration=[x], target=own, measure=False)
    monkeypatch.setitem(fxopt.TARGETS, "mine", replace(own, name="mine"))
    found = fxopt.compile(net, x, recipe="int8-static", calibration=[x], target="mine", measure=False)
    assert found.report.census.integer_kernels == 0 and found.report.target == "mine"


@pytest.mark.parametrize("target", fxopt.TARGETS.values(), ids=lambda target: target.name)
def test_every_way_to_quantize_suits_the_target(target: fxopt.Target) -> None:
    """The weights of each fit the target's kernels: emission refuses others."""
    baseline = fxopt.Pipeline(passes.CLEANUP)(fxopt.capture(nn.Linear(16, 8), torch.randn(4, 16)))
    for recipe in ("int8", "int8-dynamic"):
        for _, quantize_baseline in quantizations(recipe, baseline, target, [torch.randn(4, 16)]):
            to_onnx(quantize_baseline({})[1], target=target)


def _saved(program: fxopt.Program, folder: Path) -> Path:
    program.save(folder / "program.pt2")
    return folder / "program.pt2"


def test_a_recipe_can_be_a_list_of_passes(model: nn.Module) -> None:
    found = fxopt.compile(model, X[:1], recipe=[passes.FoldBatchNorm()], measure=False)
    assert found.report.history == ("FoldBatchNorm()",) and found.report.recipe == "custom"


def test_what_onnxruntime_does_not_fuse_goes_back_to_float(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A census that finds an unfused node once: the node must be float in the next round, and the reason kept."""
    real, rounds = JOB.validate, []

    def once_unfused(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        rounds.append(found)
        if len(rounds) > 1:
            return found
        return replace(found, census=replace(found.census, unfused={"conv2d_1": "FusedConv"}), failures=("unfused",))

    monkeypatch.setattr(JOB, "validate", once_unfused)
    found = fxopt.compile(model, X, calibration=[X], measure=False)
    assert len(rounds) == 2
    assert "FusedConv" in found.report.float_reasons["conv2d_1"]
    assert found.report.census.kernels["QLinearConv"] == 1


def _shifted(program: fxopt.Program) -> fxopt.Program:
    """Return a Program with another bias in its head: an emitter that makes a mistake."""
    edit = Edit(program, by=None)
    bias = next(node for node in edit.graph.find_nodes(op="get_attr") if node.target == "head.bias")
    edit.replace(bias, edit.add_constant("wrong", torch.ones(3), before=bias))
    return edit.finish()


def test_nothing_is_written_when_the_proof_fails(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    monkeypatch.setattr(JOB, "to_onnx", lambda program, path, **options: to_onnx(_shifted(program), path, **options))
    with pytest.raises(ValidationError, match=r"not proved[\s\S]*'logits' differs"):
        fxopt.compile(model, X[:1], recipe="float", output=path, measure=False)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_int8_without_calibration_says_what_to_pass(model: nn.Module) -> None:
    with pytest.raises(ModelError, match="calibration="):
        fxopt.compile(model, X[:1])


def test_a_failing_pass_is_named(model: nn.Module) -> None:
    def explode(program: fxopt.Program) -> fxopt.Program:
        raise RuntimeError("boom")

    with pytest.raises(PassError, match="explode failed"):
        fxopt.compile(model, X[:1], recipe=[explode], measure=False)


def test_a_model_that_draws_random_numbers_is_refused() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(ValidationError, match="does not agree with the model"):
        fxopt.compile(Noise(), torch.randn(2, 3), recipe="float", measure=False)


def test_a_number_computed_from_a_dynamic_size_is_found() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[: int(x.shape[0] / 2)].sum(0)

    with pytest.raises(ValidationError, match=r"at batch=9[\s\S]*fewer dynamic dimensions"):
        fxopt.compile(Half(), torch.randn(4, 3), recipe="float", dynamic="batch", measure=False)
