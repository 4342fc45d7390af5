"""The chain of a text encoder: MiniLM-L6 loses layers, heads and hidden units, and is taught by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from benchmarks.chains.chain import Chain, Evaluate
from benchmarks.real_models.sentences import (
    DYNAMIC,
    SCORED,
    TRAIN,
    build,
    lee_documents,
    rated_sentences,
    sentiment_accuracy,
    similarity_correlation,
    tokens,
)
from fxopt import Pipeline, Program, Training, capture, passes, schedules
from fxopt.training.optimizers import AdamW

LAYERS = (0, 4, 5)  # of the teacher's six that are left
SHARE = 0.6  # of the multiply-accumulates of these
SENTENCES, PIECES, WORDS = 4000, 400, 60  # what is trained on; words of a piece of a document
BATCH = 32
Item = dict[str, Tensor]


@dataclass(frozen=True)
class Reordered:
    """Items in a new random order each time."""

    items: Sequence[Item] = field(repr=False)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        for number in torch.randperm(len(self.items)).tolist():
            yield self.items[number]


def texts() -> list[str]:
    """Return what is trained on: sentences and pieces of documents, none of them scored."""
    sentences = rated_sentences()[0][TRAIN + SCORED :]
    words = [document.split() for document in lee_documents("lee_background.cor")]
    pieces = [" ".join(some[start : start + WORDS]) for some in words for start in range(0, len(some), WORDS)]
    return sentences[:SENTENCES] + pieces[:PIECES]


def batches_by_length(some: Sequence[str]) -> list[Item]:
    """Return texts as items of like lengths, so that there is little padding."""
    ordered = sorted(some, key=len)
    return [tokens(ordered[start : start + BATCH]) for start in range(0, len(ordered), BATCH)]


def minilm() -> Chain:
    """Return the chain on MiniLM-L6."""
    items = batches_by_length(texts())
    return encoder_chain(
        "MiniLM-L6",
        f"1225 pairs of documents and {SCORED:,} sentences; trained on {SENTENCES + PIECES:,} other texts",
        build,
        LAYERS,
        items,
        {"Pearson correlation": similarity_correlation, "accuracy": sentiment_accuracy},
        inputs=tokens([document.partition(". ")[0] for document in lee_documents("lee_background.cor")[:8]]),
    )


def encoder_chain(
    name: str,
    data: str,
    build: Callable[[], nn.Module],
    layers: Sequence[int],
    items: Sequence[Item],
    metrics: Mapping[str, Evaluate],
    inputs: Item,
    epochs: float = 2,
    round_to: int = 16,
) -> Chain:
    """Return the chain of an encoder of the BERT family, whose first output [batch, tokens, width] is learned."""
    calibration = items[:: max(len(items) // 8, 1)]

    def shrink(teacher: Program) -> Program:
        student = capture(with_layers(build(), layers), inputs, dynamic=DYNAMIC)
        score = passes.ActivationTimesWeight(calibration)
        proved = tuple(student.flatten(**inputs))
        removal = passes.RemoveChannels(macs=SHARE, score=score, round_to=round_to, inputs=proved)
        return Pipeline((removal, passes.RepairWeights(student, calibration)))(student)

    return Chain(
        name=name,
        data=data,
        teacher=lambda seed: capture(build(), inputs, dynamic=DYNAMIC),
        shrink=shrink,
        items=Reordered(items),
        calibration=calibration,
        metrics=metrics,
        losses=(passes.FeatureHint(), passes.CosineSimilarity()),
        tune=Training(epochs=epochs, optimizer=AdamW(rate=1e-3), schedule=schedules.Cosine(warm_up=0.1)),
        quantized=Training(epochs=epochs / 4, optimizer=AdamW(rate=1e-4), schedule=schedules.Cosine(warm_up=0.1)),
        inputs=inputs,
    )


def with_layers(model: nn.Module, numbers: Sequence[int]) -> nn.Module:
    """Leave these layers of an encoder of the BERT family; its embeddings are not trained."""
    encoder, embeddings = model.get_submodule("encoder"), model.get_submodule("embeddings")
    layers = list(encoder.get_submodule("layer").children())
    encoder.register_module("layer", nn.ModuleList(layers[number] for number in numbers))
    embeddings.requires_grad_(False)
    return model
