"""Prune, distill and train in integers, from a teacher to an int8 ONNX file: `python -m benchmarks.chain`.

    python -m benchmarks.chain --data fashion-mnist --seeds 3 --json chain.json

Each seed runs the whole chain, the teacher's own training included where it has one. Every model is emitted, validated
against its Program and scored in torch and in onnxruntime; speeds are ratios of runs in turn in one process on one
thread. `fashion-mnist-validation` scores images that it leaves out of the training part: settings are chosen by that.
`--data digits` takes less than two minutes. `minilm` and `crepe` start from trained weights and read no labels; they
need the packages of benchmarks/real_models/requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.chains.chain import Chain, Row, run
from benchmarks.chains.images import digits, fashion, fashion_validation
from benchmarks.chains.pitch import crepe
from benchmarks.chains.sentences import minilm
from fxopt import FxoptError

CHAINS: dict[str, Callable[[], Chain]] = {
    "fashion-mnist": fashion,
    "fashion-mnist-validation": fashion_validation,
    "digits": digits,
    "minilm": minilm,
    "crepe": crepe,
}


def summary(chain: Chain, rows: Sequence[Row]) -> str:
    """Return a table: a line a step, each metric as mean ± standard deviation over the seeds."""
    dense = [row for row in rows if row.step == rows[0].step]
    lines = [f"{chain.name}: {', '.join(chain.metrics)} on {chain.data}; {len(dense)} seeds"]
    columns = f"{'torch':>17}{'onnxruntime':>17}" * len(chain.metrics)
    lines.append(f"{'':<34}{'MACs':>6}{columns}{'file':>10}{'smaller':>9}{'faster':>8}{'time':>7}")
    for step in dict.fromkeys(row.step for row in rows):
        some = [row for row in rows if row.step == step]
        size = statistics.mean(row.bytes for row in some)
        lines.append(
            f"{step:<34}{statistics.mean(row.macs for row in some):>6.2f}"
            f"{''.join(f'{_spread(column):>17}' for column in _columns(some))}"
            f"{size / 1000:>7.0f} kB{statistics.mean(row.bytes for row in dense) / size:>8.1f}x"
            f"{statistics.median(row.speedup for row in some):>7.2f}x"
            f"{statistics.mean(row.seconds for row in some):>5.0f} s"
        )
    return "\n".join(lines)


def _columns(rows: Sequence[Row]) -> list[tuple[float, ...]]:
    """Return the values of each metric, in torch and in onnxruntime, in the order of the table."""
    by_metric = [[value for pair in zip(row.torch, row.onnxruntime, strict=True) for value in pair] for row in rows]
    return list(zip(*by_metric, strict=True))


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.2f} ± {100 * deviation:.2f}"


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=tuple(CHAINS), default="fashion-mnist")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of the training")
    parser.add_argument("--folder", type=Path, help="where the ONNX files stay")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    try:
        chain = CHAINS[options.data]()
        rows = run_seeds(chain, range(options.seeds), options.folder)
    except FxoptError as error:
        print(error)
        return 1
    print(summary(chain, rows), f"in {(time.perf_counter() - start) / 60:.1f} minutes", sep="\n")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


def run_seeds(chain: Chain, seeds: Sequence[int], folder: Path | None, timing: float = 6.0) -> list[Row]:
    """Run a chain once a seed, and print each step as it is done; `timing`: seconds to time the files of a seed in."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in seeds:
            place = (folder or Path(temporary)) / f"seed{seed}"
            place.mkdir(parents=True, exist_ok=True)
            rows += run(chain, seed, place, _print, timing)
    return rows


def _print(row: Row) -> None:
    print(
        f"seed {row.seed}  {row.step:<34} MACs {row.macs:.3f}  torch {_numbers(row.torch)}  onnxruntime "
        f"{_numbers(row.onnxruntime)}  {row.bytes:>8} bytes  {row.seconds:.0f} s",
        flush=True,
    )


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


if __name__ == "__main__":
    sys.exit(main())
