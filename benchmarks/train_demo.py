"""Make what fxopt/demo embeds: split scikit-learn's digits, train DigitsNet on them, write both as .npz.

    python -m benchmarks.train_demo

Takes under three minutes on 2 cores. Seeded, yet the last bits of the weights depend on the machine and the number of
threads, so a new run may move the test accuracy by an image or two: then update TEST_CORRECT in fxopt/demo.
"""

import math
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import fxopt.demo
from fxopt.demo import SPLIT_SIZES
from fxopt.demo.model import DigitsNet

FOLDER = Path(fxopt.demo.__file__).parent
SEED = 0
EPOCHS = 16
BATCH = 32


def write_digits(path: Path) -> None:
    """Shuffle the 1,797 images once and write them by split, as uint8."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    arrays = {}
    for split, size in SPLIT_SIZES.items():
        rows, order = np.split(order, [size])
        arrays[f"{split}_images"] = digits.images[rows].astype(np.uint8)
        arrays[f"{split}_labels"] = digits.target[rows].astype(np.uint8)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def augment(images: Tensor) -> Tensor:
    """Rotate by up to 12°, scale by up to 12 % and shift by up to 2 pixels, each image [1, 32, 32] on its own."""
    count = len(images)
    uniform = torch.rand(4, count) * 2 - 1
    angle, scale, shift = uniform[0] * math.radians(12), 1 + 0.12 * uniform[1], uniform[2:] * 2 / 16
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack([cosine, -sine, shift[0], sine, cosine, shift[1]], dim=1).view(count, 2, 3)
    grid = nn.functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def train(images: Tensor, labels: Tensor) -> DigitsNet:
    """Train a fresh DigitsNet by SGD with a one-cycle learning rate and label smoothing."""
    torch.manual_seed(SEED)
    model = DigitsNet().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    batches = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS * batches)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.05)
    start = time.perf_counter()
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(images))[: batches * BATCH].view(batches, BATCH):
            optimizer.zero_grad()
            loss = loss_function(model(augment(images[rows])), labels[rows])
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{EPOCHS}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return model.eval()


def write_weights(path: Path, model: DigitsNet) -> None:
    """Write the floating-point state as float16 (fxopt.demo computes in float32), the counters as they are."""
    state = {
        name: tensor.half().numpy() if tensor.is_floating_point() else tensor.numpy()
        for name, tensor in model.state_dict().items()
    }
    np.savez_compressed(path, allow_pickle=False, **state)


def main() -> None:
    """Write fxopt/demo/digits.npz and weights.npz, and print the accuracy of what was written."""
    write_digits(FOLDER / "digits.npz")
    write_weights(FOLDER / "weights.npz", train(*fxopt.demo.demo_data("train")))
    model = fxopt.demo.demo_model()
    for split in SPLIT_SIZES:
        images, labels = fxopt.demo.demo_data(split)
        with torch.inference_mode():
            correct = int((model(images).argmax(1) == labels).sum())
        print(f"{split}: {correct} of {len(labels)} = {correct / len(labels):.2%}")


if __name__ == "__main__":
    main()
