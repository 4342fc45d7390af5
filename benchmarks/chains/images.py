"""The chains of images: a residual network on Fashion-MNIST, and a short one on the demo's digits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.chains.chain import Chain, Shuffled
from benchmarks.real_models.fashion import fashion_data
from benchmarks.real_models.fashion_models import CLASSES
from benchmarks.real_models.model import batches
from fxopt import Pipeline, Program, Training, capture, passes, schedules, train
from fxopt.demo import demo_data
from fxopt.demo.model import Block, conv_batch_norm
from fxopt.training.optimizers import AdamW

SHARE = 0.25  # of the multiply-accumulates of the teacher
BATCH = 128
VALIDATION = 10_000


class ResidualNetwork(nn.Module):
    """Logits of a residual network with `width` channels at first, and four times as many at last."""

    def __init__(self, width: int, classes: int = CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_batch_norm(1, width, 3, stride=2), nn.ReLU(), nn.MaxPool2d(2))
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map images [n, 1, h, w] to logits [n, classes]."""
        logits: Tensor = self.head(self.pool(self.blocks(self.stem(image))).flatten(1))
        return logits


def mirrored(images: Tensor) -> Tensor:
    """Mirror half of the images [n, 1, h, w]."""
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images, images.flip(-1))


def momentum(rate: float) -> Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]:
    """Return what makes SGD with momentum."""
    return functools.partial(torch.optim.SGD, lr=rate, momentum=0.9, nesterov=True, weight_decay=5e-4)


def accuracy(model: Callable[..., Any], images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose class is found."""
    with torch.no_grad():
        found = torch.cat([model(batch).argmax(1) for batch in batches(images, 100)])
    return (found == labels).double().mean().item()


def fashion() -> Chain:
    """Return the chain on Fashion-MNIST."""
    return _fashion("test part", fashion_data("train"), fashion_data("t10k"))


def fashion_validation() -> Chain:
    """Return the chain that settings are chosen by: what it scores is left out of the training part."""
    images, labels = fashion_data("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))
    rest, scored = order[:-VALIDATION], order[-VALIDATION:]
    return _fashion("training part", (images[rest], labels[rest]), (images[scored], labels[scored]))


def _fashion(part: str, train_data: tuple[Tensor, Tensor], test_data: tuple[Tensor, Tensor]) -> Chain:
    return _chain(f"Fashion-MNIST's {part}", train_data, test_data, width=64, epochs=(5.0, 2.0, 0.5), augment=mirrored)


def digits(epochs: float = 8.0) -> Chain:
    """Return a chain of seconds on the demo's digits, resized to 32x32 pixels."""
    data = ("the demo's test digits", demo_data("train"), demo_data("test"))
    return _chain(*data, width=16, epochs=(epochs, epochs, epochs / 2), augment=lambda images: images)


def _chain(
    data: str,
    train_data: tuple[Tensor, Tensor],
    test_data: tuple[Tensor, Tensor],
    width: int,
    epochs: tuple[float, float, float],
    augment: Callable[[Tensor], Tensor],
) -> Chain:
    items = Shuffled(*train_data, BATCH, augment)
    calibration = list(batches(train_data[0][:512], 32))
    hard, soft = passes.CrossEntropy(), passes.CrossEntropy(weight=0.1)
    tune = Training(epochs=epochs[1], task=soft, optimizer=momentum(0.05), schedule=schedules.OneCycle(warm_up=0.2))

    def teacher(seed: int) -> Program:
        torch.manual_seed(seed)
        program = capture(ResidualNetwork(width).eval(), items.samples[:8], dynamic="batch")
        options = Training(epochs=epochs[0], task=hard, optimizer=momentum(0.1), schedule=tune.schedule, seed=seed)
        return train(program, items, options)

    def shrink(program: Program) -> Program:
        removal = passes.RemoveChannels(macs=SHARE, score=passes.Taylor(calibration))
        return Pipeline((removal, passes.ReestimateBatchNorm(calibration)))(program)

    return Chain(
        name=f"residual network of width {width}",
        data=f"{len(test_data[0]):,} images of {data}, trained on {len(train_data[0]):,}",
        teacher=teacher,
        shrink=shrink,
        items=items,
        calibration=calibration,
        metrics={"accuracy": functools.partial(accuracy, images=test_data[0], labels=test_data[1])},
        losses=passes.KLDivergence(temperature=2.0, weight=0.9),
        tune=tune,
        alone=replace(tune, task=hard),
        quantized=Training(epochs=epochs[2], task=soft, optimizer=AdamW(rate=3e-4), schedule=schedules.Cosine()),
        inputs=(test_data[0][:16],),
    )
