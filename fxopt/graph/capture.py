"""Capture: an nn.Module and example inputs become a Program, by torch.export.

The graph stays at torch.export's training level (conv2d, batch_norm, linear, layer_norm,
scaled_dot_product_attention and lstm are whole ops). In-place ops become functional, regions without gradient are
inlined, assertions are dropped. The module is captured in inference mode and left as it was found.
"""

from __future__ import annotations

import inspect
import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_config
from torch.utils import _pytree as pytree

from fxopt.errors import CaptureError
from fxopt.graph.lift import key_text, program_from_exported
from fxopt.graph.program import Program
from fxopt.graph.recurrent import whole_recurrent_ops

Dynamic = str | Mapping[str, Mapping[int, str]] | None


def capture(model: nn.Module | ExportedProgram, example_inputs: Any = None, *, dynamic: Dynamic = None) -> Program:
    """Capture a model into a Program.

    - `model`: an nn.Module, or an ExportedProgram of the training-level IR (then `example_inputs` is not used).
    - `example_inputs`: a Tensor, a tuple (positional) or a dict (keywords) of what the model is called with.
    - `dynamic`: a name ("batch": dimension 0 of every tensor input) or {"input": {dimension: "name"}}. An example of
      size 1 in such a dimension is enough. A dimension that the model fixes is reported in `Program.notes`.

    Raises CaptureError, naming the model's own line where there is one.
    """
    if isinstance(model, ExportedProgram):
        return program_from_exported(model, {}, ())
    if not isinstance(model, nn.Module):
        raise CaptureError(f"capture() takes an nn.Module or an ExportedProgram, got {type(model).__name__}.")
    args, kwargs = _distinct(*call_of(example_inputs))
    signature = _signature(model, kwargs)
    arguments = _bind(model, signature, args, kwargs)
    names = leaf_names(arguments)
    wanted = _wanted_dims(dynamic, arguments, names)
    with _inference_mode(model), _forward_with(model, signature), _quiet():
        exported = _export(model, args, kwargs, arguments, names, wanted)
    return program_from_exported(exported, wanted, parameters=_parameter_names(signature, len(args)))


def call_of(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn example inputs (a Tensor, a tuple or a dict) into positional and keyword arguments."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise CaptureError(
        "example_inputs must be a Tensor, a tuple (positional) or a dict (keywords), "
        f"got {type(example_inputs).__name__}."
    )


def _distinct(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Copy a tensor that is passed twice: torch.export would take both inputs for one."""
    seen: set[int] = set()

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and id(leaf) in seen:
            return leaf.clone()
        seen.add(id(leaf))
        return leaf

    args, kwargs = pytree.tree_map(copy, (args, kwargs))
    return args, kwargs


def _signature(model: nn.Module, kwargs: dict[str, Any]) -> inspect.Signature:
    """Return the signature of forward with `**rest` replaced by the keywords of this call."""
    signature = inspect.signature(model.forward)
    known = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(known) == len(signature.parameters):
        return signature
    rest = set(kwargs) - {p.name for p in known}
    extra = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in kwargs if name in rest]
    return signature.replace(parameters=[*known, *extra])


def _bind(
    model: nn.Module, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(
            f"The example inputs do not fit {type(model).__name__}.forward{inspect.signature(model.forward)}: {error}. "
            "Pass a tuple for positional and a dict for keyword arguments."
        ) from None
    return dict(bound.arguments)


def leaf_names(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Map the path of each leaf of a call to its name: the parameter's, with keys and positions below it appended."""
    paths = [path for path, _ in pytree.tree_flatten_with_path(dict(arguments))[0]]
    return {pytree.keystr(path): "_".join(map(key_text, path)) for path in paths}


def _parameter_names(signature: inspect.Signature, positional: int) -> tuple[str, ...]:
    """Name the arguments in order; `*rest` is spelled out up to the number of `positional` arguments."""
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{number}" for number in range(positional - len(names))]
        else:
            names.append(parameter.name)
    return tuple(names)


def _wanted_dims(dynamic: Dynamic, arguments: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, dict[int, str]]:
    """Return {leaf name: {dimension: name}} for every tensor leaf."""
    leaves = {names[pytree.keystr(path)]: leaf for path, leaf in pytree.tree_flatten_with_path(dict(arguments))[0]}
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Tensor)}
    if not tensors:
        raise CaptureError("The example inputs hold no Tensor; give at least one.")
    if dynamic is None:
        return {}
    if isinstance(dynamic, str):
        return {name: {0: dynamic} for name, tensor in tensors.items() if tensor.ndim > 0}
    for name, dims in dynamic.items():
        if name not in tensors:
            raise CaptureError(f"dynamic names the input '{name}', but the tensor inputs are {', '.join(tensors)}.")
        for dim in dims:
            if not -tensors[name].ndim <= dim < tensors[name].ndim:
                raise CaptureError(
                    f"dynamic names dimension {dim} of '{name}', which has {tensors[name].ndim} dimensions."
                )
    return {name: {dim % tensors[name].ndim: label for dim, label in dims.items()} for name, dims in dynamic.items()}


