"""Small networks that hold what quantization has to place: residuals, chains, concatenations, gates, linears."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.graph.capture import capture
from fxopt.graph.program import Program


class Residual(nn.Module):
    """A stem, max-pool, two residual blocks, global pool and a classifier: x[N, 3, 32, 32] -> [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 7, 2, 3)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 32, 3, 2, 1)
        self.short = nn.Conv2d(16, 32, 1, 2)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(torch.relu(self.stem(x)), 3, 2, 1)
        x = torch.relu(self.second(torch.relu(self.first(x))) + x)
        x = torch.relu(self.down(x) + self.short(x))
        y: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


class Inverted(nn.Module):
    """Inverted residuals with relu6 and a mean: x[N, 3, 32, 32] -> [N, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 16, 1)
        self.expand = nn.Conv2d(16, 32, 1)
        self.wide = nn.Conv2d(32, 32, 5, 1, 2, groups=32)
        self.narrow = nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.stem(x))
        x = self.project(functional.relu6(self.depthwise(x)))
        y = functional.relu6(self.wide(functional.relu6(self.expand(x))))
        y = self.narrow(y) + x
        z: Tensor = self.head(y.mean([2, 3]))
        return z


class Branches(nn.Module):
    """Concatenations: of relu branches (one scale), and of a relu branch with a plain one; then a shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left = nn.Conv2d(16, 16, 1)
        self.right = nn.Conv2d(16, 16, 3, padding=1)
        self.join = nn.Conv2d(32, 16, 1)
        self.plain = nn.Conv2d(16, 16, 1)
        self.last = nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
        n, _, h, w = x.shape
        x = x.view(n, 2, 16, h, w).transpose(1, 2).contiguous().view(n, 32, h, w)
        a, b = x.chunk(2, 1)
        x = torch.relu(self.join(torch.cat([a, b], 1)))
        y: Tensor = self.last(torch.cat([x, self.plain(x)], 1))
        return y


class Gated(nn.Module):
    """Hardswish and silu around a depthwise convolution, squeeze-and-excitation: x[N, 3, 16, 16] -> [N, 16, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze = nn.Conv2d(16, 6, 1)
        self.excite = nn.Conv2d(6, 16, 1)
        self.project = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.hardswish(self.stem(x))
        x = functional.silu(self.depthwise(x))
        gate = torch.relu(self.squeeze(functional.adaptive_avg_pool2d(x, 1)))
        x = x * functional.hardsigmoid(self.excite(gate))
        y: Tensor = self.project(x)
        return y


class Encoder(nn.Module):
    """One transformer block: x[N, S, 32] -> [N, S, 32]."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32, bias=False)
        self.out, self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 64), nn.Linear(64, 32)
        self.norm, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        attended = functional.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y))
        x = x + self.out(attended)
        z: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return z


def images(batch: int = 2, size: int = 32, seed: int = 0) -> Tensor:
    """Return smooth random images, [batch, 3, size, size]."""
    coarse = torch.randn(batch, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(coarse, size=(size, size), mode="bilinear") + 0.1


def program_of(module: nn.Module, x: Tensor) -> Program:
    """Capture a module with a dynamic batch."""
    return capture(module.eval(), x, dynamic="batch")
