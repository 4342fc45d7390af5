"""The commands: inspect, compile, validate, bench, demo. Each turns its options into one call of the library."""

from __future__ import annotations

import traceback
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from torch import nn
from typer.core import TyperGroup

from fxopt import display
from fxopt.channel_report import channel_report
from fxopt.compile import Result, example_of, resolve_target
from fxopt.compile import compile as compile_model
from fxopt.data import import_attribute
from fxopt.demo.run import run_demo
from fxopt.errors import FxoptError, ModelError
from fxopt.export.measure import measure, profile
from fxopt.export.session import Session
from fxopt.export.validate import FLOAT_TOLERANCE, INTEGER_SQNR
from fxopt.export.validate import validate as validate_model
from fxopt.graph.capture import call_of, capture
from fxopt.graph.program import Program
from fxopt.inspection import inspection, session_inputs
from fxopt.models import FORMS, LoadedModel, load_model, with_inputs
from fxopt.options import DIMENSIONS_FORM, INPUT_FORM, check_writable, parse_dynamic, parse_inputs
from fxopt.report import plain
from fxopt.target import TARGETS
from fxopt.version import __version__

DEBUG = "fxopt.debug"
BUG, USER_ERROR = 1, 2


class Commands(TyperGroup):
    """The commands, with errors told in one message instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; exit 2 on an error that the user can mend, 1 on a bug."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default" if ctx.meta.get(DEBUG) else "ignore")
                return super().invoke(ctx)
        except FxoptError as error:
            _fail(ctx, str(error), error, USER_ERROR)
        except Exception as error:
            if isinstance(error, BrokenPipeError) or type(error).__module__.startswith(("typer", "click")):
                raise  # usage errors and exits: typer's own business
            text = (
                f"{type(error).__name__}: {error}\nThis is a bug in fxopt: please report it, with what --debug prints."
            )
            _fail(ctx, text, error, BUG)


def _fail(ctx: Any, message: str, error: Exception, code: int) -> NoReturn:
    if ctx.meta.get(DEBUG):
        traceback.print_exception(error)
    display.show_error(message)
    raise typer.Exit(code)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Compile a PyTorch model for deployment: rewrite its graph, quantize it, write ONNX and prove the file.",
)


def _set_debug(ctx: typer.Context, value: bool) -> bool:
    ctx.meta[DEBUG] = ctx.meta.get(DEBUG, False) or value
    return value


def _show_version(value: bool) -> None:
    if value:
        print(f"fxopt {__version__}")
        raise typer.Exit()


Model = Annotated[str, typer.Argument(metavar="MODEL", help=f"{FORMS}.")]
OnnxFile = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The ONNX file.")]
Inputs = Annotated[list[str] | None, typer.Option("--input", metavar="SHAPE", help=f"An example input: {INPUT_FORM}.")]
Dims = Annotated[
    list[str] | None, typer.Option("--dynamic", metavar="DIMS", help=f"Dynamic dimensions: {DIMENSIONS_FORM}; or none.")
]
StateDict = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Weights: .safetensors, or .pt with plain tensors.")
]
TargetName = Annotated[str, typer.Option(metavar="NAME", help=f"auto (this machine), {', '.join(TARGETS)}.")]
MaxDrop = Annotated[
    str | None,
    typer.Option(metavar="DROP", help="int8: what the metric may lose, or sqnr=30, kl=0.01, agreement=0.99."),
]
MaxLatency = Annotated[
    str | None, typer.Option(metavar="TIME", help="int8, prune: a share of float's latency, 0.5, or a time, 3ms.")
]
Macs = Annotated[
    float | None, typer.Option(metavar="SHARE", help="prune, prune-int8: the multiply-accumulates to leave, 0.5.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and only JSON, to stdout.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of onnxruntime.")]
Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_set_debug, is_eager=True, expose_value=False, help="Show tracebacks, warnings."),
]
Version = Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")]


@app.callback()
def options(version: Version = False, debug: Debug = False) -> None:
    """Compile a PyTorch model for deployment: rewrite its graph, quantize it, write ONNX and prove the file."""


@app.command()
def inspect(
    model: Model,
    input: Inputs = None,
    dynamic: Dims = None,
    state_dict: StateDict = None,
    ops: Annotated[bool, typer.Option("--ops", help="Count every op.")] = False,
    groups: Annotated[
        bool, typer.Option("--groups", help="Show which channels can be removed, what stays and why.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="Print the program itself.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Capture a model and show what it is made of: inputs, outputs, ops, parameters, multiply-accumulates."""
    with display.progress() as stage:
        program = _captured(model, input, dynamic, state_dict, stage)
    data = inspection(model, program)
    channels = {"channels": channel_report(program)} if groups else {}
    if json:
        display.show_json({**data, **channels, **({"text": str(program)} if text else {})})
        return
    display.show(*display.inspection_parts(data), *([display.ops_table(data["ops"])] if ops else []))
    if groups:
        display.show(*display.channel_parts(channels["channels"]))
    if text:
        print(str(program), end="")


