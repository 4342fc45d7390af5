"""Small models of the zoo, as users prune them: cleaned up first, half of the operations, no other argument."""

import pytest

from benchmarks.zoo_models import suite
from fxopt.graph.capture import capture
from fxopt.graph.cost import macs_by_node
from fxopt.graph.pipeline import Pipeline
from fxopt.passes import CLEANUP, RemoveChannels


# llama: grouped queries; deberta: sizes that follow from data; resnet: few channels, met only from the beginning
@pytest.mark.parametrize("name", ["llama", "deberta", "resnet"])
def test_half_of_the_operations_go(name: str) -> None:
    model = next(model for model in suite("transformers") if model.name == name)
    program = Pipeline(tuple(CLEANUP))(capture(model.build(), model.inputs(2), dynamic=model.dynamic))
    small = RemoveChannels()(program)
    share = sum(macs_by_node(small).values()) / sum(macs_by_node(program).values())
    assert share == pytest.approx(0.5, abs=0.02)
