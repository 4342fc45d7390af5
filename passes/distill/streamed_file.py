"""A safetensors file written part by part, so that what it holds is never in memory together.

The format: the length of the header in 8 bytes, the header as JSON padded with spaces, then the tensors' bytes. Room
is left for the header, which is written at the end, when the number of samples is known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

HEADER = 4096 - 8  # bytes; so the tensors begin at a page
NAME = 256  # characters of a text in the header
# dtype -> its name in the header, and in NumPy, least significant byte first.
DTYPES: dict[torch.dtype, tuple[str, str]] = {torch.float32: ("F32", "<f4"), torch.float16: ("F16", "<f2")}


class StreamedFile:
    """The tensors `values` [samples, ...] and `ids` [samples] of a file under construction.

    `shape`: of the values without the samples, None before there are any.
    """

    def __init__(self, file: BinaryIO, dtype: torch.dtype) -> None:
        self.file, self.dtype = file, dtype
        self.shape: torch.Size | None = None
        self.ids: list[Tensor] = []
        file.seek(8 + HEADER)

    def add(self, values: Tensor, ids: Tensor) -> None:
        """Write the values [batch, ...] of samples with these ids [batch]."""
        self.shape = values.shape[1:]
        self.ids.append(ids)
        self.file.write(values.numpy().astype(DTYPES[self.dtype][1], copy=False).tobytes())

    def close(self, metadata: Mapping[str, str]) -> None:
        """Write the ids and the header."""
        ids = torch.cat(self.ids)
        values = self.file.tell() - 8 - HEADER
        self.file.write(ids.numpy().astype("<i8", copy=False).tobytes())
        header: dict[str, Any] = {
            "__metadata__": {key: text[:NAME] for key, text in metadata.items()},
            "values": _tensor(DTYPES[self.dtype][0], [len(ids), *(self.shape or ())], 0, values),
            "ids": _tensor("I64", [len(ids)], values, values + 8 * len(ids)),
        }
        text = json.dumps(header).encode().ljust(HEADER)
        assert len(text) == HEADER
        self.file.seek(0)
        self.file.write(HEADER.to_bytes(8, "little") + text)


def _tensor(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
