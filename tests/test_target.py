"""The rows of the target table: what they promise of each other, and the arithmetic that the weight range rests on."""

import torch
from torch import Tensor

from fxopt.target import TARGETS, find_target


def test_rows_are_found_under_their_own_names() -> None:
    assert all(find_target(name) is target and target.name == name for name, target in TARGETS.items())


def test_targets_that_must_give_the_same_outputs_place_and_round_alike() -> None:
    for target in TARGETS.values():
        if target.same_as is not None:
            other = TARGETS[target.same_as]
            assert (target.activation, target.weight, target.weight_max) == (
                other.activation,
                other.weight,
                other.weight_max,
            )
            assert target.chain_ops == other.chain_ops


def vpmaddubsw(x: Tensor, weight: Tensor) -> Tensor:
    """The instruction of AVX2: products of uint8 and int8, neighbours summed with saturation to int16."""
    products = x.to(torch.int32) * weight.to(torch.int32)
    return (products[..., 0::2] + products[..., 1::2]).clamp(-(2**15), 2**15 - 1)


def pair_sums(largest: int) -> tuple[Tensor, Tensor]:
    """Return what vpmaddubsw makes of the largest products with weights up to ±`largest`, and the exact sums."""
    signs = torch.tensor([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    x, weight = torch.full((4, 2), 255), largest * signs
    return vpmaddubsw(x, weight), (x * weight).sum(-1, keepdim=True)


def test_weights_of_avx2_are_the_widest_whose_products_never_saturate() -> None:
    largest = TARGETS["x86-avx2"].weight_max
    assert 2 * 255 * largest <= 2**15 - 1 < 2 * 255 * (largest + 1)
    assert torch.equal(*pair_sums(largest))
    assert not torch.equal(*pair_sums(largest + 1))
    x, weight = torch.randint(0, 256, (1000, 64)), torch.randint(-largest, largest + 1, (1000, 64))
    assert torch.equal(vpmaddubsw(x, weight).sum(-1), (x * weight).sum(-1))
