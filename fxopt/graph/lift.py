"""ExportedProgram <-> Program: parameters move between placeholders of the graph and attributes of the module."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from fxopt.errors import CaptureError, where
from fxopt.graph.functionalize import functionalize
from fxopt.graph.program import Program, TensorSpec
from fxopt.graph.rewrite import eliminate_dead_nodes, fake_value, set_attribute

aten = torch.ops.aten

# Ops that only check something at run time; the specs of a Program say the same.
ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten._assert_async.default,
    aten._assert_scalar.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
    torch._check,
    operator.and_,
}
# Regions of a context manager: (how many leading arguments come before the submodule).
CONTEXT_REGIONS: dict[Any, int] = {
    torch.ops.higher_order.wrap_with_set_grad_enabled: 1,
    torch.ops.higher_order.wrap_with_autocast: 4,
}


def program_from_exported(
    exported: ExportedProgram,
    wanted: Mapping[str, Mapping[int, str]],
    notes: tuple[str, ...] = (),
    parameters: tuple[str, ...] = (),
) -> Program:
    """Build a Program from torch.export's result.

    `wanted` is {input name: {dimension: name}}; a wanted dimension that came out fixed is noted. `parameters` are
    the parameter names of the original forward, in order.
    """
    graph, tensors, constants = _lift(exported)
    graph, written = functionalize(graph)
    eliminate_dead_nodes(graph)
    _complete_values(graph)
    in_spec, out_spec = exported.call_spec.in_spec, exported.call_spec.out_spec
    placeholders = graph.find_nodes(op="placeholder")
    names = input_names(in_spec, constants, parameters, [p.name for p in placeholders])
    dims, dim_notes = _name_dims(placeholders, names, wanted)
    root = nn.Module()
    for node in graph.find_nodes(op="get_attr"):
        set_attribute(root, str(node.target), tensors[str(node.target)])
    inputs = tuple(spec_of(name, node.meta["val"], dims) for name, node in zip(names, placeholders, strict=True))
    dropped = tuple(f"forward() updates '{name}'; the update is not part of the Program." for name in written)
    return Program(
        module=fx.GraphModule(root, graph, class_name="Program"),
        inputs=inputs,
        outputs=output_specs(graph, out_spec, dims),
        in_spec=in_spec,
        out_spec=out_spec,
        constants=constants,
        dims=dims,
        notes=(*notes, *dim_notes, *dropped),
        parameters_of_call=parameters,
    )


def _lift(exported: ExportedProgram) -> tuple[fx.Graph, dict[str, Tensor], dict[int, Any]]:
    """Copy the exported graph with parameters as get_attr nodes; returns it, the tensors, and the constant inputs."""
    tensors: dict[str, Tensor] = {}
    constants: dict[int, Any] = {}
    graph = fx.Graph()
    env: dict[fx.Node, Any] = {}
    leaf = 0
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    for node in exported.graph.nodes:
        if node.op != "placeholder":
            _copy_node(exported.graph_module, node, graph, env)
            continue
        spec = specs[node.name]
        if spec.kind is not InputKind.USER_INPUT:
            target = str(spec.target)
            tensors[target] = _tensor(exported, spec.kind, target)
            env[node] = graph.create_node("get_attr", target, name=_attribute_name(node.name))
            env[node].meta = dict(node.meta)
            continue
        if isinstance(spec.arg, ConstantArgument) or not isinstance(node.meta.get("val"), Tensor):
            constants[leaf] = spec.arg.value if isinstance(spec.arg, ConstantArgument) else node.meta.get("val")
            env[node] = constants[leaf]
        else:
            env[node] = graph.node_copy(node)
        leaf += 1
    _keep_user_outputs(exported, graph)
    return graph, tensors, constants


def _attribute_name(name: str) -> str:
    """Drop torch.export's p_, b_ and c_ in front of a parameter's, buffer's and constant's name."""
    return name[2:] if name[:2] in ("p_", "b_", "c_") else name


def _tensor(exported: ExportedProgram, kind: InputKind, target: str) -> Tensor:
    source: Mapping[str, Any] = (
        exported.state_dict if kind is InputKind.PARAMETER else {**exported.constants, **exported.state_dict}
    )
    value = source[target]
    if not isinstance(value, Tensor):
        raise CaptureError(f"The model holds '{target}', a {type(value).__name__}, which cannot be part of a graph.")
    return value


def _copy_node(module: nn.Module, node: fx.Node, graph: fx.Graph, env: dict[fx.Node, Any]) -> None:
    if node.op == "call_function" and node.target in ASSERTIONS and not node.users:
        return
    if node.op == "get_attr" and isinstance(getattr(module, str(node.target), None), fx.GraphModule):
        env[node] = getattr(module, str(node.target))
        return
    skip = CONTEXT_REGIONS.get(node.target)
    if skip is not None:
        env[node] = _inline(node, skip, graph, env)
        return
    if node.target is operator.getitem:
        source, index = node.args
        if isinstance(source, fx.Node) and isinstance(env.get(source), (tuple, list)):
            env[node] = env[source][index]
            return
    if any(isinstance(env.get(source), fx.GraphModule) for source in node.all_input_nodes):
        raise CaptureError(f"A Program holds no control flow, which {where(node)} is; use torch.where in its place.")
    env[node] = graph.node_copy(node, env.__getitem__)


def _inline(node: fx.Node, skip: int, graph: fx.Graph, env: dict[fx.Node, Any]) -> Any:
    """Copy the nodes of a region into the graph around it; returns the values of its outputs."""
    region_node = node.args[skip]
    assert isinstance(region_node, fx.Node)
    region = env[region_node]
    inner: dict[fx.Node, Any] = {}
    inputs = iter(fx.map_arg(node.args[skip + 1 :], env.__getitem__))
    for child in region.graph.nodes:
        if child.op == "placeholder":
            inner[child] = next(inputs)
        elif child.op == "output":
            return fx.map_arg(child.args[0], inner.__getitem__)
        else:
            _copy_node(region, child, graph, inner)
    raise AssertionError("a graph ends with an output node")


def _keep_user_outputs(exported: ExportedProgram, graph: fx.Graph) -> None:
    """Drop the outputs that only carry buffer updates."""
    output = graph.output_node()
    kept = [
        value
        for value, spec in zip(output.args[0], exported.graph_signature.output_specs, strict=True)  # type: ignore[arg-type]
        if spec.kind.name == "USER_OUTPUT"
    ]
    output.args = (tuple(kept),)


def _complete_values(graph: fx.Graph) -> None:
    mode = next(node.meta["val"].fake_mode for node in graph.nodes if hasattr(node.meta.get("val"), "fake_mode"))
    for node in graph.nodes:
        if node.op == "call_function" and "val" not in node.meta:
            node.meta["val"] = fake_value(node, mode)


def input_names(
    in_spec: pytree.TreeSpec, constants: Mapping[int, Any], parameters: tuple[str, ...], fallback: list[str]
) -> list[str]:
    """Name the tensor inputs: the forward parameter, with keys and positions below it appended."""
    paths = leaf_paths(in_spec)
    tensor_paths = [path for position, path in enumerate(paths) if position not in constants]
    if len(tensor_paths) != len(fallback) or any(len(path) < 2 for path in tensor_paths):
        return fallback
    names = []
    for path, default in zip(tensor_paths, fallback, strict=True):
        group, first, *rest = path  # group: the positional arguments, or the keywords
        if group.idx == 0:
            if first.idx >= len(parameters):
                names.append(default)
                continue
            head = parameters[first.idx]
        else:
            head = str(first.key)
        names.append("_".join([head, *map(key_text, rest)]))
    return names if len(set(names)) == len(names) else fallback


def leaf_paths(spec: pytree.TreeSpec) -> list[tuple[Any, ...]]:
    """Return the path of each leaf of a structure; its number where a class in it does not name its parts."""
    tree = pytree.tree_unflatten(range(spec.num_leaves), spec)
    try:
        return [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    except ValueError:
        return [(pytree.SequenceKey(number),) for number in range(spec.num_leaves)]


def key_text(key: Any) -> str:
    """Spell one step of a pytree path: a dict key, a position or an attribute."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _name_dims(
    placeholders: Any, names: list[str], wanted: Mapping[str, Mapping[int, str]]
) -> tuple[dict[str, str], list[str]]:
    dims: dict[str, str] = {}
    notes: list[str] = []
    for name, node in zip(names, placeholders, strict=True):
        shape = node.meta["val"].shape
        for dim, label in wanted.get(name, {}).items():
            size = symbolic(shape[dim], dims)
            if isinstance(size, int):
                notes.append(f"Dimension {dim} ('{label}') of input '{name}' is fixed to {size} by the model.")
                continue
            for symbol in shape[dim].node.expr.free_symbols:
                dims.setdefault(str(symbol), label)
            if len(shape[dim].node.expr.args) > 0:
                notes.append(
                    f"Dimension {dim} ('{label}') of input '{name}' must have the form {symbolic(shape[dim], dims)}."
                )
    return dims, [*notes, *_multiples(placeholders, dims)]


