"""The target of this machine, for target="auto": from the name of its architecture and the features of its CPU."""

from __future__ import annotations

import platform
from collections.abc import Collection

import torch

X86 = ("x86_64", "amd64")
ARM64 = ("aarch64", "arm64")

# What a CPU must have one of -> the target; the first row that fits. x86-avx2 is right on every x86 CPU.
X86_TARGETS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"amx_int8"}), "x86-amx"),
    (frozenset({"avx512_vnni", "avx_vnni"}), "x86"),
)


def target_of(machine: str, features: Collection[str]) -> str:
    """Return the name of the target for an architecture (as platform.machine() spells it) with these CPU features."""
    machine = machine.lower()
    if machine in ARM64:
        return "arm64"
    if machine not in X86:
        return "portable"
    return next((target for wanted, target in X86_TARGETS if wanted.intersection(features)), "x86-avx2")


def cpu_features() -> frozenset[str]:
    """Return the features of this CPU under their names in Linux (amx_int8, avx512_vnni, ...); empty if unknown."""
    try:
        capabilities = torch.cpu.get_capabilities()
    except RuntimeError:  # torch cannot read this CPU
        return frozenset()
    return frozenset(name for name, present in capabilities.items() if present is True)


def this_machine() -> str:
    """Return the name of the target for this machine."""
    return target_of(platform.machine(), cpu_features())
