"""What taps cost a training step: `python -m benchmarks.taps --models resnet18 vit_b_16`.

Student (half of the operations removed) and teacher run in turn with the joint Program that AttachTeacher makes of
them, in one process: "two" calls both Programs one after the other, "joint" is one graph with the logits of both,
"taps" has up to 6 pairs of values inside as more outputs. All three compute the same loss, of the logits, and its
gradients, so what differs is the taps. "hints" adds the loss of each pair. Times are medians of CPU time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.real_models.fashion_models import FashionCnn, FashionVit
from benchmarks.timing import interleaved_medians
from benchmarks.zoo_models.shim import declare_torchvision_ops
from fxopt import Pipeline, Program, capture, passes
from fxopt.graph.taps import Tap, tap_losses

FASHION: dict[str, Callable[[], nn.Module]] = {"fashion_cnn": FashionCnn, "fashion_vit": FashionVit}
LOGITS, HINTS = passes.KLDivergence(temperature=2.0), passes.FeatureHint()


def build(name: str, batch: int) -> tuple[nn.Module, Tensor]:
    """Return a model with random weights and a batch for it."""
    torch.manual_seed(0)
    if name in FASHION:
        return FASHION[name]().eval(), torch.randn(batch, 1, 28, 28)
    declare_torchvision_ops()
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None)
    return model.eval(), torch.randn(batch, 3, 224, 224)


def measure(name: str, batch: int, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step for each of the ways."""
    model, images = build(name, batch)
    teacher = capture(model, images, dynamic="batch")
    student = Pipeline((passes.RemoveChannels(macs=0.5, inputs=(images[:2],)),))(teacher)
    joint = passes.AttachTeacher(teacher, LOGITS)(student).train()
    tapped = passes.AttachTeacher(teacher, LOGITS, HINTS)(student).train()
    alone, frozen = student.train(), Pipeline(passes.CLEANUP)(teacher.eval())

    def two() -> None:
        with torch.no_grad():
            (expected,) = frozen.module(images)
        _backward(alone, LOGITS(alone.module(images)[0], expected, None, None))

    return interleaved_medians(
        {
            "two": two,
            "joint": lambda: _step(joint, images, joint.taps),
            "taps": lambda: _step(tapped, images, tapped.taps[:1]),
            "hints": lambda: _step(tapped, images, tapped.taps),
        },
        rounds,
    )


def _step(program: Program, images: Tensor, taps: Sequence[Tap]) -> None:
    losses = tap_losses(taps, program.module(images), None, None, None)
    _backward(program, torch.stack(list(losses.values())).sum())


def _backward(program: Program, loss: Tensor) -> None:
    program.module.zero_grad()
    torch.autograd.backward(loss)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=["fashion_cnn", "fashion_vit", "resnet18", "vit_b_16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        times = measure(name, options.batch, options.rounds)
        shares = "  ".join(f"{way} {times[way] / times['joint']:.3f}" for way in times)
        print(f"{name:<14} joint {1000 * times['joint']:.1f} ms; of that: {shares}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
