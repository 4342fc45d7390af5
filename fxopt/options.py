"""What the command line's options mean: shapes, dynamic dimensions, and files to write."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxopt.errors import DataError, ExportError
from fxopt.graph.capture import Dynamic

DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:[x,]\d+)*)(?::(?P<dtype>\w+))?")
INPUT_FORM = "write SHAPE, NAME=SHAPE or NAME=SHAPE:DTYPE, for example 1x3x224x224 or input_ids=1x128:int64"
DIMENSIONS = re.compile(r"(?P<name>[\w.]+):(?P<dims>-?\d+=[A-Za-z_]\w*(?:,-?\d+=[A-Za-z_]\w*)*)")
DIMENSIONS_FORM = "write a name (batch), or INPUT:DIMENSION=NAME,... for example input_ids:0=batch,1=sequence"


def parse_inputs(texts: Sequence[str]) -> Any:
    """Make example inputs of the given shapes: a tuple (without names), a dict (with names), or None for no text."""
    if not texts:
        return None
    generator = torch.Generator().manual_seed(0)
    pairs = [_input(text, generator) for text in texts]
    named = {name: tensor for name, tensor in pairs if name}
    if named and len(named) != len(pairs):
        raise DataError(f"--input: give every input another name, or none of them a name: {', '.join(texts)}.")
    return named or tuple(tensor for _, tensor in pairs)


def _input(text: str, generator: torch.Generator) -> tuple[str | None, Tensor]:
    match = INPUT.fullmatch(text)
    if match is None:
        raise DataError(f"--input '{text}' is not understood: {INPUT_FORM}.")
    dtype = match["dtype"] or "float32"
    if dtype not in DTYPES:
        raise DataError(f"--input '{text}': there is no dtype '{dtype}'. Choose one of {', '.join(DTYPES)}.")
    return match["name"], example([int(size) for size in re.split("[x,]", match["shape"])], DTYPES[dtype], generator)


def example(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return standard normal values for a float dtype, zeros and ones for any other."""
    if dtype.is_floating_point:
        return torch.randn(*shape, generator=generator).to(dtype)
    return torch.randint(0, 2, tuple(shape), generator=generator).to(dtype)


def parse_dynamic(texts: Sequence[str]) -> Dynamic:
    """Read `batch`, `none`, or any number of `input_ids:0=batch,1=sequence`; no text is none."""
    if not texts:
        return None
    if len(texts) == 1 and texts[0].isidentifier():
        return None if texts[0] == "none" else texts[0]
    dims: dict[str, dict[int, str]] = {}
    for text in texts:
        match = DIMENSIONS.fullmatch(text)
        if match is None:
            raise DataError(f"--dynamic '{text}' is not understood: {DIMENSIONS_FORM}.")
        pairs = (pair.split("=") for pair in match["dims"].split(","))
        dims.setdefault(match["name"], {}).update({int(dim): label for dim, label in pairs})
    return dims


def check_writable(path: Path | None, suffix: str) -> None:
    """Raise ExportError unless a file of this suffix can be written there; None is no file."""
    if path is None:
        return
    if path.suffix != suffix:
        raise ExportError(f"{path} should end in {suffix}.")
    if path.is_dir():
        raise ExportError(f"{path} is a folder; name the file, for example {path / f'model{suffix}'}.")
    if not path.parent.is_dir():
        raise ExportError(f"Cannot write {path}: there is no folder {path.parent}. Create it first.")
    if not os.access(path.parent, os.W_OK):
        raise ExportError(f"Cannot write {path}: the folder {path.parent} is not writable.")


def write_text(path: Path, text: str) -> Path:
    """Write a text file that appears complete or not at all. Raises ExportError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ExportError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
