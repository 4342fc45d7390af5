"""Trainings that must be the same in one process and in two. Run as a module, it does them all.

`python -m tests.training.cases FOLDER` writes FOLDER/NAME/log.jsonl and the trained tensors.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxopt
from fxopt.graph.program import Program
from fxopt.passes.distill import AttachTeacher, CrossEntropy, FeatureHint, KLDivergence
from fxopt.training.options import Training
from fxopt.training.schedules import Cosine
from tests.training.models import Network, accuracy, batches, network, sgd, tensors


class Tagger(nn.Module):
    """Classes of tokens [batch, sequence], with a mask of those that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)
        self.unused = nn.Linear(8, 3)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits, and others that no loss reads."""
        mask = attention_mask.unsqueeze(-1).float()
        mean = (self.table(tokens) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        values = torch.tanh(self.norm(self.table(tokens) + mean))
        return self.head(values), self.unused(values)


@dataclass(frozen=True)
class Case:
    """What to train, with what, and how."""

    program: Callable[[], Program]
    data: Callable[[], Any]
    training: Training
    evaluate: Callable[[Program], float] | None = None


def uneven() -> list[Any]:
    """Return batches of which the last has an odd number of samples."""
    return [*batches(), tuple(part[:5] for part in batches(1)[0])]


def sentences() -> list[dict[str, Tensor]]:
    """Return padded sentences of very different lengths; some of their tokens have no label."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(11, (6, 7, 9), generator=generator)
    lengths = torch.randint(1, 10, (6, 7, 1), generator=generator)
    labels = torch.where(torch.rand(tokens.shape, generator=generator) < 0.3, -100, tokens % 4)
    mask = (torch.arange(9) < lengths).long()
    return [{"tokens": t, "attention_mask": m, "labels": y} for t, m, y in zip(tokens, mask, labels, strict=True)]


def tagger(seed: int = 0) -> Program:
    """Capture a Tagger."""
    torch.manual_seed(seed)
    item = sentences()[0]
    example = {"tokens": item["tokens"], "attention_mask": item["attention_mask"]}
    return fxopt.capture(Tagger().eval(), example, dynamic={"tokens": {0: "batch"}, "attention_mask": {0: "batch"}})


def folded() -> Program:
    """Return a network without batch norm."""
    return fxopt.Pipeline(fxopt.passes.CLEANUP)(network()[1])


def taught() -> Program:
    """Return a network with a teacher."""
    torch.manual_seed(7)
    teacher = fxopt.capture(Network().eval(), torch.randn(4, 3, 8, 8), dynamic="batch")
    return AttachTeacher(teacher, losses=KLDivergence(4.0), taps={"relu": FeatureHint()})(network()[1])


def taught_tagger() -> Program:
    """Return a Tagger with a teacher, whose first output alone is compared."""
    return AttachTeacher(tagger(3), losses=KLDivergence())(tagger())


def decay(program: Program) -> Tensor:
    """Return a penalty."""
    return 0.01 * torch.stack([value.square().sum() for value in program.parameters() if value.requires_grad]).sum()


PLAIN = functools.partial(Training, epochs=2, optimizer=sgd, schedule=Cosine(), task=CrossEntropy(), log_every=1)
CASES = {
    "without batch norm": Case(folded, uneven, PLAIN()),
    "batch norm": Case(lambda: network()[1], uneven, PLAIN(clip_gradients=0.5), accuracy),
    "accumulated": Case(folded, uneven, PLAIN(accumulate=3, penalties=(decay,))),
    "taught": Case(taught, uneven, PLAIN(penalties=(decay,), patience=1), accuracy),
    "tokens": Case(tagger, sentences, PLAIN()),
    "taught tokens": Case(taught_tagger, sentences, PLAIN(accumulate=2)),
}


def run(folder: Path, program: int = 0) -> None:
    """Do all of them; `program`: the number of this process."""
    from safetensors.torch import save_file

    for name, case in CASES.items():
        trained = fxopt.train(case.program(), case.data(), case.training, evaluate=case.evaluate, folder=folder / name)
        save_file(tensors(trained), folder / name / f"trained_{program}.safetensors")


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(os.environ.get("RANK", "0")))
