"""Program <-> `.pt2` file: a torch.export archive with fxopt's own description in it, as JSON.

Plain torch.export.load reads the file too, as a program of flat tensors. What torch.export does not hold (names,
dimension names, the structure of the original call, history, notes) is in the extra file `fxopt.json`. Nothing is
pickled, neither when writing nor when reading: an archive with pickled weights is refused.
"""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export import graph_signature as gs
from torch.utils import _pytree as pytree

from fxopt.errors import ModelError
from fxopt.graph import batch_norm_factor, blocks, dynamic_lstm, learned, ops, quantized, tracked
from fxopt.graph.lift import program_from_exported
from fxopt.graph.program import Program, TensorSpec
from fxopt.graph.rewrite import get_attribute, same_kind, set_attribute
from fxopt.graph.verify import verify

EXTRA_FILE = "fxopt.json"
FORMAT = 1
# torch.export.load needs the ops that these modules register.
OWN_OPS = (batch_norm_factor, blocks, dynamic_lstm, learned, ops, quantized, tracked)
# Packages that may be imported to find the class of a saved output structure (transformers' ModelOutputs).
IMPORTABLE = ("transformers",)


def save(program: Program, path: str | Path) -> None:
    """Write a Program to a `.pt2` file; the file appears complete or not at all.

    Raises ModelError if the path cannot be written, a constant of the call cannot be spelled in JSON, or a teacher is
    attached.
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise ModelError(f"A Program is saved as a .pt2 file, got '{path}'.")
    if program.taps:
        raise ModelError("The Program has a teacher attached; save the student: DetachTeacher()(program).")
    text = json.dumps(_describe(program))
    exported = to_exported(program)
    try:
        with _written_whole(path) as temporary:
            torch.export.save(exported, temporary, extra_files={EXTRA_FILE: text})
    except (OSError, RuntimeError) as error:
        raise ModelError(f"Cannot write '{path}': {error}") from error


def load(path: str | Path) -> Program:
    """Read a Program from a `.pt2` file, whether save() or torch.export.save wrote it.

    Raises ModelError if the file is missing, is no `.pt2`, holds pickled values, or is of a newer format.
    """
    path = Path(path)
    _check_archive(path)
    extra = {EXTRA_FILE: ""}
    try:
        exported = torch.export.load(str(path), extra_files=extra)
    except Exception as error:
        raise ModelError(f"torch.export cannot read '{path}': {error}") from error
    if not extra[EXTRA_FILE]:
        return verify(program_from_exported(exported, {}, ()))
    description = json.loads(extra[EXTRA_FILE])
    if description["format"] > FORMAT:
        raise ModelError(
            f"'{path}' has the format {description['format']}; this fxopt reads up to {FORMAT}: update it."
        )
    return verify(_program_of(exported, description))


@contextmanager
def _written_whole(path: Path) -> Iterator[str]:
    """Give a temporary name beside `path`; on success the file takes its place, on failure it vanishes."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.pt2")
    try:
        yield str(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_archive(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"There is no file '{path}'.")
    if not zipfile.is_zipfile(path):
        raise ModelError(
            f"'{path}' is no .pt2 archive (or it is damaged). Write one with Program.save or torch.export.save."
        )
    with zipfile.ZipFile(path) as archive:
        configs = [name for name in archive.namelist() if name.endswith("_config.json")]
        if not configs:
            raise ModelError(
                f"'{path}' is a zip archive, but no .pt2 of torch >= 2.9. Write it again with torch.export.save."
            )
        for name in configs:
            entries = json.loads(archive.read(name)).get("config", {})
            pickled = [key for key, entry in entries.items() if isinstance(entry, dict) and entry.get("use_pickle")]
            if pickled:
                raise ModelError(f"'{path}' holds '{pickled[0]}' as a pickle, which could run code when it is read.")


def _describe(program: Program) -> dict[str, Any]:
    in_text, in_notes = _dump_spec(program.in_spec, "input")
    out_text, out_notes = _dump_spec(program.out_spec, "output")
    return {
        "format": FORMAT,
        "inputs": [_dump_tensor_spec(spec) for spec in program.inputs],
        "outputs": [None if spec is None else _dump_tensor_spec(spec) for spec in program.outputs],
        "in_spec": in_text,
        "out_spec": out_text,
        "constants": [[leaf, _plain(value)] for leaf, value in program.constants.items()],
        "dims": dict(program.dims),
        "history": program.history,
        "notes": [*program.notes, *in_notes, *out_notes],
        "parameters_of_call": program.parameters_of_call,
        "tied": _tied(program.module),
        "kept": [[name, dim, list(kept)] for name, dims in program.kept.items() for dim, kept in dims.items()],
    }


def _program_of(exported: ExportedProgram, description: dict[str, Any]) -> Program:
    names = tuple(spec["name"] for spec in description["inputs"])
    program = program_from_exported(exported, {}, (), parameters=names)
    for first, second in description["tied"]:
        set_attribute(program.module, second, get_attribute(program.module, first))
    in_spec, in_notes = _load_spec(description["in_spec"], "input")
    out_spec, out_notes = _load_spec(description["out_spec"], "output")
    return replace(
        program,
        inputs=tuple(_load_tensor_spec(spec) for spec in description["inputs"]),
        outputs=tuple(spec and _load_tensor_spec(spec) for spec in description["outputs"]),
        in_spec=in_spec,
        out_spec=out_spec,
        constants={leaf: value for leaf, value in description["constants"]},
        dims=description["dims"],
        history=tuple(description["history"]),
        notes=(*description["notes"], *in_notes, *out_notes),
        parameters_of_call=tuple(description["parameters_of_call"]),
        kept=_load_kept(description.get("kept", [])),
    )


def _load_kept(entries: list[tuple[str, int, list[int]]]) -> dict[str, dict[int, tuple[int, ...]]]:
    kept: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, dim, positions in entries:
        kept.setdefault(name, {})[dim] = tuple(positions)
    return kept


def _dump_tensor_spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": str(spec.dtype).removeprefix("torch."), "shape": list(spec.shape)}


def _load_tensor_spec(spec: dict[str, Any]) -> TensorSpec:
    return TensorSpec(spec["name"], getattr(torch, spec["dtype"]), tuple(spec["shape"]))


def _plain(value: Any) -> bool | int | float | str | None:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ModelError(
        f"The Program was captured with the constant input {value!r}, a {type(value).__name__}, which cannot be saved; "
        "numbers, strings, booleans and None can."
    )


def _tied(module: nn.Module) -> list[tuple[str, str]]:
    first: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    pairs = [(first.setdefault(id(tensor), name), name) for name, tensor in named]
    return [(one, other) for one, other in pairs if one != other]


def _dump_spec(spec: pytree.TreeSpec, what: str) -> tuple[str, list[str]]:
    """Spell a structure; a class without a serialized name becomes a dict or tuple, and is noted."""
    try:
        return pytree.treespec_dumps(spec), []
    except (NotImplementedError, TypeError):
        lost: list[str] = []
        text = pytree.treespec_dumps(_without_classes(spec, lost))
    return text, [f"The saved {what} structure holds plain {' and '.join(lost)} in place of the original classes."]


def _without_classes(spec: pytree.TreeSpec, lost: list[str]) -> pytree.TreeSpec:
    if spec.is_leaf():
        return spec
    children = [_without_classes(spec.child(position), lost) for position in range(spec.num_children)]
    entry = pytree.SUPPORTED_SERIALIZED_TYPES.get(spec.type)
    if entry is not None and entry.serialized_type_name != pytree.NO_SERIALIZED_TYPE_NAME_FOUND:
        return pytree.TreeSpec(spec.type, spec.context, children)
    keys = _keys(spec.context, len(children))
    lost.append(f"{'dict' if keys else 'tuple'} for {spec.type.__name__}")
    return pytree.TreeSpec(dict if keys else tuple, keys, children)


def _keys(context: Any, count: int) -> list[str] | None:
    """Read the field names of a class out of its pytree context: [name, …], or [[name, …], …] of a dataclass."""
    for candidate in (context, context[0] if isinstance(context, (list, tuple)) and context else None):
        if (
            isinstance(candidate, (list, tuple))
            and len(candidate) == count
            and all(isinstance(k, str) for k in candidate)
        ):
            return list(candidate)
    return None


def _load_spec(text: str, what: str) -> tuple[pytree.TreeSpec, list[str]]:
    protocol, schema = json.loads(text)
    missing: list[str] = []
    schema = _known_classes(schema, missing)
    spec = pytree.treespec_loads(json.dumps([protocol, schema]))
    return spec, [f"The {what} class {name} is not known here; a dict or tuple stands for it." for name in missing]


def _known_classes(schema: dict[str, Any], missing: list[str]) -> dict[str, Any]:
    name = schema["type"]
    children = [_known_classes(child, missing) for child in schema["children_spec"]]
    if name is None or _is_registered(name):
        return {**schema, "children_spec": children}
    missing.append(name)
    keys = _keys(json.loads(schema["context"]), len(children))
    kind = "builtins.dict" if keys else "builtins.tuple"
    return {"type": kind, "context": json.dumps(keys), "children_spec": children}


def _is_registered(name: str) -> bool:
    if name not in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE and name.split(".")[0] in IMPORTABLE:
        try:
            importlib.import_module(name.rsplit(".", 1)[0])
        except ImportError:
            return False
    return name in pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE


def to_exported(program: Program) -> ExportedProgram:
    """Turn a Program into an ExportedProgram of flat tensors: parameters become placeholders again."""
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    inputs = _lift_tensors(program, graph, env)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            inputs.append(gs.InputSpec(gs.InputKind.USER_INPUT, gs.TensorArgument(node.name), None))
        if node not in env:
            env[node] = graph.node_copy(node, env.__getitem__)
            env[node].meta = {
                key: value for key, value in node.meta.items() if key in ("val", "stack_trace", "nn_module_stack")
            }
    values = graph.output_node().args[0]
    assert isinstance(values, tuple)
    outputs = [gs.OutputSpec(gs.OutputKind.USER_OUTPUT, _output_argument(value), None) for value in values]
    in_spec = pytree.tree_structure((tuple(range(len(program.inputs))), {}))
    out_spec = pytree.tree_structure(tuple(range(len(values))))
    signature = ModuleCallSignature([], [], in_spec, out_spec, [spec.name for spec in program.inputs])
    regions = nn.Module()
    for name, child in program.module.named_children():
        if isinstance(child, fx.GraphModule):
            regions.add_module(name, child)
    return ExportedProgram(
        root=regions,
        graph=graph,
        graph_signature=gs.ExportGraphSignature(inputs, outputs),
        state_dict={
            str(spec.target): _compact(get_attribute(program.module, str(spec.target)))
            for spec in inputs
            if spec.target
        },
        range_constraints=_ranges(program),
        module_call_graph=[ModuleCallEntry("", signature)],
        verifiers=[torch._export.verifier.TrainingIRVerifier],
    )


def _lift_tensors(program: Program, graph: fx.Graph, env: dict[fx.Node, Any]) -> list[gs.InputSpec]:
    """Make one placeholder a tensor, parameters first, as torch.export orders them."""
    specs: dict[str, gs.InputSpec] = {}
    nodes = program.graph.find_nodes(op="get_attr")
    tensors = [(node, get_attribute(program.module, str(node.target))) for node in nodes]
    for node, tensor in sorted(tensors, key=lambda pair: not isinstance(pair[1], nn.Parameter)):
        target = str(node.target)
        if not isinstance(tensor, Tensor):
            continue
        if target not in specs:
            is_parameter = isinstance(tensor, nn.Parameter)
            copy = graph.placeholder(f"{'p' if is_parameter else 'b'}_{node.name}")
            copy.meta = {"val": node.meta["val"]}
            kind = gs.InputKind.PARAMETER if is_parameter else gs.InputKind.BUFFER
            specs[target] = gs.InputSpec(kind, gs.TensorArgument(copy.name), target, None if is_parameter else True)
            env[node] = copy
            continue
        env[node] = next(env[other] for other, _ in tensors if str(other.target) == target)
    return list(specs.values())


def _ranges(program: Program) -> dict[Any, Any]:
    """Return the range of each symbol that occurs in a size."""
    symbols: set[Any] = set()
    for node in program.graph.nodes:
        for leaf in pytree.tree_leaves(node.meta.get("val")):
            sizes = leaf.shape if isinstance(leaf, Tensor) else (leaf,)
            symbols.update(*(size.node.expr.free_symbols for size in sizes if isinstance(size, torch.SymInt)))
    shapes = program.fake_mode.shape_env
    known = shapes.var_to_range if shapes is not None else {}
    return {symbol: known[symbol] for symbol in symbols if symbol in known}


def _output_argument(value: Any) -> Any:
    if not isinstance(value, fx.Node):
        return gs.ConstantArgument("", value)
    return gs.TensorArgument(value.name) if isinstance(value.meta["val"], Tensor) else gs.SymIntArgument(value.name)


def _compact(tensor: Tensor) -> Tensor:
    """Copy a tensor that shows a part of a larger storage, or a transposed one: torch.export.save writes it whole."""
    if tensor.is_contiguous() and tensor.untyped_storage().nbytes() <= tensor.numel() * tensor.element_size():
        return tensor
    return same_kind(tensor, tensor.detach().contiguous().clone())
