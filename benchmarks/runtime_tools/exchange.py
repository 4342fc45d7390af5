"""Arrays between programs in any language: raw numbers, row-major and little-endian, and a JSON header beside them.

The header is {"arrays": [{"name", "dtype", "shape", "file"}, ...], ...facts}; a file lies in the header's folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def write_arrays(header: Path, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any] | None = None) -> None:
    """Write arrays, and `facts` into the header."""
    entries = []
    for index, (name, array) in enumerate(arrays.items()):
        file = f"{header.stem}.{index}.raw"
        array.astype(array.dtype.newbyteorder("<")).tofile(header.parent / file)
        entries.append({"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "file": file})
    header.write_text(json.dumps({**(facts or {}), "arrays": entries}))


def read_arrays(header: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays by name, and the facts. Raises ValueError if a file has not the size that the header says."""
    facts: dict[str, Any] = json.loads(header.read_text())
    arrays = {}
    for entry in facts.pop("arrays"):
        values = np.fromfile(header.parent / entry["file"], np.dtype(entry["dtype"]).newbyteorder("<"))
        arrays[entry["name"]] = values.astype(entry["dtype"]).reshape(entry["shape"])
    return arrays, facts
