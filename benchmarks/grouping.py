"""How long it takes to find what must be removed together: `python -m benchmarks.grouping --models densenet121 swin_t`.

CPU seconds on one thread, in one process: channel_groups() of a captured Program (the capture is counted by itself),
and Torch-Pruning's dependency graph with all of its groups (pip install --no-deps torch-pruning), which has its own
tracing in it. Models are those of the torchvision suite.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.zoo_models import suite
from fxopt.graph.capture import call_of, capture
from fxopt.graph.pipeline import Pipeline
from fxopt.passes.cleanup import CLEANUP
from fxopt.passes.prune import channel_groups

MODELS = ("densenet121", "vgg11_bn", "swin_t", "resnet50", "vit_l_16")


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--limit", type=int, default=120, help="seconds that Torch-Pruning may take")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {model.name: model for model in suite("torchvision")}
    print(f"{'model':<20} {'capture':>8} {'grouping':>9} {'groups':>7} {'Torch-Pruning':>14} {'groups':>7}")
    for name in options.models:
        model = found[name]
        module, inputs = model.build(), model.inputs(2)
        program, captured = _timed(partial(capture, module, inputs, dynamic=model.dynamic))
        program = Pipeline(tuple(CLEANUP))(program)
        channel_groups(program)  # what is imported and compiled once does not count
        groups, seconds = _timed(partial(channel_groups, program))
        theirs = _theirs(module, inputs, options.limit) if find_spec("torch_pruning") else "not installed"
        print(f"{name:<20} {captured:8.2f} {seconds:9.2f} {len(groups.groups):7} {theirs}", flush=True)
    return 0


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


def _theirs(module: torch.nn.Module, inputs: Any, limit: int) -> str:
    """Return the seconds and the number of groups of Torch-Pruning, or why there are none."""
    import torch_pruning  # a peer: compared with where it is installed

    args, kwargs = call_of(inputs)

    def grouped() -> list[Any]:
        graph = torch_pruning.DependencyGraph().build_dependency(module, kwargs or args)
        return list(graph.get_all_groups())

    signal.signal(signal.SIGALRM, _late)
    signal.alarm(limit)
    try:
        groups, seconds = _timed(grouped)
    except TimeoutError:
        return f"{'more than ' + str(limit) + ' s':>14}"
    except Exception as error:
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"
    finally:
        signal.alarm(0)
    return f"{seconds:14.2f} {len(groups):7}"


def _late(*_: Any) -> None:
    raise TimeoutError


if __name__ == "__main__":
    sys.exit(main())
