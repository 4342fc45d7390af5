"""Freed memory goes back to the system."""

import platform
import resource
from pathlib import Path

import pytest

from fxopt.graph.memory import release_memory


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory and can be told to trim")
def test_freed_memory_below_what_is_in_use_is_returned() -> None:
    release_memory()
    start = resident()
    small = [bytes(1000) for _ in range(300_000)]  # below the size that is mapped and unmapped by itself
    in_use = small[::1000]
    del small
    release_memory()
    assert resident() - start < 60e6, "300 MB were taken, 0.3 are still in use"
    assert len(in_use) == 300
