"""The model collections that the compiler is tried on: torchvision, timm, transformers, recurrent networks.

Importing this package is cheap: the collections' own packages are imported when a suite is listed or a model is built.
"""

from typing import Literal, assert_never

from benchmarks.zoo_models.model import Inputs, ZooModel

SuiteName = Literal["torchvision", "timm", "transformers", "rnn"]

__all__ = ["Inputs", "SuiteName", "ZooModel", "suite"]


def suite(name: SuiteName, scored: bool = False) -> tuple[ZooModel, ...]:
    """List one collection's models, without building any. `scored`: recurrent layers alone have a head each."""
    match name:
        case "torchvision":
            from benchmarks.zoo_models.torchvision_models import torchvision_models

            return torchvision_models()
        case "timm":
            from benchmarks.zoo_models.timm_models import timm_models

            return timm_models()
        case "transformers":
            from benchmarks.zoo_models.transformers_models import transformers_models

            return transformers_models()
        case "rnn":
            from benchmarks.zoo_models.rnn_models import rnn_models

            return rnn_models(scored)
        case _:
            assert_never(name)
