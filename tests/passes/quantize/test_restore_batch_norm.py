"""RestoreBatchNorm, FreezeBatchNorm, FoldRestoredBatchNorm: the folded form and back, in training and inference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxopt.errors import ExportError, PassError
from fxopt.export.to_onnx import to_onnx
from fxopt.graph.batch_norm_factor import TINY, batch_norm_factor
from fxopt.graph.capture import capture
from fxopt.graph.interpret import sqnr
from fxopt.graph.ops import fake_quantize
from fxopt.graph.pipeline import Pipeline
from fxopt.graph.program import Program
from fxopt.graph.rewrite import argument
from fxopt.graph.serialize import load
from fxopt.graph.verify import verify
from fxopt.passes import CLEANUP
from fxopt.passes.quantize import (
    AdaRound,
    Calibrate,
    Convert,
    FixScales,
    FoldRestoredBatchNorm,
    FreezeBatchNorm,
    InsertObservers,
    LearnScales,
    RestoreBatchNorm,
    Scheme,
)
from tests.conftest import Golden
from tests.passes.quantize.nets import images
from tests.passes.quantize.qat import attribute, train

aten = torch.ops.aten


class Normed(nn.Module):
    """Batch norms behind plain, grouped, depthwise and biased convolutions and a linear: x[N, 3, 32, 32] -> [N, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self.grouped, self.norm3 = nn.Conv2d(16, 32, 1, groups=2, bias=False), nn.BatchNorm2d(32)
        self.plain = nn.Conv2d(32, 16, 1)
        self.linear, self.norm4 = nn.Linear(16, 24), nn.BatchNorm1d(24, affine=False)
        self.head = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.norm1(self.stem(x)))
        x = torch.relu(self.norm2(self.depthwise(x)))
        x = torch.relu(self.plain(self.norm3(self.grouped(x))))
        y: Tensor = self.head(torch.relu(self.norm4(self.linear(x.mean([2, 3])))))
        return y


def normed(zero_gamma: bool = False) -> nn.Module:
    """Return the network with statistics of its own, and negative and zero gammas."""
    torch.manual_seed(3)
    module = Normed()
    for norm in (module.norm1, module.norm2, module.norm3, module.norm4):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.2, 2)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, 0, 0.3)
            with torch.no_grad():
                norm.weight[1] *= -1
    if zero_gamma:
        with torch.no_grad():
            module.norm1.weight[:3] = torch.tensor([0.0, 1e-20, 1e-9])
            module.norm3.weight[0] = 0
    return module.eval()


def programs(module: nn.Module, x: Tensor, scheme: Scheme | None = None) -> tuple[Program, Program]:
    """Return the captured and the calibrated Program."""
    source = capture(module, x, dynamic="batch")
    calibrate = Calibrate([x], scheme=scheme or Scheme())
    return source, Pipeline((*CLEANUP, InsertObservers(), calibrate))(source)


def batch_norms(program: Program) -> int:
    return len(program.graph.find_nodes(op="call_function", target=aten.batch_norm.default))


def test_golden_restore_batch_norm(golden: Golden) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(4, 16, 1, bias=False), nn.BatchNorm2d(16)
            self.second, self.norm2 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm2(self.second(torch.relu(self.norm(self.first(x)))))
            return y

    module = Two().eval()
    for parameter in module.parameters():
        parameter.data = torch.randint(-4, 5, parameter.shape) / 8.0
    for norm in (module.norm, module.norm2):
        norm.running_var, norm.eps = torch.full((16,), 3.0), 1.0
    x = torch.randint(-8, 9, (2, 4, 6, 6)) / 4.0
    source = capture(module, x, dynamic="batch")
    before = Pipeline((*CLEANUP, InsertObservers(), Calibrate([x], "minmax")))(source)
    golden(before, RestoreBatchNorm(source)(before))


