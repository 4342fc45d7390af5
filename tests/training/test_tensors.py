"""Copies of what training changes."""

from __future__ import annotations

import torch

from fxopt.training.tensors import first_not_finite, load_tensors, own_copy, trainable, trained_tensors
from tests.training.models import network


def test_frozen_parameters_are_shared_and_the_rest_is_copied() -> None:
    _, program = network()
    program.module.get_parameter("conv.weight").requires_grad_(False)
    copy = own_copy(program)
    assert set(trained_tensors(copy)) == set(trained_tensors(program)) and "conv.weight" not in trained_tensors(copy)
    assert set(trained_tensors(copy)) - set(trainable(copy)) == {"norm.running_mean", "norm.running_var"}
    assert copy.module.get_parameter("conv.weight") is program.module.get_parameter("conv.weight")
    for name, value in trained_tensors(copy).items():
        original = trained_tensors(program)[name]
        assert torch.equal(value, original) and value.data_ptr() != original.data_ptr()
        assert value.requires_grad == original.requires_grad


def test_the_layout_is_that_of_kernels_alone() -> None:
    _, program = network()
    copy = own_copy(program, torch.channels_last)
    assert copy.module.get_parameter("conv.weight").is_contiguous(memory_format=torch.channels_last)
    back = own_copy(copy, torch.contiguous_format)
    assert all(value.is_contiguous() for value in trained_tensors(back).values())


def test_values_are_written_into_the_tensors_that_are_there() -> None:
    _, program = network()
    expected = {name: torch.full_like(value, 3.0).detach() for name, value in trained_tensors(program).items()}
    before = program.module.get_parameter("head.bias")
    load_tensors(program, expected)
    assert program.module.get_parameter("head.bias") is before and before.requires_grad
    assert all((value == 3).all() for value in trained_tensors(program).values())


def test_what_is_no_number_is_named() -> None:
    _, program = network()
    assert first_not_finite(program) is None
    with torch.no_grad():
        program.module.get_parameter("head.bias")[1] = float("inf")
    assert first_not_finite(program) == "head.bias"
