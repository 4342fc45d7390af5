"""A small decoder transformer, and a language for it: what follows a letter depends on the letter before."""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.graph.capture import capture
from fxopt.graph.program import Program

LETTERS, LENGTH = 32, 16
STEPS = 60


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.joined, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        n, s, hidden = x.shape
        query, key, value = (
            part.view(n, s, self.heads, -1).transpose(1, 2) for part in self.joined(self.norm(x)).chunk(3, -1)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(n, s, hidden))
        y: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return y


class Decoder(nn.Module):
    """Letters[n, s] to logits[n, s, LETTERS]; with `tied`, the head has the weight of the embedding."""

    def __init__(self, hidden: int = 64, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(LETTERS, hidden)
        self.position = nn.Parameter(0.1 * torch.randn(LENGTH, hidden))
        self.blocks = nn.Sequential(Block(hidden, 4), Block(hidden, 4))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(hidden, LETTERS, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, letters: Tensor) -> Tensor:
        x = self.embedding(letters) + self.position[: letters.shape[1]]
        y: Tensor = self.head(self.norm(self.blocks(x)))
        return y


def sentences(count: int, seed: int) -> Tensor:
    """Draw sentences[count, LENGTH + 1] of the language."""
    rules = torch.rand(LETTERS, LETTERS, generator=torch.Generator().manual_seed(0)) ** 24
    random = torch.Generator().manual_seed(seed)
    letters = [torch.randint(0, LETTERS, (count,), generator=random)]
    for _ in range(LENGTH):
        letters.append(torch.multinomial(rules[letters[-1]], 1, generator=random)[:, 0])
    return torch.stack(letters, 1)


@cache
def trained() -> Program:
    """Return a Decoder that has learned some of the language, with a dynamic batch and length."""
    torch.manual_seed(0)
    model = Decoder()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3)
    for step in range(STEPS):
        drawn = sentences(32, seed=1 + step)
        loss = functional.cross_entropy(model(drawn[:, :-1]).flatten(0, 1), drawn[:, 1:].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return capture(model.eval(), sentences(2, 0)[:, :-1], dynamic={"letters": {0: "batch", 1: "length"}})


def divergence(expected: Tensor, logits: Tensor) -> float:
    """Return the mean Kullback-Leibler divergence of two predictions, in nats."""
    pair = (logits.log_softmax(-1).flatten(0, 1), expected.log_softmax(-1).flatten(0, 1))
    return float(functional.kl_div(*pair, log_target=True, reduction="batchmean").detach())
