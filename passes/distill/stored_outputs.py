"""A teacher's outputs on disk, by the ids of samples: it runs once, not in each epoch.

    values = store_outputs(teacher, DataLoader(with_ids(dataset), 64), "teacher.safetensors")
    AttachTeacher(values, losses=(KLDivergence(4.0),))

The file is a safetensors file with the tensors `values` [samples, ...] and `ids` [samples]. They fit the samples that
the teacher has seen: with random augmentation, those of the epochs after are others.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fxopt.data import Data
from fxopt.errors import DataError, PassError
from fxopt.graph.interpret import run
from fxopt.graph.program import Program
from fxopt.passes.distill.identified import identified_items
from fxopt.passes.distill.streamed_file import DTYPES, StreamedFile

FORMAT = "stored outputs 1"
SHOWN = 5  # ids in an error


def store_outputs(
    teacher: Program, data: Data, path: str | Path, output: int = 0, dtype: torch.dtype = torch.float32
) -> StoredOutputs:
    """Run a teacher, in inference mode, over data whose items carry ids; write one of its outputs to a file.

    - `data`: any iterable of items: tuples (inputs..., ids), labels or others between them, or dicts with "ids". Ids
      are integers [batch], such as with_ids() gives. An item is in memory at a time.
    - `output`: its position among the flat outputs; [batch, ...] of one shape in all items but for the batch.
    - `dtype`: of the file: float32, or float16 of half the size.

    The file appears complete or not at all. Raises DataError for data that is empty, does not fit, has no ids or one
    twice, and for a path that cannot be written; PassError for other options, and for values that are NaN or too
    large for `dtype`.
    """
    _safe_open()
    _check_options(teacher, output, dtype)
    spec = teacher.outputs[output]
    assert spec is not None
    running, seen = teacher.eval(), set[int]()
    with _whole_file(Path(path)) as file:
        stored = StreamedFile(file, dtype)
        for number, (ids, inputs) in enumerate(identified_items(data, teacher)):
            values = run(running, inputs)[output].cpu()
            where = f"Item {number}: output {output} ('{spec.name}')"
            if values.ndim == 0 or len(values) != len(ids):
                raise DataError(f"{where} is {list(values.shape)} for {len(ids)} ids; it must run over the samples.")
            _check_new(ids, seen)
            _check_shape(values, stored, where)
            stored.add(_converted(values, dtype, where), ids)
        if not seen:
            raise DataError("There is nothing to store: the data is empty.")
        stored.close({"fxopt": FORMAT, "output": spec.name})
    return StoredOutputs(Path(path))


@dataclass(frozen=True)
class StoredOutputs:
    """A teacher's outputs in a file that store_outputs() wrote; calling it with ids returns their values.

    `metadata` says what was stored. Values are read from the disk as they are asked for. Raises DataError for a file
    that is missing or another one, PassError where safetensors is not installed.
    """

    path: str | Path
    metadata: dict[str, str] = field(init=False, repr=False, compare=False)
    _values: Tensor = field(init=False, repr=False, compare=False)  # [samples, ...], mapped
    _ids: Tensor = field(init=False, repr=False, compare=False)  # [samples], sorted
    _order: Tensor = field(init=False, repr=False, compare=False)  # [samples]: the rows of these ids

    def __post_init__(self) -> None:
        metadata, values, ids = _read(Path(self.path))
        ordered, order = ids.sort()
        for name, value in (("metadata", metadata), ("_values", values), ("_ids", ordered), ("_order", order)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self._ids)

    def __call__(self, ids: Tensor) -> Tensor:
        """Return the values [batch, ...] of samples with these ids [batch], in float32, on the device of the ids.

        Raises DataError, naming them, for ids that are not in the file.
        """
        asked = ids.detach().cpu().long()
        places = torch.searchsorted(self._ids, asked).clamp(max=len(self) - 1)
        missing = asked[self._ids[places] != asked]
        if len(missing):
            raise DataError(
                f"'{self.path}' has no outputs of {len(missing)} of {len(asked)} samples: {_listed(missing.tolist())}. "
                "Store those of all samples to train on, with the same ids."
            )
        return self._values[self._order[places]].float().to(ids.device)


def _read(path: Path) -> tuple[dict[str, str], Tensor, Tensor]:
    safe_open = _safe_open()
    if not path.is_file():
        raise DataError(f"There is no file '{path}'; write it with store_outputs().")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fxopt") == FORMAT:
                return metadata, file.get_tensor("values"), file.get_tensor("ids")
    except Exception as error:
        raise DataError(f"'{path}' cannot be read as a safetensors file: {error}") from None
    raise DataError(f"'{path}' holds no stored outputs that this fxopt reads; write it with store_outputs().")


def _safe_open() -> Callable[..., Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise PassError('Stored outputs need safetensors: pip install "fxopt[train]".') from None
    return safe_open


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file under another name beside `path`; on success it takes its place, on failure it vanishes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        file = temporary.open("wb")
    except OSError as error:
        raise DataError(f"Cannot write '{path}': {error}.") from None
    try:
        with file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_options(teacher: Program, output: int, dtype: torch.dtype) -> None:
    tensors = [position for position, spec in enumerate(teacher.outputs) if spec is not None]
    if output not in tensors:
        raise PassError(f"The teacher has no tensor output {output}; choose one of {tensors}.")
    if dtype not in DTYPES:
        raise PassError(f"Outputs are stored as one of {', '.join(map(str, DTYPES))}, not {dtype}.")


def _check_new(ids: Tensor, seen: set[int]) -> None:
    numbers = ids.tolist()
    twice = sorted(seen.intersection(numbers)) or [number for number in set(numbers) if numbers.count(number) > 1]
    if twice:
        raise DataError(
            f"These ids come twice: {_listed(twice)}. Give each sample one of its own, once: with_ids(dataset) does; "
            "the last element of a tuple is read as the ids."
        )
    seen.update(numbers)


def _check_shape(values: Tensor, stored: StreamedFile, where: str) -> None:
    if stored.shape is not None and values.shape[1:] != stored.shape:
        raise DataError(
            f"{where} is {list(values.shape)}, but [..., {', '.join(map(str, stored.shape))}] before; give all items "
            "one shape, with sequences padded to one length."
        )


def _converted(values: Tensor, dtype: torch.dtype, where: str) -> Tensor:
    converted = values.to(dtype)
    if values.isnan().any():
        raise PassError(f"{where} holds NaN; look at the teacher and at the data.")
    if (converted.isinf() & ~values.isinf()).any():
        raise PassError(f"{where} holds {float(values.abs().max()):.4g}, too large for {dtype}; store float32.")
    return converted


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")
