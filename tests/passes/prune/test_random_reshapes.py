"""Random chains of reshapes, permutations, slices and products with weights: the algebra of positions, as a whole."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fxopt.graph.capture import capture
from fxopt.passes.prune import channel_groups
from tests.passes.prune.checks import check_removal

Steps = list[tuple[str, int]]
SHAPES = ((12,), (2, 6), (6, 2), (3, 4), (4, 3), (2, 3, 2), (3, 2, 2), (2, 2, 3))


def _reshape(m: Chain, x: Tensor, choice: int) -> Tensor:
    """Divide the features anew, where the number of them allows it."""
    count = math.prod(x.shape[1:])
    fitting = [shape for shape in SHAPES if count % math.prod(shape) == 0]
    shape = fitting[choice % len(fitting)] if fitting else ()
    return x.reshape(2, *shape, count // math.prod(shape)) if choice % 3 else x.reshape(2, count)


def _transpose(m: Chain, x: Tensor, choice: int) -> Tensor:
    dims = list(range(1, x.ndim))
    turned = dims[choice % len(dims) :] + dims[: choice % len(dims)]
    return x.permute(0, *turned)


def _linear(m: Chain, x: Tensor, choice: int) -> Tensor:
    return functional.linear(x, m.weight(((6, 8, 12)[choice % 3], x.shape[-1])), m.weight(((6, 8, 12)[choice % 3],)))


def _scale(m: Chain, x: Tensor, choice: int) -> Tensor:
    """Multiply by weights of some dimensions, broadcast over the others."""
    shape = [size if (choice >> dim) & 1 else 1 for dim, size in enumerate(x.shape[1:])]
    return x * m.weight(tuple(shape))


def _convolution(m: Chain, x: Tensor, choice: int) -> Tensor:
    channels = x.shape[1]
    divisors = [groups for groups in range(1, channels + 1) if channels % groups == 0]
    groups = divisors[choice % len(divisors)]
    weight = m.weight((groups * (1 + choice % 2), channels // groups, 1))
    return functional.conv1d(x.flatten(2) if x.ndim > 2 else x[..., None], weight, groups=groups)


def _halves(m: Chain, x: Tensor, choice: int) -> Tensor:
    dim = 1 + choice % (x.ndim - 1)
    if x.shape[dim] % 2:
        return x
    left, right = x.chunk(2, dim)
    return (left * right, torch.cat([right, left], dim), left + torch.tanh(right))[choice % 3]


def _part(m: Chain, x: Tensor, choice: int) -> Tensor:
    dim = 1 + choice % (x.ndim - 1)
    length = max(1, x.shape[dim] - choice % 3)
    part = x.narrow(dim, x.shape[dim] - length, length)
    return part if choice % 2 else torch.cat([part, part.flip(dim)], dim)


def _wrapped(m: Chain, x: Tensor, choice: int) -> Tensor:
    dim = 1 + choice % (x.ndim - 1)
    return x.roll(1 + choice % 4, dim) + (x if choice % 2 else 0)


def _attention(m: Chain, x: Tensor, choice: int) -> Tensor:
    """Features are heads and their dimensions; positions come from a table of three tokens."""
    size = x.shape[-1]
    if size % 4:
        return x
    tokens = x.reshape(2, 1, -1, size) * m.weight((3, 1, 1))
    heads = tokens.sum(2).view(2, 3, (2, 4)[choice % 2], -1).transpose(1, 2)
    result = functional.scaled_dot_product_attention(heads, torch.tanh(heads), heads)
    return torch.cat([result.transpose(1, 2).reshape(2, 3, size)])


OPS: dict[str, Callable[[Chain, Tensor, int], Tensor]] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "linear": _linear,
    "scale": _scale,
    "convolution": _convolution,
    "halves": _halves,
    "part": _part,
    "wrapped": _wrapped,
    "attention": _attention,
    "act": lambda m, x, choice: (torch.tanh(x), torch.sigmoid(x), x.softmax(-1), x - x.amax(1, True))[choice % 4],
    "sum": lambda m, x, choice: x if x.ndim < 3 else x.sum(1 + choice % (x.ndim - 1)),
}


class Chain(nn.Module):
    """A linear, the drawn steps, and a linear; weights are made on the first run."""

    def __init__(self, steps: Steps, seed: int) -> None:
        super().__init__()
        self.steps = steps
        self.weights = nn.ParameterList()
        self.generator = torch.Generator().manual_seed(seed)
        self.used = 0

    def weight(self, shape: tuple[int, ...]) -> Tensor:
        """Return the next weight; the first run makes it."""
        if self.used == len(self.weights):
            self.weights.append(nn.Parameter(torch.randn(shape, generator=self.generator) / math.sqrt(shape[-1])))
        self.used += 1
        weight: Tensor = self.weights[self.used - 1]
        return weight

    def forward(self, x: Tensor) -> Tensor:
        self.used = 0
        x = functional.linear(x, self.weight((24, 5)))
        for name, choice in self.steps:
            x = OPS[name](self, x, choice)
        x = x.flatten(1)
        return functional.linear(x, self.weight((3, x.shape[1])))


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(OPS)), st.integers(0, 23)), min_size=1, max_size=8),
    seed=st.integers(0, 9),
)
def test_units_of_a_random_chain_can_go(steps: Steps, seed: int) -> None:
    model, x = Chain(steps, seed), torch.randn(2, 5, generator=torch.Generator().manual_seed(seed))
    model(x)
    program = capture(model, (x,))
    groups = channel_groups(program)
    assert groups.unknown == {}
    # A sum reads what a bias makes of a unit whose weights are zero, and nothing of one that is gone.
    exact = all(name != "sum" for name, _ in steps)
    check_removal(program, (x,), exact, seed)