def _multiples(placeholders: Any, dims: Mapping[str, str]) -> list[str]:
    """Note which dimensions the model takes in multiples only: guards of the form (c·size) mod m == 0."""
    modes = {node.meta["val"].fake_mode for node in placeholders}
    guards = [guard.expr for mode in modes if mode.shape_env for guard in mode.shape_env.guards]
    factors: dict[str, int] = {}
    for guard in guards:
        if guard.func.__name__ != "Equality" or guard.lhs.func.__name__ not in ("Mod", "PythonMod") or guard.rhs != 0:
            continue
        coefficient, symbol = guard.lhs.args[0].as_coeff_Mul()
        divisor = guard.lhs.args[1]
        if str(symbol) in dims and divisor.is_Integer:
            factor = int(divisor) // math.gcd(int(coefficient), int(divisor))
            factors[str(symbol)] = math.lcm(factors.get(str(symbol), 1), factor)
    return [f"Dimension '{dims[s]}' must be a multiple of {factor}." for s, factor in factors.items() if factor > 1]


def symbolic(size: Any, dims: Mapping[str, str]) -> int | str:
    """Return a size as an int, or as an expression in the user's dimension names."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_number:
        return int(expression)
    renamed = {symbol: dims.get(str(symbol), str(symbol)) for symbol in expression.free_symbols}
    return str(expression.xreplace({symbol: type(symbol)(name) for symbol, name in renamed.items()}))


def spec_of(name: str, value: Tensor, dims: Mapping[str, str]) -> TensorSpec:
    """Describe a fake tensor."""
    return TensorSpec(name, value.dtype, tuple(symbolic(size, dims) for size in value.shape))


def output_specs(graph: fx.Graph, out_spec: pytree.TreeSpec, dims: Mapping[str, str]) -> tuple[TensorSpec | None, ...]:
    """Describe and name the outputs: "output" for a single tensor, else the keys and positions of their path."""
    values = graph.output_node().args[0]
    assert isinstance(values, tuple)
    names = ["_".join(map(key_text, path)) or "output" for path in leaf_paths(out_spec)]
    names = [f"output_{name}" if name[0].isdigit() else name for name in names]
    if len(set(names)) != len(names):
        names = [f"output_{number}" for number in range(len(names))]
    return tuple(
        spec_of(name, value.meta["val"], dims)
        if isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)
        else None
        for name, value in zip(names, values, strict=True)
    )
