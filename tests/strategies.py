"""Hypothesis strategies: small random networks with what cleanup passes look for.

A network is a list of blocks, each a function of (value, channels, spatial dimensions, random generator of the
settings). Blocks are drawn, then built with weights from a drawn seed, so that a failure prints as data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZE = {1: 12, 2: 8, 3: 6}  # the input's size in each spatial dimension


@dataclass(frozen=True)
class Drawn:
    """One random network as data: what `build` makes a module of."""

    spatial: int
    channels: int
    blocks: tuple[tuple[str, int], ...]
    seed: int

    def build(self) -> nn.Module:
        """Return the module, in inference mode."""
        torch.manual_seed(self.seed)
        return Network(self).eval()

    def inputs(self, batch: int = 2) -> tuple[Tensor]:
        """Return an example input, `[batch, channels, size, ...]`."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return (torch.randn(batch, self.channels, *[SIZE[self.spatial]] * self.spatial, generator=generator),)


def _norm(spatial: int, channels: int, choice: int) -> nn.Module:
    norm = BATCH_NORMS[spatial](channels, affine=bool(choice % 4))
    norm.running_mean = torch.randn(channels) if choice % 3 else torch.zeros(channels)
    norm.running_var = torch.rand(channels) + 0.5
    if choice % 4:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias) if choice % 3 else nn.init.zeros_(norm.bias)
    return norm


