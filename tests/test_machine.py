"""target="auto": a table from architecture and CPU features to targets, and what this machine says of itself."""

import platform
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fxopt.compile import resolve_target
from fxopt.machine import cpu_features, target_of, this_machine
from fxopt.target import TARGETS, find_target

SKYLAKE = {"sse4_1", "avx2", "avx512_f", "avx512_bw"}


@pytest.mark.parametrize(
    ("machine", "features", "target"),
    [
        ("x86_64", {*SKYLAKE, "avx512_vnni", "amx_tile", "amx_int8"}, "x86-amx"),
        ("x86_64", {*SKYLAKE, "avx512_vnni", "amx_tile", "amx_bf16"}, "x86"),  # tiles, but not of integers
        ("x86_64", {*SKYLAKE, "avx512_vnni"}, "x86"),
        ("AMD64", {"avx2", "avx_vnni"}, "x86"),
        ("x86_64", SKYLAKE, "x86-avx2"),
        ("AMD64", {"avx2"}, "x86-avx2"),
        ("x86_64", set(), "x86-avx2"),
        ("aarch64", {"neon", "dot"}, "arm64"),
        ("arm64", set(), "arm64"),
        ("ARM64", set(), "arm64"),
        ("riscv64", set(), "portable"),
        ("", set(), "portable"),
    ],
)
def test_features_decide_the_target(machine: str, features: set[str], target: str) -> None:
    assert target_of(machine, features) == target
    assert target in TARGETS


def test_auto_is_this_machine() -> None:
    assert resolve_target("auto").name == this_machine() == target_of(platform.machine(), cpu_features())
    assert find_target("auto") is TARGETS[this_machine()]


def test_a_cpu_that_cannot_be_read_gets_the_target_that_is_always_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Mapping[str, object]:
        raise RuntimeError("Failed to initialize cpuinfo!")

    monkeypatch.setattr(torch.cpu, "get_capabilities", fail)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert cpu_features() == frozenset()
    assert this_machine() == "x86-avx2"


def test_features_are_those_that_linux_lists() -> None:
    path = Path("/proc/cpuinfo")
    flags = path.read_text().partition("flags")[2].partition("\n")[0].split() if path.exists() else []
    if not flags:
        pytest.skip("no flags in /proc/cpuinfo")
    for name in ("avx2", "avx_vnni", "avx512_vnni", "amx_int8"):
        assert (name in cpu_features()) == (name in flags), name
