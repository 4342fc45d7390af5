"""Train a Program: fit its weights to labels, to a teacher, or to both."""

from __future__ import annotations

from pathlib import Path

from fxopt.data import Data
from fxopt.graph.program import Program
from fxopt.training.options import Evaluate, Training
from fxopt.training.random_states import own_random_states
from fxopt.training.run import Run

DEFAULT = Training()


def train(
    program: Program,
    data: Data,
    training: Training = DEFAULT,
    *,
    evaluate: Evaluate | None = None,
    folder: str | Path | None = None,
) -> Program:
    """Return the Program with trained weights, in inference mode; the one given is left as it is.

    - `program`: a captured model, or student and teacher in one (passes.AttachTeacher). Parameters that do not require
      gradients, and all that only the teacher reads, are shared and stay as they are.
    - `data`: what can be iterated again and again, such as a DataLoader. An item is a tuple `(inputs ..., labels, ids)`
      or a dict of the inputs with "labels" and "ids"; labels are needed for `training.task` and some losses of taps,
      ids for stored outputs of a teacher.
    - `evaluate`: from a Program, callable like the model, to a number that is the better the higher it is. It is called
      after each epoch with the student in inference mode. The weights returned are those of the best epoch; without
      `evaluate`, the last ones.
    - `folder`: for checkpoints (`last.safetensors`, `best.safetensors`) and the log (`log.csv`, `log.jsonl`). Where it
      has a checkpoint of the same training, that goes on from there to the same weights as without the break.

    Runs in as many processes as `accelerate launch` or `torchrun` has started; an item is the batch of all of them, and
    each computes its share of the rows. All must see the same data, and the same folder.

    Raises TrainingError for a loss that is no number (saying where), for a folder that has another training, and for
    what cannot be trained; DataError for data that is empty, can be read only once, or does not fit.
    """
    with own_random_states():
        return Run(program, data, training, evaluate, None if folder is None else Path(folder)).run()
