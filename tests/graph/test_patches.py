"""patches(): the rows of a convolution, against torch's own convolutions."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fxopt.graph.patches import patches, stuffed


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    spatial=st.integers(1, 3),
    size=st.integers(5, 8),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
)
def test_patches_times_weight_are_a_convolution(
    spatial: int, size: int, kernel: int, stride: int, padding: int, dilation: int
) -> None:
    x, weight = torch.randn(2, 3, *[size] * spatial), torch.randn(4, 3, *[kernel] * spatial)
    convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
    expected = convolution(x, weight, None, stride, padding, dilation).movedim(1, -1).reshape(-1, 4)
    taken = torch.randperm(len(expected))[:7]
    options = [[kernel] * spatial, [stride] * spatial, [(padding, padding)] * spatial, [dilation] * spatial]
    found = patches(x, taken, *options)  # type: ignore[arg-type]
    torch.testing.assert_close(found.flatten(1) @ weight.flatten(1).t(), expected[taken], atol=1e-5, rtol=1e-4)


def test_stuffed_puts_zeros_between() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    expected = torch.tensor([[[[1.0, 0.0, 0.0, 2.0], [0.0] * 4, [3.0, 0.0, 0.0, 4.0]]]])
    assert torch.equal(stuffed(x, [2, 3]), expected)
