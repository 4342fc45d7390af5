"""QuantizeEmbeddings: int8 tables with one scale a row, of which only the rows that are read become floats.

A quarter of the file and of the memory. The reading itself costs some 40 % more than that of floats, which is little
beside the layers that follow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxopt.graph.ops import dequantize, quantize
from fxopt.graph.program import Program
from fxopt.graph.rewrite import Edit, constant, fake_value
from fxopt.passes.quantize.insert import describe_float
from fxopt.passes.quantize.placement import check_names, reasons_of
from fxopt.passes.quantize.rows import INT8_MAX, quantize_rows

aten = torch.ops.aten
EMBEDDING = aten.embedding.default
BAGS = {aten.embedding_bag.default, aten.embedding_bag.padding_idx}
WORTHWHILE = 2**14  # bytes that the int8 form of a table must save, for the three ops it adds
Key = tuple[int, torch.Size]


@dataclass(frozen=True)
class QuantizeEmbeddings:
    """Store the tables of embeddings as int8 with a symmetric scale a row; rows are gathered before they are scaled.

    - `keep_float`: names of nodes that stay float, or {name: reason}.

    A table that a linear layer reads too (tied weights) is shared with it where the linear is quantized already: run
    this pass after that one. Otherwise it stays float. What stays float and why is in the notes of the result. Raises
    PassError for a name that does not exist.
    """

    keep_float: Mapping[str, str] | Collection[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))

    def __call__(self, program: Program) -> Program:
        """Return the Program with int8 tables; one without embeddings comes back as it is."""
        reasons = embedding_float_reasons(program, self.keep_float)
        if not any(node.target is EMBEDDING or node.target in BAGS for node in program.graph.nodes):
            return program
        edit = Edit(program, by=self)
        tables: dict[Key, tuple[fx.Node, fx.Node]] = {}
        for node in edit.calls(EMBEDDING):
            table = edit.constant(node.args[0])
            if node.name not in reasons and table is not None and table.dtype is torch.float32:
                if _key(table) not in tables:
                    tables[_key(table)] = _stored_table(edit, node, table.detach())
                _read_rows(edit, node, *tables[_key(table)])
        for note in describe_float(reasons):
            edit.note(note)
        return edit.finish()


def embedding_float_reasons(program: Program, keep_float: Mapping[str, str] | Collection[str] = ()) -> dict[str, str]:
    """Say for each embedding that stays float why. Raises PassError for a name in `keep_float` that does not exist."""
    kept = reasons_of(keep_float)
    check_names(program, kept)
    readers = _readers(program)
    reasons = {}
    for node in program.graph.nodes:
        if node.target is EMBEDDING:
            reason = kept.get(node.name) or _problem(program, node, readers)
        else:
            reason = "a bag sums the rows inside one op, which reads floats" if node.target in BAGS else None
        if reason is not None:
            reasons[node.name] = reason
    return reasons


def _key(table: Tensor) -> Key:
    return table.data_ptr(), table.shape


def _readers(program: Program) -> dict[Key, list[fx.Node]]:
    """List what reads each tensor, under whatever names tied weights have."""
    found: defaultdict[Key, list[fx.Node]] = defaultdict(list)
    for node in program.graph.find_nodes(op="get_attr"):
        table = constant(program.module, node)
        if table is not None:
            found[_key(table)] += node.users
    return found


def _problem(program: Program, node: fx.Node, readers: Mapping[Key, list[fx.Node]]) -> str | None:
    table = constant(program.module, node.args[0])
    if table is None:
        return "its table is computed"
    if table.dtype is not torch.float32:
        return None if table.dtype is torch.int8 else f"its table is {str(table.dtype).removeprefix('torch.')}"
    saved = 3 * table.numel() - 4 * table.shape[0]
    if saved < WORTHWHILE:
        return f"int8 would save only {max(saved, 0)} bytes"
    others = [reader.name for reader in readers[_key(table)] if reader.target is not EMBEDDING]
    return f"its table is read by {', '.join(others)} too, as floats" if others else None


def _stored_table(edit: Edit, node: fx.Node, table: Tensor) -> tuple[fx.Node, fx.Node]:
    """Return the int8 table and its scales [rows, 1]: those of a quantized linear that has the same weight, or new."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    name = f"{source.target}_row_scale"
    for weight, scale in _int8_weights(edit, table.shape):
        zeros = torch.zeros(scale.shape, dtype=torch.int8)
        rounded = quantize(table, scale, zeros, 0, -INT8_MAX, INT8_MAX, torch.int8)
        if torch.equal(rounded, edit.constant(weight)):  # type: ignore[arg-type]
            if node < weight:
                node.prepend(weight)
            return weight, edit.add_constant(name, scale[:, None], before=node)
    stored, scale = quantize_rows(table)
    integers = edit.add_constant(f"{source.target}_int8", stored, before=node)
    return integers, edit.add_constant(name, scale[:, None], before=node)


def _int8_weights(edit: Edit, shape: torch.Size) -> list[tuple[fx.Node, Tensor]]:
    """List the stored int8 weights of a shape that have a symmetric scale a row, with the scales."""
    found = []
    for node in edit.calls(dequantize):
        weight, scale, zero_point = (edit.constant(value) for value in node.args[:3])
        if weight is None or scale is None or zero_point is None or weight.dtype is not torch.int8:
            continue
        if weight.shape == shape and node.args[3] == 0 and not bool(zero_point.any()):
            assert isinstance(node.args[0], fx.Node)
            found.append((node.args[0], scale))
    return found


def _read_rows(edit: Edit, node: fx.Node, table: fx.Node, scale: fx.Node) -> None:
    """Let an embedding become the product of the int8 rows and their scales; it keeps its name."""
    indices = node.args[1]
    rows = edit.call(EMBEDDING, table, indices, before=node, name=f"{node.name}_int8")
    values = edit.call(aten.to.dtype, rows, torch.float32, before=node, name=f"{node.name}_float")
    scales = edit.call(EMBEDDING, scale, indices, before=node, name=f"{node.name}_scale")
    node.target, node.args, node.kwargs = aten.mul.Tensor, (values, scales), {}
    node.meta["val"] = fake_value(node, edit.mode)
