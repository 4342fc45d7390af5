"""Calibration and training data: any iterable of items shaped like the example inputs, checked as it streams by.

An item is what the model is called with: a Tensor, a tuple (positional) or a dict (keywords). Further elements of a
tuple, such as the labels that a DataLoader gives, are left out. Nothing is kept: one item at a time is in memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import operator
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxopt.errors import DataError, ModelError
from fxopt.graph.program import Program

Data = Iterable[Any]
Item = TypeVar("Item")
BATCH = 16


def calibration_inputs(data: Data | str | Path, program: Program) -> Iterator[tuple[Tensor, ...]]:
    """Stream the tensor inputs of a Program, in order, out of calibration data.

    Raises DataError, naming the item, for data that is empty, has another structure, shape or dtype, or holds NaN or
    infinities.
    """
    return (tensors for _, tensors in calibration_items(data, program))


def calibration_items(data: Data | str | Path, program: Program) -> Iterator[tuple[Any, tuple[Tensor, ...]]]:
    """Stream each item of calibration data as it is, labels included, with its tensor inputs; raises the same."""
    source = load_data(data, program) if isinstance(data, (str, Path)) else data
    if isinstance(source, Tensor):
        raise DataError("Calibration data is one Tensor; give a list of inputs, for example list(x.split(8)).")
    try:
        items = iter(source)
    except TypeError:
        raise DataError(f"Calibration data must be iterable, got {type(source).__name__}.") from None
    count = 0
    for count, item in enumerate(items, start=1):
        yield item, _checked(item, program, count - 1)
    if count == 0:
        raise DataError("The calibration data is empty; give at least one item shaped like the example inputs.")


def first_samples(items: Iterable[Item], samples: int) -> list[Item]:
    """Take items until they hold so many samples (the first dimension of their first tensor); at least one item."""
    taken, count = [], 0
    for item in items:
        taken.append(item)
        first = next((leaf for leaf in pytree.tree_leaves(item) if isinstance(leaf, Tensor)), None)
        count += first.shape[0] if first is not None and first.ndim else 1
        if count >= samples:
            break
    return taken


def split_items(items: Iterable[Any], program: Program, samples: int) -> list[Any]:
    """Split items into ones of at most so many samples, if the batch of all inputs is one dynamic dimension.

    Less is in memory at once when a Program runs them one by one.
    """
    names = {spec.shape[0] if spec.shape else 0 for spec in program.inputs}
    if len(names) != 1 or any(isinstance(name, int) for name in names):
        return list(items)
    return [part for item in items for part in _parts(item, samples)]


def samples_of(data: Data | str | Path, program: Program, samples: int, at_once: int) -> list[tuple[Tensor, ...]]:
    """Return the tensor inputs of the first samples of calibration data, in parts of at most `at_once` if they split.

    Raises DataError as calibration_inputs() does, and if no item holds a sample.
    """
    split = split_items(first_samples(calibration_inputs(data, program), samples), program, at_once)
    items = [item for item in split if all(tensor.numel() for tensor in item)]
    if not items:
        raise DataError("The calibration data holds no samples; give at least one item shaped like the example inputs.")
    return items


def _parts(item: Any, samples: int) -> Iterator[Any]:
    count = next(len(leaf) for leaf in pytree.tree_leaves(item) if isinstance(leaf, Tensor))
    for start in range(0, max(count, 1), samples):
        yield pytree.tree_map_only(Tensor, operator.itemgetter(slice(start, start + samples)), item)


@dataclass(frozen=True)
class CalibrationData:
    """Calibration data for a Program, checked as it streams by, that can be read more than once.

    Iterating gives items of the Program's own call structure: a dict if the call has keywords, else a tuple. What can
    be read once only (a generator) is kept in memory. `on_item` gets the number of each item and how many there are
    (None if that is not known).
    """

    source: Data | str | Path
    program: Program = field(repr=False)
    on_item: Callable[[int, int | None], None] = field(default=lambda number, count: None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.source, Iterator):
            object.__setattr__(self, "source", list(self.source))

    def __iter__(self) -> Iterator[dict[str, Any] | tuple[Any, ...]]:
        count = None if isinstance(self.source, (str, Path)) else operator.length_hint(self.source) or None
        for number, tensors in enumerate(calibration_inputs(self.source, self.program), start=1):
            self.on_item(number, count)
            yield _item_of(iter(tensors), self.program)


def _checked(item: Any, program: Program, index: int) -> tuple[Tensor, ...]:
    try:
        tensors = item_inputs(item, program)
    except DataError as error:
        raise DataError(f"Calibration item {index}: {error}") from None
    for spec, tensor in zip(program.inputs, tensors, strict=True):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError(f"Calibration item {index}: input '{spec.name}' holds NaN or infinity; clean the data.")
    return tensors


def item_inputs(item: Any, program: Program) -> tuple[Tensor, ...]:
    """Turn one item (Tensor, tuple, list or dict) into the tensor inputs of a Program, in order."""
    if isinstance(item, Mapping):
        return program.flatten(**item)
    if isinstance(item, (tuple, list)):
        wanted = sum(part.num_children for part in program.in_spec.children())
        return program.flatten(*item[: max(wanted, 1)])
    return program.flatten(item)


def load_data(source: str | Path, program: Program) -> Data:
    """Open calibration data by name: an `.npz` or `.npy` file, or `module:function` (or `file.py:function`).

    An .npz file holds one array an input, under the input's name; an .npy file the only input. Their first dimension
    runs over samples. A function is called without arguments and returns an iterable of items.
    """
    text = str(source)
    if text.endswith((".npz", ".npy")):
        return _array_batches(Path(text), program)
    if ":" in text:
        function = import_attribute(text)
        if not callable(function):
            raise DataError(f"{text} is a {type(function).__name__}, not a function that returns the data.")
        try:
            return function()  # type: ignore[no-any-return]
        except Exception as error:
            raise DataError(f"{text} failed: {type(error).__name__}: {error}") from error
    raise DataError(f"Cannot read calibration data from '{text}': give an .npz or .npy file, or module:function.")


def _array_batches(path: Path, program: Program) -> Iterator[dict[str, Any] | tuple[Any, ...]]:
    arrays = _load_arrays(path, [spec.name for spec in program.inputs])
    if not all(array.ndim for array in arrays):
        raise DataError(f"{path}: an array is a single number; its first dimension must run over samples.")
    counts = {len(array) for array in arrays}
    if len(counts) != 1:
        raise DataError(f"{path}: the arrays hold different numbers of samples: {sorted(counts)}.")
    count = counts.pop()
    first = program.inputs[0].shape[0] if program.inputs[0].shape else 1
    size = first if isinstance(first, int) else BATCH
    if 0 < count < size and isinstance(first, int):
        raise DataError(f"{path} holds {count} samples, fewer than the model's fixed batch of {size}.")
    for start in range(0, count - (size - 1 if isinstance(first, int) else 0), size):
        parts = (np.ascontiguousarray(array[start : start + size]) for array in arrays)
        tensors = (torch.from_numpy(part).to(spec.dtype) for part, spec in zip(parts, program.inputs, strict=True))
        yield _item_of(tensors, program)


def _item_of(tensors: Iterator[Tensor], program: Program) -> dict[str, Any] | tuple[Any, ...]:
    """Give tensor inputs, in order, the structure of the original call."""
    count = program.in_spec.num_leaves
    leaves = [program.constants[i] if i in program.constants else next(tensors) for i in range(count)]
    args, kwargs = pytree.tree_unflatten(leaves, program.in_spec)
    return {**dict(zip(program.parameters_of_call, args, strict=False)), **kwargs} if kwargs else tuple(args)


def _load_arrays(path: Path, names: list[str]) -> list[np.ndarray]:
    loaded = _read_arrays(path)
    if isinstance(loaded, np.ndarray):
        if len(names) != 1:
            wanted = ", ".join(names)
            raise DataError(f"{path} holds one array, but the inputs are {wanted}; use an .npz file with these names.")
        return [loaded]
    if len(names) == 1 and len(loaded) == 1:
        return list(loaded.values())
    missing = [name for name in names if name not in loaded]
    if missing:
        raise DataError(f"{path} holds {', '.join(loaded)}, but not the input(s) {', '.join(missing)}.")
    return [loaded[name] for name in names]


def _read_arrays(path: Path) -> np.ndarray | dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"There is no calibration file {path}.")
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            return loaded if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as NumPy data: {error}") from None


def import_attribute(text: str) -> Callable[..., Any]:
    """Import `package.module:name` or `file.py:name`. Raises ModelError, saying which part does not exist."""
    source, _, name = text.rpartition(":")
    if not source or not name:
        raise ModelError(f"'{text}' is not of the form module:name or file.py:name.")
    module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{source} has no '{name}'. It has: {', '.join(public[:20]) or 'no functions'}.")
    return getattr(module, name)  # type: ignore[no-any-return]


def _import_file(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"There is no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"{path} fails on import: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _import_module(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(f"There is no module '{name}': {error}.") from error
    except Exception as error:
        raise ModelError(f"Module '{name}' fails on import: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
