"""Give freed memory back to the operating system.

glibc keeps what a process frees, in pieces between what is still in use. After the work of one stage on tensors of
many sizes that can be more than the model itself.
"""

from __future__ import annotations

import ctypes
import gc
import platform


def release_memory() -> None:
    """Free what only cycles keep alive, and return free heap memory to the system (with glibc; else nothing more)."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