def _conv(spatial: int, channels: int, choice: int) -> tuple[nn.Module, int]:
    kernel = 1 + 2 * (choice % 2)
    groups = (1, channels, 1, 2 if channels % 2 == 0 else 1)[choice // 2 % 4]
    out = channels if groups > 1 else (channels, 2 * channels, 3)[choice // 8 % 3]
    padding: int | str = (kernel // 2, "same", kernel // 2, 0)[choice // 3 % 4] if kernel == 3 else 0
    stride = 1 if padding == "same" or kernel == 3 else 1 + choice // 5 % 2
    module = CONVOLUTIONS[spatial](channels, out, kernel, stride, padding, groups=groups, bias=bool(choice % 5))
    return module, out


def _transposed(spatial: int, channels: int, choice: int) -> tuple[nn.Module, int]:
    groups = channels if choice % 2 else 1
    return TRANSPOSED[spatial](channels, channels, 2 + choice % 2, groups=groups, bias=bool(choice % 3)), channels


class _Scale(nn.Module):
    """A multiplication and an addition of a constant per channel, or of one number."""

    def __init__(self, spatial: int, channels: int, choice: int) -> None:
        super().__init__()
        self.choice = choice
        shape = (channels, *[1] * spatial)
        self.gamma = nn.Parameter(torch.rand(shape) + 0.5)
        self.beta = nn.Buffer(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.gamma, x + self.beta, 1.5 - x, x / 2, x * self.gamma + self.beta)[self.choice % 5]


class _Product(nn.Module):
    """A product with a matrix over the channels, in one of several spellings."""

    def __init__(self, channels: int, choice: int) -> None:
        super().__init__()
        self.choice = choice
        self.matrix = nn.Parameter(torch.randn(channels, channels) / channels**0.5)
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        product = (
            lambda: rows @ self.matrix,
            lambda: rows @ self.matrix.t() + self.bias,
            lambda: torch.addmm(self.bias, rows.flatten(0, 1), self.matrix).view(rows.shape),
            lambda: (rows @ self.matrix) @ self.matrix.transpose(0, 1),
        )[self.choice % 4]()
        return product.transpose(1, 2).reshape(x.shape)


class _Function(nn.Module):
    """A block without weights."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _shuffle(x: Tensor, choice: int) -> Tensor:
    """Reshape and transpose there and back, in one of several ways."""
    if choice % 3 == 0:
        return x.flatten(2).reshape(x.shape).contiguous()
    if choice % 3 == 1:
        return x.transpose(1, -1).contiguous().transpose(-1, 1)
    return x.contiguous().view(x.shape[0], -1).view(x.shape)[:, :]


def _no_op(x: Tensor, choice: int) -> Tensor:
    dropped = functional.dropout(x, 0.5, training=False)
    return (x + 0, x * 1.0, x.to(x.dtype), dropped, x[:], x.expand_as(x).clone(), x.unsqueeze(1).squeeze(1))[choice % 7]


def _constant(x: Tensor, choice: int) -> Tensor:
    ramp = (torch.arange(x.shape[-1]) * 0.1).to(x.dtype)
    return x * torch.ones(1) + (ramp if choice % 2 else torch.sin(ramp).expand(x.shape[-1]))


def _pad_and_pool(x: Tensor, choice: int) -> Tensor:
    spatial = x.ndim - 2
    max_pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[spatial]
    avg_pool: Callable[..., Tensor] = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[
        spatial
    ]
    if choice % 3 == 0:
        return max_pool(functional.pad(x, [1] * 2 * spatial, value=float("-inf")), 3, 1)
    if choice % 3 == 1:
        return avg_pool(functional.pad(x, [1] * 2 * spatial), 3, 1, count_include_pad=bool(choice % 2))
    return functional.pad(x, [1, choice % 2])


def _block(kind: str, spatial: int, channels: int, choice: int) -> tuple[nn.Module, int]:
    """Return a block and its number of output channels."""
    if kind == "conv":
        return _conv(spatial, channels, choice)
    if kind == "conv_transpose":
        return _transposed(spatial, channels, choice)
    if kind == "product":
        return _Product(channels, choice), channels
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "act": (torch.relu, torch.sigmoid, functional.gelu)[choice % 3],
        "shuffle": lambda x: _shuffle(x, choice),
        "no_op": lambda x: _no_op(x, choice),
        "constant": lambda x: _constant(x, choice),
        "pad": lambda x: _pad_and_pool(x, choice),
        "twice": lambda x: torch.relu(x) + torch.relu(x) * (1 + choice % 2),
    }
    if kind in functions:
        return _Function(functions[kind]), channels
    return (_norm if kind == "norm" else _Scale)(spatial, channels, choice), channels


KINDS = (
    *("conv", "conv", "conv_transpose", "norm", "norm", "scale"),
    *("act", "shuffle", "no_op", "constant", "pad", "twice", "product"),
)


class Network(nn.Module):
    """The blocks in a row; "branch" and "concat" blocks use the value before the last block once more."""

    def __init__(self, drawn: Drawn) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.joins: list[str] = []
        channels = previous = drawn.channels
        for kind, choice in drawn.blocks:
            if kind in ("branch", "concat"):
                self.blocks.append(nn.Identity())
                channels, previous = (channels + previous if kind == "concat" else channels), channels
            else:
                previous = channels
                block, channels = _block(kind, drawn.spatial, channels, choice)
                self.blocks.append(block)
            self.joins.append(kind)
        self.hidden = nn.Linear(channels, 4)
        self.norm = (nn.ReLU(), nn.BatchNorm1d(4), nn.Identity())[drawn.seed % 3]
        self.head = nn.Linear(4, 5, bias=bool(drawn.seed % 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        previous = x
        for block, kind in zip(self.blocks, self.joins, strict=True):
            new = self._join(kind, x, previous) if kind in ("branch", "concat") else block(x)
            previous, x = x, new
        return self.head(self.norm(self.hidden(x.flatten(2).mean(2)))), x

    def _join(self, kind: str, x: Tensor, previous: Tensor) -> Tensor:
        if kind == "branch":
            return x + previous if x.shape == previous.shape else x * 1.25
        size = [min(a, b) for a, b in zip(x.shape[2:], previous.shape[2:], strict=True)]
        cut = (slice(None), slice(None), *(slice(0, s) for s in size))
        return torch.cat([x[cut], previous[cut]], 1)


@st.composite
def networks(draw: st.DrawFn, kinds: tuple[str, ...] = (*KINDS, "branch", "concat"), most: int = 7) -> Drawn:
    """Draw a network of up to `most` blocks, in 1, 2 or 3 spatial dimensions."""
    block = st.tuples(st.sampled_from(kinds), st.integers(0, 119))
    drawn = Drawn(
        spatial=draw(st.sampled_from((2, 1, 3))),
        channels=draw(st.integers(1, 4)),
        blocks=tuple(draw(st.lists(block, min_size=1, max_size=most))),
        seed=draw(st.integers(0, 99)),
    )
    assume(_has_room(drawn))
    return drawn


def _has_room(drawn: Drawn) -> bool:
    """Say whether no kernel meets a smaller image: each convolution without padding leaves less of it."""
    try:
        drawn.build()(*drawn.inputs())
    except RuntimeError as error:
        if "Kernel size can't be greater" in str(error):
            return False
        raise
    return True
