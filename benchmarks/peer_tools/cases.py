"""The models of the comparison: built with seeds (or from an installed package), calibration and held-out inputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.real_models import sentences
from benchmarks.zoo_models import shim
from benchmarks.zoo_models.images import structured_images
from benchmarks.zoo_models.model import Inputs
from benchmarks.zoo_models.preparation import prepared_image_model, seeded

Split = Literal["calibration", "held-out"]
Kind = Literal["cnn", "transformer", "rnn"]
PIXELS = 224
SEEDS: Mapping[Split, int] = {"calibration": 10_000, "held-out": 20_000}
CLASSES = 16
TOKENS, SENTENCE_TOKENS, VOCABULARY = 128, 64, 8192
STEPS, FEATURES, HIDDEN = 64, 40, 256


@dataclass(frozen=True)
class Case:
    """One model of one output, and its inputs of batch 1.

    - `samples(split, count)` yields inputs, never the same ones in both splits. `kind` is what a peer is told of the
      model. `classifies`: whether the largest output means anything.
    - `evaluate` gets a function from the tensors of one sample to the outputs, and returns what `metric` names; None
      where there is no task.
    """

    name: str
    kind: Kind
    build: Callable[[], nn.Module]
    samples: Callable[[Split, int], Iterator[Inputs]]
    classifies: bool = True
    evaluate: Callable[[Callable[..., Sequence[Tensor]]], float] | None = None
    metric: str = ""


def _images(split: Split, count: int) -> Iterator[Inputs]:
    return ((structured_images(1, 3, PIXELS, PIXELS, seed=SEEDS[split] + index),) for index in range(count))


def _torchvision(name: str) -> nn.Module:
    shim.declare_torchvision_ops()
    import torchvision

    return prepared_image_model(functools.partial(torchvision.models.get_model, name, weights=None), PIXELS)


def _timm(name: str) -> nn.Module:
    shim.declare_torchvision_ops()
    import timm

    return prepared_image_model(functools.partial(timm.create_model, name, pretrained=False), PIXELS)


class _Logits(nn.Module):
    """A transformers classifier that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def _bert() -> nn.Module:
    shim.declare_torchvision_ops()  # transformers imports torchvision
    from transformers import BertConfig, BertForSequenceClassification

    make_config: Any = BertConfig  # its types do not know num_labels
    config = make_config(
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        num_labels=CLASSES,
    )
    return _Logits(seeded(lambda: BertForSequenceClassification(config))).eval()


def _random_tokens(split: Split, count: int) -> Iterator[Inputs]:
    """Draw token ids with a natural language's frequencies (a power law), of various lengths, padded to TOKENS."""
    for index in range(count):
        generator = torch.Generator().manual_seed(SEEDS[split] + index)
        ranks = VOCABULARY ** torch.rand(1, TOKENS, generator=generator)
        length = int(torch.randint(TOKENS // 4, TOKENS + 1, (1,), generator=generator))
        mask = (torch.arange(TOKENS) < length).long()[None]
        yield {"input_ids": (ranks.long() - 1).clamp(0, VOCABULARY - 1) * mask, "attention_mask": mask}


class _SentenceEncoder(nn.Module):
    """Token ids and mask -> the mean of the last hidden states over the real tokens, [n, 384]."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)


def _minilm() -> nn.Module:
    return _SentenceEncoder(sentences.build()).eval()


def _news(split: Split, count: int) -> Iterator[Inputs]:
    """Give news summaries, cut or padded to SENTENCE_TOKENS."""
    file: Mapping[Split, str] = {"calibration": "lee_background.cor", "held-out": "lee.cor"}
    documents = sentences.lee_documents(file[split])
    tokenizer: Any = sentences.tokenizer()
    for index in range(count):
        encoded = tokenizer(
            documents[index % len(documents)],
            padding="max_length",
            truncation=True,
            max_length=SENTENCE_TOKENS,
            return_tensors="pt",
        )
        yield {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}


class _SequenceClassifier(nn.Module):
    """Features [n, time, FEATURES] -> class scores [n, CLASSES], by the last state of two LSTM layers."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(FEATURES, HIDDEN, num_layers=2, batch_first=True)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        states, _ = self.lstm(features)
        scores: Tensor = self.head(states[:, -1])
        return scores


def _walks(split: Split, count: int) -> Iterator[Inputs]:
    """Draw smooth sequences: random walks that are pulled back to zero."""
    for index in range(count):
        generator = torch.Generator().manual_seed(SEEDS[split] + index)
        value, rows = torch.zeros(FEATURES), []
        for step in torch.randn(STEPS, FEATURES, generator=generator):
            value = 0.9 * value + 0.4 * step
            rows.append(value)
        yield (torch.stack(rows)[None],)


_TORCHVISION = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "densenet121",
)
_IMAGE_TRANSFORMERS: Mapping[str, tuple[Callable[[str], nn.Module], str]] = {
    "vit_tiny": (_timm, "vit_tiny_patch16_224"),
    "swin_t": (_torchvision, "swin_t"),
    "deit_tiny": (_timm, "deit_tiny_patch16_224"),
}
_OTHERS = (
    Case("bert-6l", "transformer", _bert, _random_tokens),
    Case("minilm", "transformer", _minilm, _news, classifies=False),
    Case("lstm", "rnn", lambda: seeded(_SequenceClassifier), _walks),
)
CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        *(Case(name, "cnn", functools.partial(_torchvision, name), _images) for name in _TORCHVISION),
        *(
            Case(name, "transformer", functools.partial(make, title), _images)
            for name, (make, title) in _IMAGE_TRANSFORMERS.items()
        ),
        *_OTHERS,
    )
}
