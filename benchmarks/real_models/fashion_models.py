"""Two small classifiers for [n, 1, 28, 28] images: a residual network and a vision transformer.

The forms are those of He et al. 2015, "Deep Residual Learning", and of Dosovitskiy et al. 2020, "An Image is Worth
16x16 Words", here with the mean of all tokens in place of a class token.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.demo.model import Block, conv_batch_norm

CLASSES = 10


class FashionCnn(nn.Module):
    """Ten logits of a residual network; 0.31 M parameters, 10 M multiply-accumulates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_batch_norm(1, 32, 3, stride=2), nn.ReLU())
        self.blocks = nn.Sequential(Block(32, 32, 1), Block(32, 64, 2), Block(64, 128, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [n, 1, 28, 28], values in [-1, 1], to logits [n, 10]."""
        logits: Tensor = self.head(self.pool(self.blocks(self.stem(image))).flatten(1))
        return logits


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer network, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def attention(self, x: Tensor) -> Tensor:
        """Let every token of [n, tokens, width] read from all tokens."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.projection(mixed.transpose(1, 2).reshape(n, tokens, width))
        return projected

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens [n, tokens, width] to new ones."""
        x = x + self.attention(self.norm1(x))
        output: Tensor = x + self.mlp(self.norm2(x))
        return output


class FashionVit(nn.Module):
    """Ten logits of a vision transformer on 49 patches of 4x4 pixels; 0.20 M parameters, 10 M multiply-accumulates."""

    def __init__(self, width: int = 64, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, stride=4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 49, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, 4 * width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [n, 1, 28, 28], values in [-1, 1], to logits [n, 10]."""
        tokens = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