@pytest.mark.parametrize("scheme", [Scheme(), Scheme(4, 4, clip_weights="mse"), Scheme(symmetric=True)])
@pytest.mark.parametrize("zero_gamma", [False, True])
@pytest.mark.parametrize("learn", ["before", "after", "never"])
def test_there_and_back(scheme: Scheme, zero_gamma: bool, learn: str) -> None:
    x = images()
    source, before = programs(normed(zero_gamma), x, scheme)
    start = LearnScales()(before) if learn == "before" else before
    restored = verify(RestoreBatchNorm(source)(start), full=True)
    assert batch_norms(restored) == 4 and not restored.notes[len(before.notes) :]
    if learn == "after":
        restored = verify(LearnScales()(restored), full=True)
    assert sqnr(before(x), restored(x)) > 60
    folded = verify(FixScales()(FoldRestoredBatchNorm()(restored)), full=True)
    assert str(folded) == str(before)
    for name, value in before.module.state_dict().items():
        assert torch.equal(value, folded.module.state_dict()[name])
    assert str(Convert()(folded)) == str(Convert()(before))


def test_in_training_it_is_the_network_with_the_statistics_of_the_batch() -> None:
    """With 16 bits and wide ranges, rounding and clips do next to nothing: all is as in the float network."""
    x = torch.randn(8, 3, 32, 32)
    source, before = programs(normed(), x, Scheme(16, 16, symmetric=True))
    for node in before.graph.find_nodes(op="call_function", target=fake_quantize):
        if argument(node, "axis") is None:
            attribute(before, str(argument(node, "scale").target)).mul_(8)
    restored = RestoreBatchNorm(source)(before)
    state = {name: value.clone() for name, value in source.module.state_dict().items()}
    found = []
    for program in (source, restored):
        source.module.load_state_dict(state)  # the two share their tensors
        source.module.zero_grad()
        result = program.train().module(x)[0]
        (result * torch.linspace(-1, 1, 8)).square().sum().backward()
        gradients = {name: value.grad for name, value in program.module.named_parameters() if value.grad is not None}
        found.append((result.detach(), gradients, {name: v.clone() for name, v in source.module.named_buffers()}))
    (result, gradients, statistics), (result_2, gradients_2, statistics_2) = found
    assert sqnr(result, result_2) > 35
    assert gradients.keys() == gradients_2.keys() == dict(source.module.named_parameters()).keys()
    for name, expected in gradients.items():
        if name not in ("depthwise.bias", "linear.bias"):  # before a batch norm: rounding errors only
            assert sqnr(expected, gradients_2[name]) > 30, name
    for name, value in statistics.items():
        assert not torch.equal(value, state[name]) and sqnr(value, statistics_2[name]) > 50, name


@pytest.mark.parametrize("zero_gamma", [False, True])
def test_train_freeze_train_fold_convert(zero_gamma: bool) -> None:
    x = images(4)
    source, before = programs(normed(zero_gamma), x, Scheme(4, 8, clip_weights="mse"))
    qat = RestoreBatchNorm(source)(LearnScales()(before))
    mean = attribute(qat, "norm1.running_mean").clone()
    losses = train(qat, x, 4, 0.01)
    assert not torch.equal(attribute(qat, "norm1.running_mean"), mean)
    qat = verify(FreezeBatchNorm()(qat.train()))
    assert qat.train() is qat and FreezeBatchNorm()(qat) is qat and batch_norms(qat) == 4
    mean = attribute(qat, "norm1.running_mean").clone()
    losses += train(qat, x, 4, 0.01)
    assert torch.equal(attribute(qat, "norm1.running_mean"), mean)
    assert all(loss == loss and loss < 1e3 for loss in losses)
    assert torch.equal(qat(x), qat.eval()(x))
    fixed = FixScales()(FoldRestoredBatchNorm()(qat))
    assert sqnr(qat(x), fixed(x)) > 30
    assert str(fixed).splitlines()[-1] == str(before).splitlines()[-1] and batch_norms(fixed) == 0
    assert sqnr(fixed(x), verify(Convert()(fixed))(x)) > 30


def test_norms_that_were_not_folded_into_quantized_layers_are_left_alone() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(4, 16, 1), nn.BatchNorm2d(16)
            self.early, self.second = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 1)
            self.up, self.late = nn.ConvTranspose2d(16, 16, 2, 2), nn.BatchNorm2d(16)
            self.alone = nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.norm(self.first(x)))
            x = self.second(self.early(x))
            y: Tensor = self.alone(torch.sigmoid(self.late(self.up(x))))
            return y

    x = torch.randn(2, 4, 6, 6)
    source, before = programs(Mixed().eval(), x)
    restored = verify(RestoreBatchNorm(source)(before))
    assert batch_norms(before) == 1 and batch_norms(restored) == 2
    assert restored.notes[-1] == "Batch norms that stay folded: batch_norm_1, batch_norm_2."
    frozen = FreezeBatchNorm()(restored)
    folded = FoldRestoredBatchNorm()(frozen)
    assert batch_norms(folded) == 1 and folded.train() is folded
    assert str(FoldRestoredBatchNorm()(restored)) == str(before)


