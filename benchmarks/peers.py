"""fxopt's int8 against the peers: `python -m benchmarks.peers --task int8 --models resnet18 --json out.json`.

On one and the same model every tool makes an int8 ONNX file, in a process of its own; then one process times all files
in turn in onnxruntime and compares their outputs with the float file's. Peers that cannot live beside this package's
dependencies have environments of their own, made once by `python -m benchmarks.peers --install FOLDER` and used with
`--environments FOLDER`. Models with trained weights, which have a task to score, are compared when named by --models.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peer_tools.cases import CASES
from benchmarks.peer_tools.environments import install
from benchmarks.peer_tools.plot import plot
from benchmarks.peer_tools.prepare import EXPORTERS
from benchmarks.peer_tools.real_cases import ALL_CASES
from benchmarks.peer_tools.run import Settings, compare
from benchmarks.peer_tools.table import model_table, summary
from benchmarks.peer_tools.tools import TOOLS


def main() -> int:
    """Run the command line."""
    options = _options()
    if options.install:
        wanted = [name for name in options.tools if TOOLS[name].own_environment]
        failures = install(options.install.resolve(), wanted)
        for name, failure in failures.items():
            print(f"{name} is not installed: {failure}", file=sys.stderr)
        return 1 if failures else 0
    if options.plot and find_spec("matplotlib") is None:
        print("--plot needs matplotlib: pip install matplotlib", file=sys.stderr)
        return 1
    if options.read:
        results = [result for path in options.read for result in json.loads(path.read_text())]
        print("\n\n".join(model_table(result) for result in results), end="\n\n")
    else:
        results = _run(options)
    print(summary(results))
    if options.plot:
        plot(results, options.plot)
    return 0


def _run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare the tools on all models; the JSON file grows with each."""
    settings = Settings(
        tools=options.tools,
        environments=options.environments.resolve() if options.environments else None,
        calibration=options.calibration,
        held_out=options.held_out,
        seconds=options.seconds,
        threads=options.threads,
        limit=options.limit,
        matches=options.matches,
        exporter=options.exporter,
    )
    results = []
    for name in options.models:
        with _folder(options.keep, name) as folder:
            results.append(compare(name, settings, folder))
        print(model_table(results[-1]), end="\n\n", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    return results


@contextmanager
def _folder(kept: Path | None, name: str) -> Iterator[Path]:
    """Give the folder of a model's files: one that stays, if there is a place for it."""
    if kept is None:
        with tempfile.TemporaryDirectory(prefix="fxopt-peers-") as folder:
            yield Path(folder)
    else:
        (kept / name).mkdir(parents=True, exist_ok=True)
        yield kept.resolve() / name


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=["int8"], default="int8")
    parser.add_argument("--models", nargs="*", default=list(CASES), choices=list(ALL_CASES), metavar="MODEL")
    parser.add_argument("--tools", nargs="*", default=list(TOOLS), choices=list(TOOLS), metavar="TOOL")
    parser.add_argument("--install", type=Path, metavar="FOLDER", help="make the peers' environments there, and stop")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="where --install made them")
    parser.add_argument("--calibration", type=int, default=64, help="samples, of batch 1")
    parser.add_argument("--held-out", type=int, default=32, help="samples that outputs are compared on")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, a model and number of threads")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds a tool may take, a model and setting")
    parser.add_argument(
        "--exporter", choices=EXPORTERS, default="fxopt", help="of the float file that peers start from"
    )
    parser.add_argument(
        "--matches", type=int, default=2, help="how often we may answer a point of a peer with compile(max_latency=...)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep all files there; a file that is there is not made again"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--read", type=Path, nargs="*", default=[], metavar="JSON", help="show results of earlier runs; run nothing"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a scatter plot a model (needs matplotlib)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
