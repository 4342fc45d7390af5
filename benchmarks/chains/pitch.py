"""The chain of a pitch tracker: the full CREPE loses channels and learns from itself, without labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.chains.chain import Chain, Shuffled
from benchmarks.real_models.audio import speech
from benchmarks.real_models.model import batches
from benchmarks.real_models.pitch import HOP, WINDOW, build, evaluate, normalised, notes, speech_frames
from fxopt import Pipeline, Program, Training, capture, passes, schedules
from fxopt.training.optimizers import AdamW

SHARE = 1 / 32  # of the multiply-accumulates of the teacher: about those of the tiny CREPE
SEEDS = range(10, 15)  # of the notes to train on; 0 and 1 are those of benchmarks.real_models.pitch
FRAMES, BATCH = 1792, 32
CALIBRATION = 192


def frames() -> Tensor:
    """Return what is trained on, mixed: notes, and frames of the first half of the speech, each 25 ms, [1792, 1024]."""
    half = speech()[: len(speech_frames()) // 2 * HOP]
    spoken = normalised(half.unfold(0, WINDOW, HOP // 2))
    both = torch.cat([*(notes(seed)[0] for seed in SEEDS), spoken])
    return both[torch.randperm(len(both), generator=torch.Generator().manual_seed(3))[:FRAMES]]


def turned(samples: Tensor) -> Tensor:
    """Turn half of the frames [n, 1024] upside down, and half of them back to front: the pitch stays."""
    up, forward = (torch.rand(2, len(samples), 1) < 0.5).unbind()
    samples = torch.where(up, samples, -samples)
    return torch.where(forward, samples, samples.flip(-1))


def tracking_statistics(model: nn.Module) -> nn.Module:
    """Let batch norms follow what they read in training: CREPE's have the momentum 0."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def crepe() -> Chain:
    """Return the chain on the full CREPE; its outputs are stored, since running it takes ten times as long."""
    samples = frames()
    calibration = list(batches(samples[:CALIBRATION], BATCH))

    def teacher(seed: int) -> Program:
        return capture(tracking_statistics(build("full")), samples[:4], dynamic="batch")

    def shrink(program: Program) -> Program:
        removal = passes.RemoveChannels(macs=SHARE, ranking="local")
        return Pipeline((removal, passes.RepairWeights(program, calibration)))(program)

    return Chain(
        name="full CREPE",
        data="300 synthesised notes and 227 voiced frames of speech, whose pitch is the teacher's; trained on "
        f"{FRAMES:,} other notes and frames",
        metrics={"raw pitch accuracy (50 cents)": evaluate},
        teacher=teacher,
        shrink=shrink,
        items=Shuffled(samples, None, BATCH, turned),
        calibration=calibration,
        losses=passes.BinaryCrossEntropy(logits=False),
        tune=Training(epochs=8, optimizer=AdamW(rate=2e-3), schedule=schedules.Cosine(warm_up=0.1)),
        quantized=Training(epochs=2, optimizer=AdamW(rate=2e-4), schedule=schedules.Cosine()),
        inputs=(samples[:8],),
        stored=True,
    )
