"""observer="auto": at every point the candidate with the least error of the layers that read it."""

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fxopt.graph.interpret import node_values, sqnr
from fxopt.graph.ops import fake_quantize
from fxopt.graph.program import Program
from fxopt.graph.rewrite import constant
from fxopt.graph.verify import verify
from fxopt.passes.quantize import Calibrate, InsertObservers, Quantize, Scheme
from fxopt.passes.quantize.choose_ranges import FirstItems
from fxopt.passes.quantize.observers import SEARCHES, Observer
from tests.passes.quantize.nets import Branches, Encoder, Gated, Inverted, Residual, images, program_of

aten = torch.ops.aten
LAYERS = (aten.conv2d.default, aten.linear.default)
MOVES = (
    aten.max_pool2d.default, aten.view.default, aten.transpose.int, aten.contiguous.default, aten.chunk.default,
    aten.flatten.using_ints, aten.reshape.default,
)  # fmt: skip
NETS = [(Residual, 32), (Inverted, 32), (Branches, 32), (Gated, 16), (Encoder, 0)]


def data_for(size: int) -> list[Tensor]:
    if size:
        return [images(2, size, seed) for seed in range(3)]
    return [torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def read_errors(program: Program, calibrated: Program, items: list[Tensor]) -> dict[str, float]:
    """Compute each group's relative error of reader outputs, from the values of the float Program and the scales."""
    fakes = [node for node in calibrated.graph.find_nodes(op="call_function", target=fake_quantize)]
    names = {node.name for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)}
    values = [node_values(program, (item,), names - gets(program)) for item in items]
    errors: dict[str, float] = {}
    for fake in fakes:
        source = fake.args[0]
        if source.op == "get_attr":
            continue
        group = str(fake.args[1].target)
        rounded = [quantized(calibrated, fake, found[source.name]) for found in values]
        layers = [reader for reader in fake.users if reader.target in LAYERS]
        for reader in layers:
            weight = quantized(calibrated, reader.args[1], constant(calibrated.module, reader.args[1].args[0]))
            rest = [constant(calibrated.module, arg) if isinstance(arg, fx.Node) else arg for arg in reader.args[2:]]
            made = [reader.target(value, weight, *rest) for value in rounded]
            errors[group] = errors.get(group, 0) + relative([found[reader.name] for found in values], made)
        if any(reader.target not in (*LAYERS, *MOVES) for reader in fake.users):
            errors[group] = errors.get(group, 0) + relative([found[source.name] for found in values], rounded)
    return errors


def gets(program: Program) -> set[str]:
    return {node.name for node in program.graph.nodes if node.op == "get_attr"}


def quantized(program: Program, fake: fx.Node, value: Tensor | None) -> Tensor:
    scale, zero = (constant(program.module, node) for node in fake.args[1:3])
    result: Tensor = fake_quantize(value, scale, zero, *fake.args[3:])
    return result


def relative(exact: list[Tensor], made: list[Tensor]) -> float:
    noise = sum(float((a - b).detach().double().square().sum()) for a, b in zip(exact, made, strict=True))
    return noise / sum(float(a.double().square().sum()) for a in exact)


@pytest.mark.parametrize(("net", "size"), NETS)
@pytest.mark.parametrize("scheme", [Scheme(), Scheme(activation_bits=4, weight_bits=4)])
def test_no_single_observer_has_less_error_where_a_point_is_read(
    net: type[nn.Module], size: int, scheme: Scheme
) -> None:
    torch.manual_seed(0)
    data = data_for(size)
    program = program_of(net(), data[0])
    observed = InsertObservers()(program)
    chosen = verify(Calibrate(data, "auto", scheme=scheme)(observed), full=True)
    best = read_errors(program, chosen, data[:2])  # the four samples that it looks at
    assert len(best) >= 4
    for name in SEARCHES:
        single = read_errors(program, Calibrate(data, name, scheme=scheme)(observed), data[:2])
        assert single.keys() == best.keys()
        for group, error in best.items():
            assert error <= single[group] * 1.001, (name, group)


def test_the_reader_decides() -> None:
    """Of a value with a rare outlier, a layer that ignores the outlier's channel wants the narrow range."""

    class Reader(nn.Module):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 16)
            nn.init.constant_(self.linear.weight, 0.5)
            self.linear.weight.data[:, 0] = weight
            self.linear.weight.data[1::2] *= -1

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return y

    x = torch.randn(4, 64, 8, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] = 0
    x[:, 5, 0] = 60.0
    scales = []
    for weight in (0.0, 0.5):
        program = Calibrate([x], "auto")(InsertObservers()(program_of(Reader(weight), x)))
        (node,) = (n for n in program.graph.find_nodes(op="get_attr") if n.target == "x_scale")
        scales.append(float(constant(program.module, node)))  # type: ignore[arg-type]
    assert scales[1] == pytest.approx(60 / 255, rel=0.1)
    assert scales[0] < scales[1] / 1.5


def test_only_the_first_items_are_kept_and_run_again() -> None:
    first = FirstItems()
    items = [torch.ones(2, 3), torch.ones(1, 3), torch.ones(3, 3), torch.ones(2, 3)]
    for item in items:
        first.take((item,))
        item.zero_()  # a loader may use its buffers again
    assert [len(kept[0]) for kept in first.items] == [2, 1, 3]
    assert all(bool((kept[0] == 1).all()) for kept in first.items)


@pytest.mark.parametrize("observer", ["moving-average", "percentile", "entropy", "auto"])
def test_a_one_shot_stream_of_changing_shapes(observer: Observer) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 16, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(functional.relu6(self.first(x)))
            return y

    from fxopt.graph.capture import capture

    generator = torch.Generator().manual_seed(0)
    sizes = [(2, 8, 8), (0, 8, 8), (1, 12, 9), (3, 7, 20)]
    items = [torch.randn(n, 4, h, w, generator=generator) for n, h, w in sizes]
    program = capture(Pooled().eval(), items[0], dynamic={"x": {0: "batch", 2: "height", 3: "width"}})
    quantized = Quantize(iter(items), observer=observer)(program)
    assert sqnr(program(items[2]), quantized(items[2])) > 20
