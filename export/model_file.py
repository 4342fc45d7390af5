"""An emitted model, and its file: weights stream from torch's memory into the file, and the file is whole or absent.

An ONNX file is one protobuf message. Built in memory with its weights it would be there three times (tensor, message,
serialized message), so the message is kept without weights and they are spliced in while writing, as the fields that
protobuf itself would write: GraphProto.initializer, TensorProto.raw_data.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from fxopt.errors import ExportError
from fxopt.export.builder import ONNX_TYPE
from fxopt.export.packed import Packed

Weight = np.ndarray[Any, Any] | Tensor | Packed

# protobuf cannot hold a message of 2 GiB; above this many bytes of weights they go into a file beside the model.
EXTERNAL_DATA_BYTES = 1_900_000_000
INLINE_BYTES = 1024  # small ones, such as shapes, stay in the model: runtimes read them while they load the graph
PAGE = 4096  # external weights start at whole pages, so that a runtime can map them into memory

NOTHING = np.zeros(0, dtype=np.uint8)

# Field numbers of onnx.proto, and the wire type of a field with a length in front.
MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA, LENGTH_DELIMITED = 7, 5, 9, 2


@dataclass(frozen=True)
class OnnxModel:
    """An emitted model.

    - `skeleton`: the ONNX model without its initializers. `weights`: those, by name, sharing memory with the Program.
    - `delegated`: the ops that torch.onnx translated, with the names of their nodes.
    """

    skeleton: onnx.ModelProto
    weights: Mapping[str, Weight]
    delegated: Mapping[str, tuple[str, ...]]

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return next(int(entry.version) for entry in self.skeleton.opset_import if entry.domain == "")

    @property
    def proto(self) -> onnx.ModelProto:
        """The whole model in memory; a new copy each time."""
        model = onnx.ModelProto()
        model.CopyFrom(self.skeleton)
        for name, weight in self.weights.items():
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(_header(name, weight))
            tensor.raw_data = _raw(weight).tobytes()
        return model

    @property
    def file_bytes(self) -> int:
        """The bytes of the model as one file."""
        start, parts = self._layout({})
        return len(start) + sum(len(head) + (0 if weight is None else _size(weight)) for head, weight in parts)

    def write(self, path: Path, *, external: bool = False) -> None:
        """Write the model so that `path` either holds all of it or what it held before; raises ExportError.

        Weights of more than 1.9 GB in all, or with `external` any, go to a file beside it, `path` + ".data".
        """
        external = external or sum(_size(weight) for weight in self.weights.values()) > EXTERNAL_DATA_BYTES
        data_name = f"{path.name}.data"
        try:
            with tempfile.TemporaryDirectory(prefix=".fxopt-", dir=path.parent) as folder:
                temporary, data = Path(folder) / path.name, Path(folder) / data_name
                headers = self._write_data(data) if external else {}
                with temporary.open("wb") as file:
                    self._write_model(file, headers)
                if external:
                    os.replace(data, path.with_name(data_name))
                os.replace(temporary, path)
        except OSError as error:
            cause = error.strerror or str(error)
            raise ExportError(f"Cannot write {path}: {cause}. Choose a folder that exists and is writable.") from error

    def _write_data(self, path: Path) -> dict[str, TensorProto]:
        """Write the weights to a file of their own; returns the tensors that point into it."""
        headers = {}
        large = {name: weight for name, weight in self.weights.items() if _size(weight) >= INLINE_BYTES}
        with path.open("wb") as file:
            for name, weight in large.items():
                file.write(b"\0" * (-file.tell() % PAGE))
                headers[name] = header = _header(name, weight)
                header.data_location = TensorProto.EXTERNAL
                entries = {"location": path.name, "offset": str(file.tell()), "length": str(_size(weight))}
                for key, value in entries.items():
                    header.external_data.add(key=key, value=value)
                file.write(_raw(weight).data)
        return headers

    def _write_model(self, file: BinaryIO, external: Mapping[str, TensorProto]) -> None:
        start, parts = self._layout(external)
        file.write(start)
        for head, weight in parts:
            file.write(head)
            if weight is not None:
                file.write(_raw(weight).data)

    def _layout(self, external: Mapping[str, TensorProto]) -> tuple[bytes, list[tuple[bytes, Weight | None]]]:
        """Return what a file starts with, and each initializer: its own bytes and the weight that follows them.

        The message is the model's own fields, then the graph with the initializers behind its other fields.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.skeleton)
        graph = model.graph.SerializeToString()
        model.ClearField("graph")
        parts: list[tuple[bytes, Weight | None]] = []
        total = len(graph)
        for name, weight in self.weights.items():
            size, inline = (0, None) if name in external else (_size(weight), weight)
            head = (external[name] if name in external else _header(name, weight)).SerializeToString()
            if inline is not None:
                head += _tag(TENSOR_RAW_DATA) + _varint(size)
            start = _tag(GRAPH_INITIALIZER) + _varint(len(head) + size)
            parts.append((start + head, inline))
            total += len(start) + len(head) + size
        return model.SerializeToString() + _tag(MODEL_GRAPH) + _varint(total) + graph, parts


def _header(name: str, weight: Weight) -> TensorProto:
    """Return the initializer of a weight without its data."""
    if isinstance(weight, Packed):
        kind = weight.onnx_type
    elif isinstance(weight, Tensor):
        kind = ONNX_TYPE[weight.dtype]
    else:
        kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    return TensorProto(name=name, data_type=kind, dims=list(weight.shape))


def _size(weight: Weight) -> int:
    if isinstance(weight, Packed):
        return weight.data.numel()
    return weight.numel() * weight.element_size() if isinstance(weight, Tensor) else weight.nbytes


def _raw(weight: Weight) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the bytes of a weight in row-major order; nothing is copied where they lie so in memory."""
    if isinstance(weight, Packed):
        return _raw(weight.data)
    if isinstance(weight, Tensor):
        whole = weight.detach().cpu().contiguous()
        flat = whole.as_strided((whole.numel(),), (1,))  # of one element, the stride may be anything
        return flat.view(torch.uint8).numpy() if flat.numel() else NOTHING
    return np.ascontiguousarray(weight).reshape(-1).view(np.uint8) if weight.size else NOTHING


def _tag(field: int) -> bytes:
    return _varint(field << 3 | LENGTH_DELIMITED)


def _varint(value: int) -> bytes:
    """Encode an integer as protobuf does: seven bits a byte, the lowest first, the top bit set but in the last."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
