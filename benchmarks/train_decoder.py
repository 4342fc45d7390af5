"""Train the small decoder on news and write its weights: `python -m benchmarks.train_decoder`.

Takes about 7 minutes of CPU time on one thread. Seeded, yet the last bits of the weights depend on the machine.
"""

from __future__ import annotations

import time

import torch
from torch.nn import functional

from benchmarks.real_models.language import CONTEXT, WEIGHTS, Decoder, bits, evaluate, held_out_logits, load, rows
from benchmarks.train_fashion import write_weights

SEED, STEPS, BATCH, RATE = 0, 700, 32, 4e-3


def train() -> Decoder:
    """Train a fresh decoder on random rows, one cycle of the learning rate."""
    torch.manual_seed(SEED)
    model, text = Decoder(), rows("lee_background.cor").flatten()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
    start = time.process_time()
    for step in range(STEPS):
        first = torch.randint(len(text) - CONTEXT, (BATCH, 1))
        batch = text[first + torch.arange(CONTEXT + 1)]
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 175 == 0:
            held_out, seconds = bits(held_out_logits(model.eval())), time.process_time() - start
            model.train()
            print(f"step {step + 1}/{STEPS}: {held_out:.3f} bits a byte, {seconds:.0f} s of CPU time", flush=True)
    return model


def main() -> None:
    """Train, write, and print how good what was written is."""
    torch.set_num_threads(1)
    write_weights(WEIGHTS, train().eval())
    model = load()
    print(f"as written: {bits(held_out_logits(model)):.3f} bits a byte, {evaluate(model):.2%} of bytes")


if __name__ == "__main__":
    main()
