"""Checkpoints: safetensors files whose header holds the rest of the state as JSON. A file is complete or not there."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fxopt.errors import TrainingError
from fxopt.graph.program import Program

Tensors = dict[str, Tensor]
KEY = "fxopt"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the state that goes with them, in types that JSON has."""

    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write to a file beside `path`, and put it there. Raises TrainingError for what cannot be written."""
        from safetensors.torch import save_file

        try:
            metadata = {KEY: json.dumps(self.state)}
        except TypeError as error:
            raise TrainingError(
                f"The state of the training cannot be written: {error}; train without a folder."
            ) from None
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file({name: value.detach().contiguous() for name, value in self.tensors.items()}, temporary, metadata)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise TrainingError(f"Cannot write the checkpoint '{path}': {error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    def part(self, prefix: str) -> Tensors:
        """Return the tensors whose names start so, by the rest of their names."""
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file that write() made. Raises TrainingError for any other."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            names = list(stream.keys())
            tensors = {name: stream.get_tensor(name) for name in names}
            return Checkpoint(tensors, json.loads(stream.metadata()[KEY]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"'{path}' is no checkpoint of fxopt.train, or it is damaged ({error}); remove it."
        ) from None


def fingerprint(program: Program) -> str:
    """Return a text that differs between Programs with different graphs or weights."""
    digest = hashlib.blake2b(program.module.code.encode(), digest_size=16)
    for name, value in (*program.module.named_parameters(), *program.module.named_buffers()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} {value.requires_grad}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def optimizer_checkpoint(optimizer: Optimizer) -> Checkpoint:
    """Return what an optimizer remembers: moments and counts as tensors, the rest as state."""
    state = optimizer.state_dict()
    tensors: Tensors = {}
    plain: dict[str, dict[str, Any]] = {}
    for number, values in state["state"].items():
        tensors |= {f"{number}.{key}": value for key, value in values.items() if isinstance(value, Tensor)}
        plain[str(number)] = {key: value for key, value in values.items() if not isinstance(value, Tensor)}
    groups = [{key: _number(value) for key, value in group.items()} for group in state["param_groups"]]
    return Checkpoint(tensors, {"values": plain, "groups": groups})


def restore_optimizer(optimizer: Optimizer, saved: Checkpoint) -> None:
    """Give an optimizer of the same parameters what optimizer_checkpoint() kept."""
    parameters = [value for group in optimizer.param_groups for value in group["params"]]
    state: dict[int, dict[str, Any]] = {int(number): dict(values) for number, values in saved.state["values"].items()}
    for name, value in saved.tensors.items():
        number, key = name.split(".", 1)
        like = parameters[int(number)]
        if value.shape == like.shape:  # in the layout of its parameter, for sums in the same order
            value = torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
        state[int(number)][key] = value
    optimizer.load_state_dict({"state": state, "param_groups": list(saved.state["groups"])})


def replay(schedule: LRScheduler, steps: int) -> None:
    """Step a fresh schedule as often as the first run did: it comes to the very same rates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the steps of the optimizer
        for _ in range(steps):
            schedule.step()


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