@app.command()
def compile(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.onnx", help="Where to write the ONNX file.")],
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="int8 (the best), int8-static, int8-dynamic, int8-data-free, int8-weights, int4-weights, prune, "
            "prune-int8 or float.",
        ),
    ] = "int8",
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help="Inputs for int8: .npz, .npy, module:function, file.py:function.")
    ] = None,
    target: TargetName = "auto",
    opset: Annotated[int | None, typer.Option(metavar="N", help="ONNX opset, 18 to 23.")] = None,
    input: Inputs = None,
    dynamic: Dims = None,
    state_dict: StateDict = None,
    evaluate: Annotated[
        str | None,
        typer.Option(metavar="FUNCTION", help="module:function: callable model -> metric, higher is better."),
    ] = None,
    max_drop: MaxDrop = None,
    max_latency: MaxLatency = None,
    macs: Macs = None,
    measure: Annotated[bool, typer.Option("--measure/--no-measure", help="Time it against the float model.")] = True,
    program: Annotated[Path | None, typer.Option(metavar="FILE.pt2", help="Also save the compiled program.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also write the report as a page.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile a model to an ONNX file, which appears only after it is proved."""
    for path, suffix in ((output, ".onnx"), (program, ".pt2"), (html, ".html")):
        check_writable(path, suffix)
    found = resolve_target(target)
    with display.progress() as stage:
        loaded = _loaded(model, input, dynamic, state_dict, stage)
        result = compile_model(
            loaded.model,
            loaded.example_inputs,
            recipe=recipe,  # type: ignore[arg-type]  # compile() says which names there are
            calibration=calibration,
            evaluate=import_attribute(evaluate) if evaluate else None,
            target=found,
            dynamic=loaded.dynamic,
            output=output,
            opset=opset,
            max_drop=max_drop,
            max_latency=max_latency,
            macs=macs,
            measure=measure,
            name=model,
            progress=stage,
        )
    if program is not None:
        result.program.save(program)
    _show_result(result, html, json, program)


def _show_result(result: Result, html: Path | None, json: bool, *others: Path | None) -> None:
    if html is not None:
        result.report.to_html(html)
    if json:
        display.show_json(result.report.to_dict())
        return
    display.show(*display.report_parts(result.report))
    display.show(f"written: {', '.join(str(path) for path in (result.output, html, *others) if path is not None)}")


@app.command()
def validate(
    onnx_file: OnnxFile,
    model: Annotated[str, typer.Argument(metavar="PROGRAM", help="What it was made of: a .pt2 file, or a MODEL.")],
    input: Inputs = None,
    dynamic: Dims = None,
    state_dict: StateDict = None,
    target: TargetName = "auto",
    tolerance: Annotated[float, typer.Option(help="Float: largest error over the output's range.")] = FLOAT_TOLERANCE,
    sqnr: Annotated[float, typer.Option(help="Integer: least signal to noise, in dB.")] = INTEGER_SQNR,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove an ONNX file against the program it was made of; exit 2 if it differs."""
    found = resolve_target(target)
    session = _session(onnx_file)
    with display.progress() as stage:
        program = _captured(model, input, dynamic, state_dict, stage)
        _check_same_call(onnx_file, session, program)
        given = parse_inputs(input or ())
        inputs = example_of(program) if given is None else program.flatten(*call_of(given)[0], **call_of(given)[1])
        stage("validate")
        result = validate_model(onnx_file, program, inputs, target=found, tolerance=tolerance, sqnr=sqnr)
    if json:
        display.show_json({"ok": result.ok, **plain(asdict(result))})
    else:
        display.show(*display.validation_parts(str(onnx_file), result))
    if not result.ok:
        raise typer.Exit(USER_ERROR)


def _check_same_call(path: Path, session: Session, program: Program) -> None:
    inputs = [spec.name for spec in program.inputs]
    outputs = [spec.name for spec in program.outputs if spec is not None]
    for what, wanted, got in (("inputs", inputs, session.inputs), ("outputs", outputs, session.outputs)):
        if len(wanted) != len(got):
            names = f"{', '.join(got)}, but the program {', '.join(wanted)}"
            raise ModelError(f"{path} has the {what} {names}: it was made of another model.")


@app.command()
def bench(
    onnx_file: OnnxFile,
    baseline: Annotated[Path | None, typer.Option(metavar="FILE.onnx", help="A second model, run alternately.")] = None,
    threads: Threads = 1,
    seconds: Annotated[float, typer.Option(min=0.1, help="About how long to measure.")] = 3.0,
    input: Inputs = None,
    target: TargetName = "auto",
    nodes: Annotated[bool, typer.Option("--nodes", help="Also show the slowest nodes.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time an ONNX file in onnxruntime, alternately with a baseline if one is given."""
    settings = resolve_target(target).session
    session = _session(onnx_file)
    if baseline is not None and _session(baseline).inputs != session.inputs:
        raise ModelError(f"{baseline} takes other inputs than {onnx_file}; the two cannot be compared.")
    inputs = session_inputs(session, parse_inputs(input or ()))
    session(*inputs)  # a wrong shape fails here, in words
    with display.progress() as stage:
        stage("measure")
        result = measure(onnx_file, inputs, baseline=baseline, threads=threads, seconds=seconds, settings=settings)
        slowest = profile(onnx_file, inputs, settings=settings) if nodes else []
    if json:
        kernels = {"nodes": [asdict(kernel) for kernel in slowest]} if nodes else {}
        display.show_json(plain({**asdict(result), "speedup": result.speedup, **kernels}))
        return
    shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in zip(session.inputs, inputs, strict=True))
    display.show(f"inputs: {shapes}", display.bench_table(str(onnx_file), str(baseline) if baseline else None, result))
    if nodes:
        display.show(display.profile_table(slowest))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write the files.")] = Path(
        "fxopt-demo"
    ),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile an embedded classifier of handwritten digits to int8 and compare both on its test images."""
    with display.progress() as stage:
        result = run_demo(output, stage)
    _show_result(result, output / "report.html", json, output / "report.json")


def _loaded(
    name: str, inputs: list[str] | None, dynamic: list[str] | None, state_dict: Path | None, stage: Any
) -> LoadedModel:
    given, dims = parse_inputs(inputs or ()), parse_dynamic(dynamic or ())
    stage(f"load {name}")
    loaded = with_inputs(load_model(name, state_dict), given)
    if isinstance(loaded.model, Program) and dynamic:
        raise ModelError(f"{name} is already captured; its dynamic dimensions cannot be changed. Leave --dynamic out.")
    if dynamic:
        loaded = replace(loaded, dynamic=dims)
    if loaded.example_inputs is None and isinstance(loaded.model, nn.Module):
        raise ModelError(
            f"{name} comes without example inputs. Pass --input SHAPE, for example --input 1x3x224x224, "
            "or let the factory return (model, example_inputs)."
        )
    return loaded


def _captured(
    name: str, inputs: list[str] | None, dynamic: list[str] | None, state_dict: Path | None, stage: Any
) -> Program:
    loaded = _loaded(name, inputs, dynamic, state_dict, stage)
    if isinstance(loaded.model, Program):
        return loaded.model
    stage("capture")
    return capture(loaded.model, loaded.example_inputs, dynamic=loaded.dynamic)


def _session(path: Path) -> Session:
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    return Session(path)
