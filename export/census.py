"""The census: which nodes really run as integer kernels, read off the graph that onnxruntime optimised.

A quantized node that does not fuse is slower than float: the weight is dequantized on every run. So a file passes
only if every node that claims to be integer is one and no weight is dequantized at run time.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from fxopt.export.session import Session

INTEGER_KERNELS = {
    "QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger", "MatMulNBits",
    "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearSigmoid",
    "QLinearLeakyRelu", "QLinearGlobalAveragePool", "QLinearAveragePool", "QLinearSoftmax", "QLinearWhere",
    "QLinearReduceMean",
}  # fmt: skip
FLOAT_COMPUTE = {
    "Conv",
    "FusedConv",
    "MatMul",
    "Gemm",
    "FusedMatMul",
    "FusedGemm",
    "ConvTranspose",
    "LSTM",
    "GRU",
    "Attention",
}


@dataclass(frozen=True)
class Census:
    """What onnxruntime made of the graph.

    - `kernels`: how many nodes of each op type the optimised graph has.
    - `integer`: the kernel of each node that claims to be integer and is.
    - `unfused`: for each node that claims to be integer and is not, what it became.
    - `weight_dequantize`: DequantizeLinear nodes left on constant weights (they run on every inference).
    - `stored_weights`: how many more of those belong to ops whose weights are only to be stored as integers.
    - `float_compute`: convolutions and matrix products that run in float.
    """

    kernels: Mapping[str, int]
    integer: Mapping[str, str] = field(default_factory=dict)
    unfused: Mapping[str, str] = field(default_factory=dict)
    weight_dequantize: int = 0
    stored_weights: int = 0
    float_compute: tuple[str, ...] = ()

    @property
    def integer_kernels(self) -> int:
        """How many integer kernels the optimised graph has."""
        return sum(count for op, count in self.kernels.items() if op in INTEGER_KERNELS)

    @property
    def transposes(self) -> int:
        """How many layout changes and transposes the optimised graph has."""
        return self.kernels.get("Transpose", 0)


def take_census(
    model: str | Path | onnx.ModelProto,
    claimed: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    stored: Collection[str] = (),
) -> Census:
    """Let onnxruntime optimise a model and count what came out.

    `claimed` are the nodes that claim to be integer, `stored` those that read stored integer weights as floats.
    """
    with tempfile.TemporaryDirectory(prefix="fxopt-census-") as folder:
        path = Path(folder) / "optimized.onnx"
        large = {
            "session.optimized_model_external_initializers_file_name": "optimized.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
        Session(model, optimized=path, settings={**(settings or {}), **large})
        optimized = onnx.load(path, load_external_data=False)
    return count_kernels(optimized.graph, claimed or {}, stored)


def count_kernels(graph: onnx.GraphProto, claimed: Mapping[str, str], stored: Collection[str] = ()) -> Census:
    """Read the census off an optimised graph."""
    constants = {tensor.name for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    by_name = {node.name: node for node in graph.node}
    integer: dict[str, str] = {}
    unfused: dict[str, str] = {}
    for name in claimed:
        found = find_kernel(name, by_name, makers)
        moves = found is not None and claimed[name] == "data" and _moves_integers(found, makers)
        if found is not None and (found.op_type in INTEGER_KERNELS or moves):
            integer[name] = found.op_type
        elif found is not None:
            unfused[name] = found.op_type
        elif claimed[name] != "data":  # what only moves values may have been merged away
            unfused[name] = "nothing of that name"
    weights = [node.name for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    asked_for = [name for name in weights if name.partition(".")[0] in stored]
    return Census(
        kernels=dict(sorted(Counter(node.op_type for node in graph.node).items())),
        integer=integer,
        unfused=unfused,
        weight_dequantize=len(weights) - len(asked_for),
        stored_weights=len(asked_for),
        float_compute=tuple(node.name for node in graph.node if node.op_type in FLOAT_COMPUTE),
    )


def find_kernel(
    name: str, by_name: Mapping[str, onnx.NodeProto], makers: Mapping[str, onnx.NodeProto]
) -> onnx.NodeProto | None:
    """Find the node that an fx node became: onnxruntime keeps the name of the op it fuses around, with a suffix."""
    if name in by_name:
        return by_name[name]
    suffixed = re.compile(re.escape(name) + r"(_token_\d+|_nchwc|/.*)")
    return next((node for candidate, node in by_name.items() if suffixed.fullmatch(candidate)), makers.get(name))


def _moves_integers(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Say whether a data-moving node (MaxPool, Reshape, ...) works on 8-bit values: nothing is dequantized for it."""
    return not any(name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input)
