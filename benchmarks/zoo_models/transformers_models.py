"""The transformers models, built from their configuration classes: nothing is downloaded."""

import functools
from typing import Any

import torch

from benchmarks.zoo_models.model import Inputs, ZooModel
from benchmarks.zoo_models.preparation import calibrate_batch_norm, seeded
from benchmarks.zoo_models.shim import declare_torchvision_ops
from benchmarks.zoo_models.transformers_inputs import IMAGE, InputKind
from benchmarks.zoo_models.transformers_tables import DECODERS, ENCODER_DECODERS, ENCODERS, SPEECH, VISION, Row

LABELS = 10  # classes, where the model classifies


def transformers_models() -> tuple[ZooModel, ...]:
    """List the encoders, decoders, encoder-decoders, vision and speech models, in the order of the tables."""
    tables = {
        "encoder": ENCODERS,
        "decoder": DECODERS,
        "encoder-decoder": ENCODER_DECODERS,
        "vision": VISION,
        "speech": SPEECH,
    }
    return tuple(_zoo_model(name, family, row) for family, table in tables.items() for name, row in table.items())


def _zoo_model(name: str, family: str, row: Row) -> ZooModel:
    return ZooModel(
        name=name,
        family=family,
        build=functools.partial(_build, row),
        inputs=functools.partial(_inputs, row.inputs, other=False),
        dynamic=row.inputs.dynamic,
        other_inputs=functools.partial(_inputs, row.inputs, other=True),
        is_cnn=row.cnn,
    )


def _inputs(kind: InputKind, batch: int, other: bool) -> Inputs:
    return kind.make(batch, other)


def _build(row: Row) -> torch.nn.Module:
    model = seeded(functools.partial(_construct, row))
    if row.inputs is not IMAGE:  # only image models have BatchNorms
        return model
    batch, fresh = IMAGE.make(32, True), IMAGE.make(32, False)
    return calibrate_batch_norm(model, tuple(batch.values()), tuple(fresh.values()))


def _construct(row: Row) -> torch.nn.Module:
    declare_torchvision_ops()
    import transformers

    model_class: Any = getattr(transformers, row.model)
    model: torch.nn.Module = model_class(model_class.config_class(**{"num_labels": LABELS, **row.arguments}))
    return model
