"""QuantizeWeights: weights of linears in 8, 4 or 2 bits; activations stay float outside of the kernels.

What a model reads from memory shrinks, which is what large models with few tokens at a time wait for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxopt.errors import PassError, where
from fxopt.graph.blocks import KERNEL_BLOCKS, dequantize_blocks, fake_quantize_blocks, kernel_block, row_bytes
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.rewrite import Edit
from fxopt.passes.quantize.block_grid import BlockFormat, BlockWeight, round_to_nearest
from fxopt.passes.quantize.insert import describe_float
from fxopt.passes.quantize.placement import check_names, reasons_of
from fxopt.passes.quantize.rules import linear_problem

LINEAR = torch.ops.aten.linear.default
ACCURACY_LEVELS = (0, 4)


@dataclass(frozen=True)
class QuantizeWeights:
    """Store the constant weights of linears in 8, 4 or 2 bits with a scale for each group of inputs.

    - `bits`: 8, 4 or 2. `group_size`: how many neighbouring inputs share a scale: 16, 32, 64 or 128 (with 2 bits at
      least 32), or None for all of an output channel. The last group of a row may be shorter.
    - `symmetric`: no zero points: a little smaller, less exact.
    - `accuracy_level`: that of onnxruntime's MatMulNBits. 4: it rounds its input to int8, in the same groups, with
      ranges taken on every run. 0: it computes in float, which is exact and slower.
    - `keep_float`: names of nodes that stay float, or {name: reason}.

    Ranges have the least squared error, see block_grid.py. Linears that read the same weight share what is stored. What
    stays float and why is in the notes of the result. Raises PassError for an option or a name that does not exist.
    """

    bits: int = 4
    group_size: int | None = 32
    symmetric: bool = False
    accuracy_level: int = 4
    keep_float: Mapping[str, str] | Collection[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))
        check_options(self.bits, self.group_size, self.accuracy_level)

    def __call__(self, program: Program) -> Program:
        """Return the quantized Program."""
        layout = BlockFormat(self.bits, self.group_size, self.symmetric)
        edit = Edit(program, by=self)
        return store_weights(
            edit, layout, self.accuracy_level, self.keep_float, lambda _, weight: round_to_nearest(weight, layout)
        )


def check_options(bits: int, group_size: int | None, accuracy_level: int) -> None:
    """Raise PassError for options that no kernel has."""
    if bits not in KERNEL_BLOCKS:
        raise PassError(f"Weights have 8, 4 or 2 bits, not {bits!r}.")
    if group_size is not None and group_size not in KERNEL_BLOCKS[bits]:
        sizes = ", ".join(map(str, sorted(KERNEL_BLOCKS[bits])))
        raise PassError(f"A group of a weight of {bits} bits has {sizes} inputs, or all (None), not {group_size!r}.")
    if accuracy_level not in ACCURACY_LEVELS:
        raise PassError(f"The accuracy level is 4 (input rounded to int8) or 0 (float), not {accuracy_level!r}.")


def weight_float_reasons(
    program: Program,
    bits: int = 4,
    group_size: int | None = 32,
    keep_float: Mapping[str, str] | Collection[str] = (),
) -> dict[str, str]:
    """Say for each linear that stays float why. Raises PassError for a name in `keep_float` that does not exist."""
    kept = reasons_of(keep_float)
    check_names(program, kept)
    reasons = {}
    for node in program.graph.nodes:
        if node.target is LINEAR and (reason := kept.get(node.name) or _problem(node, bits, group_size)):
            reasons[node.name] = reason
    return reasons


def _problem(node: fx.Node, bits: int, group_size: int | None) -> str | None:
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    if not is_constant(weight):
        return "its weight is quantized already or computed"
    dtype = weight.meta["val"].dtype
    if dtype is not torch.float32:
        return f"its weight is {str(dtype).removeprefix('torch.')}; the kernel takes float32"
    inputs = int(weight.meta["val"].shape[1])
    if row_bytes(bits, inputs, group_size or kernel_block(bits, inputs)) >= 4 * inputs:
        return f"with {inputs} inputs it would not become smaller"
    return linear_problem(node)


def store_weights(
    edit: Edit,
    layout: BlockFormat,
    accuracy_level: int,
    keep_float: Mapping[str, str] | Collection[str],
    rounded: Callable[[fx.Node, Tensor], BlockWeight],
) -> Program:
    """Let each linear read a stored weight, and finish the edit; `rounded(linear, weight)` makes what is stored."""
    reasons = weight_float_reasons(edit.program, layout.bits, layout.group_size, keep_float)
    weights: dict[int, fx.Node] = {}
    inputs: dict[tuple[fx.Node, int], fx.Node] = {}
    for node, weight in constant_linears(edit, reasons):
        if id(weight) not in weights:
            weights[id(weight)] = _stored(edit, node, rounded(node, weight.detach()))
        x = node.args[0]
        assert isinstance(x, fx.Node)
        if accuracy_level:
            block = layout.group_size or kernel_block(layout.bits, weight.shape[1])
            if (x, block) not in inputs:
                name = f"{x.name}_rounded"
                inputs[x, block] = edit.call(fake_quantize_blocks, x, block, before=node, name=name)
            x = inputs[x, block]
        node.args = (x, weights[id(weight)], *node.args[2:])
    for note in describe_float(reasons):
        edit.note(note)
    return edit.finish()


def constant_linears(edit: Edit, but: Collection[str]) -> Iterator[tuple[fx.Node, Tensor]]:
    """Yield the linears that are not named in `but`, with their weights. Raises PassError for NaN or infinity."""
    for node in edit.calls(LINEAR):
        if node.name in but:
            continue
        weight = edit.constant(node.args[1])
        assert weight is not None
        if not bool(weight.isfinite().all()):
            raise PassError(f"The weight of {where(node)} holds NaN or infinity. Repair it, or name it in keep_float.")
        yield node, weight


def _stored(edit: Edit, node: fx.Node, weight: BlockWeight) -> fx.Node:
    source = node.args[1]
    assert isinstance(source, fx.Node)
    tensors = {f"int{weight.bits}": weight.q, "scale": weight.scale, "zero_point": weight.zero_point}
    parts = [
        None if tensor is None else edit.add_constant(f"{source.target}_{part}", tensor, before=node)
        for part, tensor in tensors.items()
    ]
    options = (1, weight.block_size, weight.bits)
    return edit.call(dequantize_blocks, *parts, *options, before=node, name=f"{source.name}_dequantized")
