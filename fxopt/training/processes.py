"""The processes that train together: what `accelerate launch` or `torchrun` has started, one otherwise.

All read the same items, with the same random numbers; each computes with its share of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxopt.errors import DataError, TrainingError
from fxopt.graph.program import Program
from fxopt.training.items import Item
from fxopt.training.options import Training


def accelerator_for(program: Program, training: Training) -> Any:
    """Return the Accelerator to train a Program with: on the CPU, unless its tensors are elsewhere.

    Raises TrainingError if accelerate is not installed, or was set up otherwise in this process.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise TrainingError(f'Training needs accelerate ({error}); run: pip install "fxopt[train]"') from None
    devices = {tensor.device.type for tensor in program.module.parameters()}
    ddp = DistributedDataParallelKwargs(find_unused_parameters=not _all_count(program, training))
    try:
        # the loop itself says what is computed in bfloat16 and what is accumulated; tensors stay where they are, for a
        # copy to accelerate's "cpu:0" would part the buffers from those of the Program
        return Accelerator(device_placement=False, mixed_precision="no", cpu=devices <= {"cpu"}, kwargs_handlers=[ddp])
    except ValueError as error:
        raise TrainingError(f"This process has set up accelerate in another way: {error}") from None


def device_of(program: Program) -> torch.device:
    """Return the device that a Program computes on."""
    return next(iter(program.parameters())).device


def _all_count(program: Program, training: Training) -> bool:
    """Say whether every output surely counts in the loss, so that every parameter gets a gradient."""
    counted = {tap.student for tap in program.taps}
    compared = {tap.teacher for tap in program.taps}
    others = [n for n, spec in enumerate(program.outputs) if spec is not None and n not in counted | compared]
    return not others or (training.task is not None and others == [0])


def part_of(item: Item, program: Program, accelerator: Any) -> Item:
    """Return the share of this process in the rows of an item, on the device of the Program.

    Rows run along the first dimension of the inputs that have that of the first input, of labels and of ids. Raises
    DataError for fewer rows than processes, and TrainingError for a batch that was captured with a fixed size.
    """
    count, index = accelerator.num_processes, accelerator.process_index
    if count == 1:
        return item.to(device_of(program))
    name = program.inputs[0].shape[0] if program.inputs and program.inputs[0].shape else 1
    if isinstance(name, int):
        raise TrainingError(f'{count} processes divide the rows of an item: capture the Program with dynamic="batch".')
    rows = len(item.inputs[0])
    if rows < count:
        raise DataError(
            f"An item has {rows} rows for {count} processes; leave it out, as a DataLoader does with drop_last."
        )
    mine = slice(rows * index // count, rows * (index + 1) // count)
    inputs = tuple(
        value[mine] if spec.shape and spec.shape[0] == name else value
        for spec, value in zip(program.inputs, item.inputs, strict=True)
    )
    labels, ids = (pytree.tree_map_only(Tensor, lambda tensor: tensor[mine], part) for part in (item.labels, item.ids))
    return Item(inputs, labels, ids).to(device_of(program))


def joint_losses(total: Tensor, parts: Mapping[str, Tensor], accelerator: Any) -> dict[str, float]:
    """Return the loss and its parts as numbers, the means over all processes."""
    found = {"loss": total.detach(), **parts}
    if accelerator.num_processes == 1:
        return {name: float(value) for name, value in found.items()}
    values = torch.stack([value.reshape(()).double() for value in found.values()])
    return dict(zip(found, accelerator.reduce(values, "mean").tolist(), strict=True))


def from_main(value: float | None, accelerator: Any) -> float | None:
    """Return the value of the main process in all of them."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    broadcast_object_list(values)
    return values[0]


def own_noise(accelerator: Any, seed: int, step: int) -> AbstractContextManager[None]:
    """Give each of several processes its own random numbers within: their rows need different dropout."""
    return nullcontext() if accelerator.num_processes == 1 else _noise(accelerator, seed, step)


@contextmanager
def _noise(accelerator: Any, seed: int, step: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[] if accelerator.device.type == "cpu" else None):
        torch.manual_seed((seed * 1_000_003 + step) * accelerator.num_processes + accelerator.process_index)
        yield
