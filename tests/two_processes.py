"""Run a module of the tests in two processes that can talk to each other."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def launch(arguments: list[str]) -> None:
    """Run `python -m` with these arguments as both processes of torch.distributed; both must succeed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    setting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    common = {**os.environ, **setting, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", "-m", *arguments]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
