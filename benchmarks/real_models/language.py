"""A small language model over the bytes of news: a Llama of four layers with grouped keys and values.

The texts are the summaries of the Lee corpus (Lee, Pincombe, Welsh 2005), of gensim's test data: 300 to train on, 50
others to score on. The weights beside this file were made by `python -m benchmarks.train_decoder`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.real_models.model import Inputs, RealModel, batches, output_tensors
from benchmarks.real_models.sentences import lee_documents, transformers

WEIGHTS = Path(__file__).parent / "decoder" / "llama.npz"
CONTEXT, BATCH, CALIBRATION = 128, 16, 64
SIZES = {
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "use_cache": False,
}


class Decoder(nn.Module):
    """Bytes [n, t] as int64, 0 to 255 -> logits [n, t, 256] of the byte behind each; 0.8 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        library = transformers()
        self.model = library.LlamaForCausalLM(library.LlamaConfig(**SIZES))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
        return logits


@functools.cache
def rows(file: str) -> Tensor:
    """Return a file's text as int64 bytes [n, CONTEXT + 1], one row behind the other; the rest is left out."""
    text = "\n".join(lee_documents(file)).encode("latin-1")
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    count = len(data) // (CONTEXT + 1)
    return data[: count * (CONTEXT + 1)].view(count, CONTEXT + 1)


def load() -> nn.Module:
    """Build the decoder with its trained weights, kept as float16 and computed with as float32."""
    model = Decoder()
    with np.load(WEIGHTS) as arrays:
        model.load_state_dict({key: torch.from_numpy(arrays[key]) for key in arrays})
    return model.eval()


def held_out_logits(model: Callable[..., Any]) -> Tensor:
    """Return the logits [n, CONTEXT, 256] of the texts to score on."""
    with torch.no_grad():
        return torch.cat([output_tensors(model(input_ids=b))[0] for b in batches(rows("lee.cor")[:, :-1], BATCH)])


def bits(logits: Tensor) -> float:
    """Return the mean bits a byte that logits of the texts to score on need, the lower the better."""
    return functional.cross_entropy(logits.flatten(0, 1), rows("lee.cor")[:, 1:].flatten()).item() / float(np.log(2))


def evaluate(model: Callable[..., Any]) -> float:
    """Return the share of bytes that the largest logit tells."""
    return (held_out_logits(model).argmax(-1) == rows("lee.cor")[:, 1:]).double().mean().item()


def example_inputs(batch: int) -> Inputs:
    """Return texts to train on as example input."""
    return {"input_ids": rows("lee_background.cor")[:batch, :-1]}


DECODER = RealModel(
    name="decoder",
    build=load,
    inputs=example_inputs,
    dynamic={"input_ids": {0: "batch", 1: "sequence"}},
    calibration=lambda: [{"input_ids": b} for b in batches(rows("lee_background.cor")[:CALIBRATION, :-1], BATCH)],
    evaluate=evaluate,
    metric="accuracy of the next byte",
    data=f"50 news summaries (Lee corpus, gensim); calibrated on {CALIBRATION} rows of the 300 it was trained on",
)