def test_layers_with_other_weights_are_left_alone() -> None:
    x = images()
    source, before = programs(normed(), x, Scheme(weight_bits=4))
    with torch.no_grad():
        attribute(before, "stem.weight").mul_(1.01)
    restored = RestoreBatchNorm(source)(before)
    assert batch_norms(restored) == 3 and "stay folded: batch_norm." in restored.notes[-1]
    rounded = AdaRound([x], iterations=1)(programs(normed(), x, Scheme(weight_bits=4))[1])
    with pytest.raises(PassError, match="finds no batch norm of its source"):
        RestoreBatchNorm(source)(rounded)


def test_a_shared_layer_gets_weights_of_its_own() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.norm2 = nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.norm2(self.conv(torch.relu(self.norm(self.conv(x)))))
            return y

    module = Shared().eval()
    nn.init.uniform_(module.norm.weight, 0.5, 1.5)
    x = torch.randn(2, 16, 6, 6)
    source, before = programs(module, x)
    restored = verify(RestoreBatchNorm(source)(before))
    assert batch_norms(restored) == 2 and sqnr(before(x), restored(x)) > 60
    assert str(FoldRestoredBatchNorm()(restored)) == str(before)


def test_the_factor_is_never_zero() -> None:
    gamma, variance = torch.tensor([2.0, -2.0, 0.0, -1e-30]), torch.tensor([4.0, 4.0, 1.0, 1.0])
    expected = torch.tensor([1.0, -1.0, TINY, -TINY])
    torch.testing.assert_close(batch_norm_factor(gamma, variance, 0.0), expected)
    torch.testing.assert_close(batch_norm_factor(None, variance, 0.0), variance.rsqrt())
    torch.library.opcheck(batch_norm_factor, (gamma.requires_grad_(), variance, 1e-5))


def test_it_compiles_whole_and_is_saved(tmp_path: Path) -> None:
    x = images(4)
    source, before = programs(normed(), x)
    qat = RestoreBatchNorm(source)(LearnScales()(before))
    compiled = torch.compile(qat.train().module, fullgraph=True, backend="aot_eager")
    mean, state = attribute(qat, "norm1.running_mean"), {k: v.clone() for k, v in qat.module.state_dict().items()}
    found = compiled(x)[0].detach()
    assert not torch.equal(mean, state["norm1.running_mean"])
    qat.module.load_state_dict(state)
    assert torch.equal(mean, state["norm1.running_mean"])
    torch.testing.assert_close(found, qat.train().module(x)[0].detach())
    qat.save(tmp_path / "qat.pt2")
    loaded = load(tmp_path / "qat.pt2")
    assert str(loaded) == str(qat) and torch.equal(loaded(x), qat(x))
    assert str(FixScales()(FoldRestoredBatchNorm()(loaded))) == str(FixScales()(FoldRestoredBatchNorm()(qat)))


def test_the_wrong_order_says_so() -> None:
    x = images()
    source, before = programs(normed(), x)
    restored = RestoreBatchNorm(source)(before)
    with pytest.raises(PassError, match="run FoldRestoredBatchNorm before"):
        Convert()(restored)
    with pytest.raises(PassError, match="run FoldRestoredBatchNorm before"):
        FixScales()(LearnScales()(restored))
    with pytest.raises(ExportError, match="there to train: run FoldRestoredBatchNorm and FixScales first"):
        to_onnx(restored)
    with pytest.raises(PassError, match="finds no batch norm of its source"):
        RestoreBatchNorm(source)(source)
    assert FoldRestoredBatchNorm()(before) is before
    assert FreezeBatchNorm()(before) is before


def test_frozen_statistics_stay_in_a_float_network() -> None:
    x = images(4)
    source = capture(normed(), x, dynamic="batch")
    frozen = verify(FreezeBatchNorm()(source.train()))
    mean = attribute(frozen, "norm1.running_mean").clone()
    assert torch.equal(frozen.train().module(x)[0], source.eval()(x))
    assert torch.equal(attribute(frozen, "norm1.running_mean"), mean)
    assert batch_norms(Pipeline(CLEANUP)(frozen)) == 0
