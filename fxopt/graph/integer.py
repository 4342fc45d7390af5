"""Run a quantized Program with integer kernels, bit for bit as onnxruntime does with all optimisations.

A kernel is an op of the table whose operands come from dequantize nodes, with one scale for an activation and one scale
a channel (or one) for a weight, and that only a quantize node reads, unless the kernel returns floats. A relu or clamp
before the quantize belongs to the kernel where the quantize makes it redundant; otherwise the op stays float, and so do
all other nodes here. Of those, a batch norm is computed as onnxruntime does too: it is what most often stands between
integer kernels, where its last bit can decide a rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxopt.graph.integer_arithmetic import INTEGER_OPS, Kernel, batch_norm, op_of
from fxopt.graph.interpret import Observe, Step, run_steps, step_of, widened
from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.program import Program, TensorSpec
from fxopt.graph.rewrite import argument, constant

aten = torch.ops.aten
Op = Callable[..., Any]

# Op -> the bounds between which it leaves a value as it is.
CLAMPS: dict[Op, Callable[[fx.Node], tuple[float, float]]] = {
    aten.relu.default: lambda node: (0.0, float("inf")),
    aten.relu6.default: lambda node: (0.0, 6.0),
    aten.hardtanh.default: lambda node: (float(argument(node, "min_val")), float(argument(node, "max_val"))),
    aten.clamp.default: lambda node: (_bound(node, "min", float("-inf")), _bound(node, "max", float("inf"))),
    aten.clamp_min.default: lambda node: (float(argument(node, "min")), float("inf")),
}


def _bound(node: fx.Node, name: str, missing: float) -> float:
    value = argument(node, name)
    return missing if value is None else float(value)


def run_integer(
    program: Program,
    inputs: Sequence[Tensor],
    observe: Observe | None = None,
    stop_after: str | None = None,
    *,
    precise: bool = False,
    jitter: float = 0.0,
    seed: int = 0,
    fused: bool = True,
) -> tuple[Any, ...]:
    """Run like interpret.run, with integer kernels; a value inside a kernel is never made, so never observed.

    Unless `fused`, nothing is a kernel: all is floats between the roundings, as without optimisations. With `precise`,
    the other nodes compute in float64, and each result is off by a random part of up to `jitter` of itself, the same
    for one `seed` (Monte Carlo arithmetic, Parker 1997). How far that is from the usual run tells how much of the
    outputs is the rounding of float32.
    """
    steps = integer_steps(program, precise=precise, jitter=jitter, seed=seed, fused=fused)
    return run_steps(program, steps, inputs, observe, stop_after)


def integer_steps(
    program: Program, *, precise: bool = False, jitter: float = 0.0, seed: int = 0, fused: bool = True
) -> list[Step]:
    """Plan the run: one step for each integer kernel, one for every other node that is still needed."""
    kernels = {kernel.result: kernel for kernel in find_kernels(program)} if fused else {}
    steps: list[Step] = []
    needed = {program.output_node}
    randomness = torch.Generator().manual_seed(seed)

    def other(node: fx.Node) -> Step:
        if precise:
            return _precise_step(program, node, jitter, randomness)
        return _other_step(program, node, bool(kernels))

    for node in reversed(program.graph.nodes):
        if node not in needed or node.op == "placeholder":
            continue
        step = kernel_step(kernels[node]) if node in kernels else other(node)
        needed.update(step.reads)
        steps.append(step)
    return steps[::-1]


def _other_step(program: Program, node: fx.Node, is_quantized: bool) -> Step:
    if is_quantized and node.target is aten.batch_norm.default and not argument(node, "training"):
        return Step(node, tuple(node.all_input_nodes), lambda values: batch_norm(node, values))
    return step_of(program, node)


def _precise_step(program: Program, node: fx.Node, jitter: float, randomness: torch.Generator) -> Step:
    """Compute in float64 from what is there; only the outputs go back to the dtypes they have."""
    step = step_of(program, node)

    def shaken(value: Any) -> Any:
        if not jitter or not isinstance(value, Tensor) or value.dtype is not torch.float64:
            return value
        noise = torch.rand(value.shape, generator=randomness, dtype=torch.float64, device=value.device)
        return value * (1 + jitter * (2 * noise - 1))

    def compute(values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr" or node.target is dequantize:
            return step.compute(values)
        result = step.compute({source: pytree.tree_map(widened, values[source]) for source in step.reads})
        if node.op == "output":
            return pytree.tree_map(_narrowed, tuple(result), program.outputs)
        return pytree.tree_map(shaken, result)

    return Step(node, step.reads, compute)


def _narrowed(value: Any, spec: TensorSpec | None) -> Any:
    return value.to(spec.dtype) if isinstance(value, Tensor) and spec is not None else value


def find_kernels(program: Program) -> list[Kernel]:
    """List the integer kernels that a runtime can form, in graph order."""
    found = (_kernel(program, node) for node in program.graph.nodes if node.target in INTEGER_OPS)
    return [kernel for kernel in found if kernel is not None]


def _kernel(program: Program, node: fx.Node) -> Kernel | None:
    row = INTEGER_OPS[op_of(node)]
    operands = node.args[: row.operands]
    if not all(isinstance(value, fx.Node) and value.target is dequantize for value in operands):
        return None
    nodes = tuple(value for value in operands if isinstance(value, fx.Node))
    if not _are_scales_along_channels(nodes, row.channels) or not _is_plain(node):
        return None
    bias = argument(node, "bias") if any(a.name == "bias" for a in op_of(node)._schema.arguments) else None
    # A linear adds a bias that is stored as float to the float result: only what it then gives is quantized.
    adds_floats = row.float_result and bias is not None and bias.target is not dequantize
    output = None if adds_floats else _quantize_after(program, node)
    return None if output is None and not row.float_result else Kernel(node, nodes, bias, output)


def _are_scales_along_channels(operands: Sequence[fx.Node], channels: tuple[int, int] | None) -> bool:
    """Say whether each operand has one scale, or the second one a scale for each output channel."""
    for index, operand in enumerate(operands):
        axis, ndim = argument(operand, "axis"), operand.meta["val"].ndim
        if axis is None:
            continue
        if index == 0 or channels is None or ndim < 2 or axis % ndim != channels[0] % ndim:
            return False
    return True


def _is_plain(node: fx.Node) -> bool:
    """Say whether the options of an op are those its kernel knows."""
    if node.target is aten.add.Tensor:
        return bool(argument(node, "alpha") == 1)
    if node.target is aten.adaptive_avg_pool2d.default:
        return list(argument(node, "output_size")) == [1, 1]
    if node.target is aten.mean.dim:
        dims, ndim = argument(node, "dim"), node.all_input_nodes[0].meta["val"].ndim
        return ndim == 4 and sorted(dim % ndim for dim in dims or ()) == [2, 3]
    return True


def _quantize_after(program: Program, node: fx.Node) -> fx.Node | None:
    """Return the quantize node that is all that reads `node`, perhaps through a clamp that it makes redundant."""
    bounds = (float("-inf"), float("inf"))
    for _ in range(2):
        users = list(node.users)
        if len(users) != 1:
            return None
        (user,) = users
        if user.target is quantize and user.args[0] is node:
            return user if argument(user, "axis") is None and _is_redundant(program, user, bounds) else None
        if user.target not in CLAMPS:
            return None
        node, bounds = user, CLAMPS[user.target](user)
    return None


def _is_redundant(program: Program, node: fx.Node, bounds: tuple[float, float]) -> bool:
    """Say whether quantize saturates wherever a clamp to `bounds` would change its input."""
    if bounds == (float("-inf"), float("inf")):
        return True
    scale, zero_point = (constant(program.module, argument(node, name)) for name in ("scale", "zero_point"))
    if scale is None or zero_point is None:
        return False
    low, high = (torch.round(torch.tensor(bound, dtype=scale.dtype) / scale) + zero_point for bound in bounds)
    return bool(low <= argument(node, "quant_min")) and bool(high >= argument(node, "quant_max"))


def kernel_step(kernel: Kernel) -> Step:
    """Return the step that computes an integer kernel."""
    reads = [source for node in kernel.operands for source in node.all_input_nodes]
    if kernel.bias is not None:
        reads += kernel.bias.all_input_nodes if kernel.bias.target is dequantize else [kernel.bias]
    if kernel.output is not None:
        reads += [node for node in kernel.output.all_input_nodes if node is not kernel.output.args[0]]
    compute = INTEGER_OPS[op_of(kernel.op)].compute
    return Step(kernel.result, tuple(dict.fromkeys(reads)), lambda values: compute(kernel, values))
