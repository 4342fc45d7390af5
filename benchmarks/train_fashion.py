"""Train the two Fashion-MNIST models and write their weights: `python -m benchmarks.train_fashion [--model cnn]`.

Takes about 24 minutes of CPU time on one thread. Seeded, yet the last bits of the weights depend on the machine and the
number of threads, so that a new run may move the test accuracy by 0.2 points or so.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.real_models.fashion import NETWORKS, WEIGHTS, evaluate, fashion_data, load

SEED = 0
SHIFT = 2  # pixels


@dataclass(frozen=True)
class Training:
    """How a model is trained: the optimizer (of parameters, at the highest learning rate), and for how long."""

    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    epochs: int
    batch: int = 128


TRAININGS = {
    "cnn": Training(
        lambda parameters: torch.optim.SGD(parameters, lr=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True), epochs=6
    ),
    "vit": Training(lambda parameters: torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.05), epochs=5),
}


def augment(images: Tensor) -> Tensor:
    """Mirror half of the images [n, 1, h, w], and shift each by up to 2 pixels either way."""
    n, _, height, width = images.shape
    padded = nn.functional.pad(images, (SHIFT,) * 4, value=-1.0)
    row, column = torch.randint(2 * SHIFT + 1, (2, n, 1))
    columns = torch.where(torch.rand(n, 1) < 0.5, torch.arange(width), torch.arange(width - 1, -1, -1)) + column
    rows = torch.arange(height) + row
    return padded[torch.arange(n)[:, None, None], 0, rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def train(name: str, images: Tensor, labels: Tensor) -> nn.Module:
    """Train a fresh model with a one-cycle learning rate and label smoothing."""
    torch.manual_seed(SEED)
    model, training = NETWORKS[name](), TRAININGS[name]
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = training.optimizer(model.parameters())
    steps = len(images) // training.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=optimizer.defaults["lr"], total_steps=training.epochs * steps, pct_start=0.2
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    start = time.process_time()
    for epoch in range(training.epochs):
        model.train()
        for rows in torch.randperm(len(images))[: steps * training.batch].view(steps, training.batch):
            optimizer.zero_grad()
            loss_function(model(augment(images[rows])), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        accuracy, seconds = evaluate(model.eval()), time.process_time() - start
        print(f"{name}, epoch {epoch + 1}/{training.epochs}: {accuracy:.2%}, {seconds:.0f} s of CPU time", flush=True)
    return model


def write_weights(path: Path, model: nn.Module) -> None:
    """Write the floating-point state as float16, the counters as they are."""
    state = {
        key: tensor.half().numpy() if tensor.is_floating_point() else tensor.numpy()
        for key, tensor in model.state_dict().items()
    }
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, allow_pickle=False, **state)


def main() -> None:
    """Train, write, and print the accuracy of what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(NETWORKS), help="only this one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in [options.model] if options.model else list(NETWORKS):
        write_weights(WEIGHTS / f"{name}.npz", train(name, *fashion_data("train")))
        print(f"{name}, as written: {evaluate(load(name)):.2%}")


if __name__ == "__main__":
    main()
