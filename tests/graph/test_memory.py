"""Freed memory goes back to the system."""

import gc
import platform
import resource
import weakref
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from fxopt.graph.memory import Trimmer, quick_collections, release_memory


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory and can be told to trim")
def test_a_trimmer_gives_memory_back_only_where_the_process_has_grown() -> None:
    release_memory()
    value, trims = torch.empty(1000), []
    with patch("fxopt.graph.memory.return_free_memory", lambda: trims.append(resident())):
        trimmer = Trimmer(every=999, growth=50_000_000)
        for _ in range(5):
            trimmer.made_one(value)
        assert not trims
        held = torch.ones(20_000_000)
        for _ in range(5):
            trimmer.made_one(value)
        assert len(trims) == 1, "80 MB more were there at the first look, and none at the others"
    assert held.numel()


class Cycle:
    """An object that only a collection frees."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def thawed() -> Iterator[None]:
    """Let all objects be collected, as in a process that never froze any; the rest of the tests runs faster frozen."""
    gc.unfreeze()
    yield
    gc.freeze()


def test_quick_collections_leave_old_objects_alone_and_free_new_ones(thawed: None) -> None:
    old = weakref.ref(Cycle())
    with quick_collections():
        new = weakref.ref(Cycle())
        with quick_collections():  # a nested call changes nothing
            release_memory()
        assert new() is None and old() is not None
        assert gc.get_freeze_count()
    release_memory()
    assert old() is None and not gc.get_freeze_count()


def test_quick_collections_end_with_an_error(thawed: None) -> None:
    with pytest.raises(ValueError, match="inside"), quick_collections():
        raise ValueError("inside")
    assert not gc.get_freeze_count()


def test_objects_that_somebody_else_froze_stay_frozen(thawed: None) -> None:
    gc.freeze()
    with quick_collections():
        pass
    assert gc.get_freeze_count()
