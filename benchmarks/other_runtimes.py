"""fxopt's portable files in other runtimes: `python -m benchmarks.other_runtimes --environments FOLDER`.

Every model is compiled for "portable", float and with the recipes asked for; OpenVINO and onnxruntime-web (WebAssembly,
in Node) run the files on the same held-out samples as onnxruntime does. The two have places of their own, made once by
`python -m benchmarks.other_runtimes --install FOLDER` (pip and npm).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.runtime_tools.cases import ALL_CASES
from benchmarks.runtime_tools.install import install
from benchmarks.runtime_tools.run import Settings, run_model
from benchmarks.runtime_tools.score import score, table
from fxopt import FxoptError

RECIPES = ("int8-static", "int8-dynamic", "int8-weights", "int4-weights")
MODELS = ("resnet18", "mobilenet_v2", "bert-6l")


def main() -> int:
    """Run the command line; return 1 if a file did not load or run somewhere."""
    options = _options()
    if options.install:
        failures = install(options.install.resolve())
        for name, failure in failures.items():
            print(f"{name} is not installed: {failure}", file=sys.stderr)
        return 1 if failures else 0
    torch.set_num_threads(1)
    environments = options.environments.resolve() if options.environments else None
    settings = Settings(environments, options.recipes, options.calibration, options.held_out, options.limit)
    results = []
    for name in options.models:
        results.append(_run(name, settings))
        print(table(results[-1]), end="\n\n", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    return 1 if any("error" in row for result in results for row in [result, *result.get("rows", [])]) else 0


def _run(name: str, settings: Settings) -> dict[str, Any]:
    """Return one model's figures, or {"model", "error"} if it cannot be built or does not compile."""
    with tempfile.TemporaryDirectory(prefix="fxopt-runtimes-") as folder:
        try:
            expected, runs = run_model(name, settings, Path(folder))
        except FxoptError as error:
            return {"model": name, "error": str(error)}
    return score(name, expected, runs, ALL_CASES[name].classifies)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(ALL_CASES), metavar="MODEL")
    parser.add_argument("--recipes", nargs="*", default=RECIPES[:1], choices=RECIPES, metavar="RECIPE")
    parser.add_argument("--install", type=Path, metavar="FOLDER", help="make the runtimes' places there, and stop")
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="where --install made them")
    parser.add_argument("--calibration", type=int, default=32, help="samples, of batch 1")
    parser.add_argument("--held-out", type=int, default=16, help="samples that outputs are compared on")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds a runtime may take for a file")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