def _enlarge(args: Any, kwargs: Any, arguments: Mapping[str, Any], dims: Mapping[str, Mapping[int, str]]) -> Any:
    """Repeat an example of size 1 in a dynamic dimension to size 2: torch.export would take the 1 for a constant.

    `dims` is {path of the leaf in `arguments`: {dimension: name}}.
    """
    larger: dict[int, Tensor] = {}
    for path, leaf in pytree.tree_flatten_with_path(dict(arguments))[0]:
        for dim in dims.get(pytree.keystr(path), {}):
            tensor = larger.get(id(leaf), leaf)
            larger[id(leaf)] = tensor.repeat_interleave(2, dim) if tensor.shape[dim] == 1 else tensor
    return pytree.tree_map(lambda leaf: larger.get(id(leaf), leaf), (args, kwargs))


@contextmanager
def _inference_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _forward_with(model: nn.Module, signature: inspect.Signature) -> Iterator[None]:
    """Give `model.forward` an explicit signature: torch.export cannot name the dimensions of what `**rest` holds."""
    forward = model.forward
    if inspect.signature(forward) == signature:
        yield
        return

    def explicit(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    own = "forward" in vars(model)
    explicit.__signature__ = signature  # type: ignore[attr-defined]
    model.forward = explicit
    try:
        yield
    finally:
        del model.forward
        if own:
            model.forward = forward


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's loggers, warnings and prints: what matters of them, the notes and the CaptureError say."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _export(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    arguments: dict[str, Any],
    names: Mapping[str, str],
    wanted: Mapping[str, Mapping[int, str]],
) -> ExportedProgram:
    """Export with dynamic dimensions as the model allows them; with none if that fails.

    Named dimensions (`Dim("batch")`) would fail, and need a second export, for every bound that the model sets, such as
    the size of a position table.
    """
    if wanted:
        labels = {label for dims in wanted.values() for label in dims.values()}
        if wrong := sorted(label for label in labels if not label.isidentifier()):
            raise CaptureError(f"Dynamic dimensions need names that are identifiers, got {wrong}.")
        dims = {path: wanted.get(name, {}) for path, name in names.items()}
        larger = _enlarge(args, kwargs, arguments, dims)
        try:
            return _try_export(model, larger[0], larger[1], _shapes(arguments, dims))
        except CaptureError:
            pass  # the second attempt says what is wrong, if it is not the dynamic dimensions
    return _try_export(model, args, kwargs, None)


def _shapes(arguments: dict[str, Any], dims: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    def shape(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None
        return dict.fromkeys(dims[pytree.keystr(path)], Dim.AUTO)

    return dict(pytree.tree_map_with_path(shape, dict(arguments)))


def _try_export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: dict[str, Any] | None
) -> ExportedProgram:
    try:
        # Without duck shaping, dimensions that happen to have one size in the example are not taken for one.
        with whole_recurrent_ops(), symbolic_config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise CaptureError(_explain(model, error)) from error


def _explain(model: nn.Module, error: Exception) -> str:
    """Say what stopped torch.export, on which line of the model, and what usually helps."""
    internal = ("/torch/", "/fxopt/", "<string>")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not any(part in f.filename for part in internal)]
    line = f"\n  at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
    first = next((text for text in str(error).splitlines() if text.strip()), type(error).__name__)
    cure = "Check that model(*example_inputs) runs in plain PyTorch with these inputs."
    if "DataDependent" in type(error).__name__ or "data-dependent" in str(error):
        cure = "The model branches on tensor values: replace `if tensor:` by torch.where, and avoid .item()."
    elif "Constraints violated" in str(error) or "dynamic" in first:
        cure = "Name fewer dynamic dimensions, or none."
    return f"torch.export cannot capture {type(model).__name__}: {first}{line}\n{cure}"
