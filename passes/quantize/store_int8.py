"""StoreInt8: the weights of recurrent layers that run in float, stored as int8.

onnxruntime has no integer GRU or RNN. Stored as int8, their weights take a quarter of the file, but they are
dequantized on every run, which costs more the shorter a sequence is. So this is done only on request.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import fx

from fxopt.graph.ops import dequantize
from fxopt.graph.program import Program
from fxopt.graph.quantized import is_constant
from fxopt.graph.recurrent import RECURRENT_SHAPES
from fxopt.graph.rewrite import Edit, argument
from fxopt.passes.quantize.insert import describe_float
from fxopt.passes.quantize.placement import check_names, reasons_of
from fxopt.passes.quantize.quantize_recurrent import LSTM, parameters_each
from fxopt.passes.quantize.rows import quantize_rows


@dataclass(frozen=True)
class StoreInt8:
    """Store the weights of GRUs, RNNs and float LSTMs as int8 with a symmetric scale a row; they are read as floats.

    - `keep_float`: names of nodes whose weights stay float, or {name: reason}.

    Smaller files, slower runs: the weights are dequantized on every run. Run it after QuantizeDynamic, which makes
    LSTMs integer where that is faster. What stays float and why is in the notes of the result. Raises PassError for a
    name that does not exist.
    """

    keep_float: Mapping[str, str] | Collection[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep_float", reasons_of(self.keep_float))

    def __call__(self, program: Program) -> Program:
        """Return the Program with stored int8 weights; one without recurrent layers comes back as it is."""
        kept = reasons_of(self.keep_float)
        check_names(program, kept)
        if not any(node.target in RECURRENT_SHAPES for node in program.graph.nodes):
            return program
        edit = Edit(program, by=self)
        reasons: dict[str, str] = {}
        stored: dict[str, tuple[fx.Node, ...]] = {}
        for node in edit.calls(*RECURRENT_SHAPES):
            if reason := kept.get(node.name) or _problem(node):
                reasons[node.name] = reason
            else:
                params = [_read_stored(edit, node, source, stored) for source in argument(node, "params")]
                node.args = (*node.args[:2], params, *node.args[3:])
        for note in describe_float(reasons):
            edit.note(note)
        return edit.finish()


def _problem(node: fx.Node) -> str | None:
    params = argument(node, "params")
    if not all(map(is_constant, params)):
        return "its weights are computed, or stored as integers already"
    if params[0].meta["val"].dtype is not torch.float32:
        return "its weights are not float32"
    if node.target is LSTM and parameters_each(node) % 2:
        return "its states are projected, which is folded into its weights for onnxruntime"
    return None


def _read_stored(edit: Edit, node: fx.Node, source: fx.Node, stored: dict[str, tuple[fx.Node, ...]]) -> fx.Node:
    """Return the float form of a weight that is stored as int8; biases stay as they are."""
    value = edit.constant(source)
    assert value is not None
    if value.ndim != 2:
        return source
    name = str(source.target)
    if name not in stored:
        integers, scale = quantize_rows(value.detach())
        zeros = torch.zeros(scale.shape, dtype=torch.int8)
        stored[name] = tuple(
            edit.add_constant(f"{name}_{part}", tensor, before=node)
            for part, tensor in (("int8", integers), ("scale", scale), ("zero_point", zeros))
        )
    return edit.call(dequantize, *stored[name], 0, before=node, name=f"{source.name}_dequantized")
