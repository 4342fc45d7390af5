"""Give freed memory back to the operating system.

glibc keeps what a process frees, in pieces between what is still in use. After the work of one stage on tensors of
many sizes that can be more than the model itself. Graphs and their tensors hold each other, so that they are free only
after a collection of cycles.
"""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor


def release_memory() -> None:
    """Free what only cycles keep alive, such as graphs, and return free heap memory to the system."""
    gc.collect()
    return_free_memory()


def return_free_memory() -> None:
    """Return free heap memory to the system (with glibc; else nothing happens)."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def resident_memory() -> int:
    """Return how many bytes the process has in memory; 0 where the system does not tell (it does on Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@dataclass
class Trimmer:
    """Gives free memory back where a run over values has let the process grow.

    Left alone, what values took and no longer need grows to several times what is needed at once: their sizes differ.
    But memory that was given back has to be mapped and cleared anew, which can take as long as computing the values.
    So it is looked at each time that values of `every` elements were made, and given back after a growth of `growth`
    bytes.
    """

    every: int = 2**22
    growth: int = 2**25
    made: int = 0
    last: int = field(default_factory=resident_memory)

    def made_one(self, value: object) -> None:
        """Count a value that was just made."""
        self.made += value.numel() if isinstance(value, Tensor) else 0
        if self.made > self.every:
            self.made = 0
            if resident_memory() > self.last + self.growth:
                return_free_memory()
                self.last = resident_memory()


@contextmanager
def quick_collections() -> Iterator[None]:
    """Let collections of cycles look only at objects made from here on.

    A collection looks at every object there is, and libraries make millions: without this, collections take most of
    the time in which a small model is compiled.
    """
    if gc.get_freeze_count():  # somebody else's arrangement, or an outer call's
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
