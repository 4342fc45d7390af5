"""The cases of the rules for views, parts, indexing and scattering: at least one for each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.export.math_cases import each
from tests.export.op_cases import Input, SizeOf, Weight, case, integers, mask

aten = torch.ops.aten


def places(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(0, 3, list(shape), generator=generator)


def negative_places(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(-3, 3, list(shape), generator=generator)


def rows_once(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw places along the last dimension, none of them twice."""
    return torch.rand(list(shape), generator=generator).argsort(-1)


def increasing(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.rand(list(shape), generator=generator).sort(-1).values


X, ROW, ONE, LINE = Input(("B", 3, 4)), Input((3, 1)), Input(()), Input(("T",))
N, BOOL = Input(("B", 3, 4), integers), Input(("B", 3, 4), mask)
IMAGE, ANY = Input(("B", 4, 6, 8)), Input(("B", "T", "H"))
BYTE = Input(("B", 3, 4), lambda shape, g: torch.randint(0, 200, list(shape), generator=g, dtype=torch.uint8))
B, T = SizeOf(0), SizeOf(1)

IDENTITIES = ["contiguous", "clone", "alias", "detach", "lift_fresh_copy", "lift", "positive"]
VIEW = [
    *each([getattr(aten, name).default for name in [*IDENTITIES, "resolve_conj", "resolve_neg", "real"]], X),
    *each([aten.view.default, aten.reshape.default, aten._unsafe_view.default], X, [B, 12]),
    *each([aten.view.default, aten.reshape.default], ANY, [B, T, -1]),
    case(aten.reshape.default, ANY, [-1, SizeOf(2)]),
    case(aten.reshape.default, ANY, [T, B, SizeOf(2)]),
    case(aten.reshape.default, X, [-1]),
    case(aten.reshape.default, Input((0, 3)), [3, 0]),
    case(aten.view.default, IMAGE, [B, 2, 2, 6, 8]),
    case(aten.flatten.using_ints, IMAGE, 1),
    case(aten.flatten.using_ints, ANY, 0, 1),
    case(aten.flatten.using_ints, ANY),
    case(aten.unflatten.int, IMAGE, 1, [2, -1]),
    case(aten.unflatten.int, ANY, 2, [-1, 3]),
    *each([aten.ravel.default, aten.atleast_1d.default, aten.atleast_2d.default, aten.atleast_3d.default], LINE),
    case(aten.atleast_1d.default, ONE),
    *each([aten.view_as.default, aten.reshape_as.default], X, Input(("B", 12))),
    *each([aten.view_as.default, aten.reshape_as.default], Input(("B", "T", 4)), Input(("B", "T", 2, 2))),
    *each([aten.squeeze.default], Input(("B", 1, 3, 1))),
    case(aten.squeeze.dim, Input(("B", 1, 3, 1)), -1),
    case(aten.squeeze.dim, X, 1),
    case(aten.squeeze.dims, Input(("B", 1, 3, 1)), [1, 2, 3]),
    case(aten.unsqueeze.default, X, -2),
    *each([aten.transpose.int, aten.swapaxes.default, aten.swapdims.default], X, 0, -1),
    *each([aten.t.default, aten.mT.default, aten.adjoint.default, aten.numpy_T.default], Input(("B", 3))),
    *each([aten.mT.default, aten.adjoint.default], X),
    case(aten.t.default, LINE),
    case(aten.permute.default, X, [1, -1, 0]),
    case(aten.permute.default, X, [0, 1, 2]),
    *each([aten.movedim.int, aten.moveaxis.int], IMAGE, 0, -2),
    *each([aten.movedim.intlist, aten.moveaxis.intlist], IMAGE, [0, 1], [2, 0]),
    case(aten.expand.default, ROW, [2, 3, 5]),
    case(aten.expand.default, Input(("B", 1, 4)), [B, 3, -1]),
    case(aten.expand.default, Input(("B", 4)), [1, 1, B, -1]),
    case(aten.expand.default, Input((1, 4, "T")), [SizeOf(2), -1, -1]),
    case(aten.expand.default, X, [-1, -1, -1]),
    case(aten.broadcast_to.default, ROW, [2, 3, 5]),
    case(aten.expand_as.default, ROW, X),
    case(aten.expand_as.default, ONE, ANY),
    case(aten.broadcast_tensors.default, [ROW, Input(("B", 1, 4)), ONE]),
    *each([aten.meshgrid.default], [LINE, Input((3,))]),
    *[case(aten.meshgrid.indexing, [LINE, Input(("B",)), Input((2,))], kwargs={"indexing": k}) for k in ("ij", "xy")],
]

SLICING = [
    case(aten.slice.Tensor, X, 1, 1, 3),
    case(aten.slice.Tensor, X, 2, -3, 2**63 - 1, 2),
    case(aten.slice.Tensor, ANY, 1, None, -1),
    case(aten.slice.Tensor, ANY, 2, B, 100),
    case(aten.slice.Tensor, X, 0, 0, 2**63 - 1),
    case(aten.narrow.default, X, 1, 1, 2),
    case(aten.narrow.default, X, 1, -2, 2),
    case(aten.narrow.default, ANY, 1, 1, B),
    case(aten.narrow.default, ANY, 2, -4, B),
    case(aten.select.int, X, 1, 2),
    case(aten.select.int, X, -1, -1),
    case(aten.select.int, ANY, 2, B),
    *each([aten.split.Tensor, aten.unsafe_split.Tensor], IMAGE, 4, 2),
    case(aten.split.Tensor, X, 5, 1),
    case(aten.split.Tensor, Input((8, 3)), 3),
    *each([aten.split_with_sizes.default, aten.split.sizes], IMAGE, [1, 5, 2], 3),
    case(aten.split_with_sizes.default, X, [4], 2),
    *each([aten.chunk.default, aten.unsafe_chunk.default], IMAGE, 3, -1),
    case(aten.chunk.default, Input((2, "T", 4)), 2, 2),
    case(aten.tensor_split.sections, IMAGE, 3, 3),
    case(aten.tensor_split.sections, ANY, 2, 1),
    case(aten.tensor_split.indices, IMAGE, [2, 3], 2),
    case(aten.tensor_split.indices, ANY, [2, 4], 1),
    case(aten.unbind.int, X, 1),
    case(aten.unbind.int, BYTE, -1),
    case(aten.stack.default, [X, X, Input(("B", 3, 4))], -1),
    case(aten.stack.default, [N, X]),
    *each([aten.cat.default, aten.concat.default, aten.concatenate.default], [X, N, BYTE], 1),
    case(aten.cat.default, [Input((0,)), X], -1),
    case(aten.cat.default, [Input(("B", 0, 4)), X], 1),
    case(aten.cat.default, [X]),
    *each([aten.repeat.default, aten.tile.default], X, [2, 1, 1, 3]),
    *each([aten.repeat.default], ROW, [1, 1]),
    case(aten.repeat.default, ANY, [1, B, 2]),
    case(aten.tile.default, BOOL, [2]),
    case(aten.repeat_interleave.self_int, X, 2, 1),
    case(aten.repeat_interleave.self_int, ANY, 3, 0),
    case(aten.repeat_interleave.self_int, ANY, B, 2),
    case(aten.repeat_interleave.self_int, X, 2),
    case(aten.roll.default, IMAGE, [2, -3], [2, 3]),
    case(aten.roll.default, ANY, [-2, 1], [1, -1]),
    case(aten.roll.default, ANY, [B], [1]),
    case(aten.roll.default, X, [3]),
    case(aten.roll.default, Input((2, 3)), [2]),
    case(aten.roll.default, IMAGE, [6], [2]),
    case(aten.flip.default, X, [0, -1]),
    case(aten.flip.default, ONE, []),
    *[case(aten.rot90.default, X, k, [1, 2]) for k in (-1, 0, 1, 2)],
    case(aten.unfold.default, IMAGE, 2, 3, 2),
    case(aten.unfold.default, ANY, 1, 3, 1),
    case(aten.unfold.default, ONE, 0, 1, 1),
    case(aten.diagonal.default, X, 0, 1, 2),
    case(aten.diagonal.default, Input((5, "B", 4, "T")), -2, 0, 2),
    case(aten.diagonal.default, Input((5, 4)), 1),
    *each([aten.tril.default, aten.triu.default], X),
    *each([aten.tril.default, aten.triu.default], BYTE, -1),
    *each([aten.tril.default, aten.triu.default], BOOL, 1),
    case(aten.triu.default, ANY, B),
]

AT, AT1, AT2 = Input(("B", 5), negative_places), Input((5,), negative_places), Input((2, 1), negative_places)
MASK1, MASK2 = Input(("B",), mask), Input((3, 4), mask)
INDEXING = [
    *each([aten.index.Tensor, aten._unsafe_index.Tensor], X, [None, AT]),
    case(aten.index.Tensor, Input((5, 3)), [AT]),
    case(aten.index.Tensor, X, [None, AT1, AT2]),
    case(aten.index.Tensor, IMAGE, [None, AT1, AT1]),
    case(aten.index.Tensor, IMAGE, [None, AT1, None, AT2]),
    case(aten.index.Tensor, Input((3, "B", 4)), [AT2, None, AT1]),
    case(aten.index.Tensor, Input((3, 4, 5)), [Input((), places), AT1]),
    case(aten.index.Tensor, X, [BOOL]),
    case(aten.index.Tensor, Input(("B", 3, 4, 2)), [BOOL]),
    case(aten.index.Tensor, X, [MASK1]),
    case(aten.index.Tensor, X, [None, MASK2]),
    case(aten.index.Tensor, Input((3, 4, 5)), [Input((1,), places), Input((4,), lambda s, g: torch.arange(4) != 2)]),
    case(aten.index.Tensor, Weight((7, 3)), [Input(("B", "T"), places)]),
    *each([aten.nonzero.default, aten.argwhere.default, aten.nonzero_numpy.default], N),
    *each([aten.where.default, aten.nonzero.default], BOOL),
    case(aten.masked_select.default, X, BOOL),
    case(aten.masked_select.default, X, MASK2),
    case(aten.gather.default, X, 1, Input(("B", 2, 3), places)),
    case(aten.gather.default, ONE, 0, Input((1,), lambda shape, g: torch.zeros(1, dtype=torch.int64))),
    case(aten.index_select.default, X, 1, Input((5,), places)),
    case(aten.index_select.default, X, -1, Input((), places)),
    case(aten.embedding.default, Weight((10, 4)), Input(("B", "T"), places), 0),
    case(aten.take.default, X, Input((2, 3), places)),
    case(aten.take_along_dim.default, Input((2, 3, 4)), Input((2, 2, 4), places), 1),
    case(aten.take_along_dim.default, Input((2, 3, 4)), Input((2, 1, 5), places), 2),
    case(aten.take_along_dim.default, X, Input((6,), places)),
    case(aten.one_hot.default, Input(("B", 4), places), 5),
    *[
        case(op, *args, kwargs={"right": right, "out_int32": right})
        for right in (False, True)
        for op, args in (
            (aten.bucketize.Tensor, (Input(("B", 4)), Input((5,), increasing))),
            (aten.bucketize.Tensor, (N, Input((3,), lambda shape, g: torch.tensor([-1, 0, 2])))),
            (aten.searchsorted.Tensor, (Input((3, 5), increasing), Input((3, 4)))),
            (aten.searchsorted.Tensor, (Input((5,), increasing), X)),
        )
    ],
]

INTO, PLACES = Input(("B", 6), integers), Input(("B", 6), rows_once)
SCATTER = [
    case(aten.scatter.src, INTO, 1, PLACES, Input(("B", 6), integers)),
    case(aten.scatter.src, X, 2, Input(("B", 2, 4), rows_once), Input(("B", 3, 4))),
    case(aten.scatter.value, X, 2, Input(("B", 2, 3), places), 1.5),
    *[
        case(aten.scatter.reduce, X, 1, Input(("B", 3, 4), places), X, kwargs={"reduce": reduce})
        for reduce in ("add", "multiply")
    ],
    case(aten.scatter.value_reduce, X, 1, Input(("B", 3, 4), places), 2.0, kwargs={"reduce": "multiply"}),
    case(aten.scatter_add.default, X, 1, Input(("B", 5, 2), places), Input(("B", 5, 4))),
    *[
        case(
            aten.scatter_reduce.two,
            X,
            1,
            Input(("B", 3, 4), places),
            Input(("B", 3, 4)),
            reduce,
            kwargs={"include_self": s},
        )
        for reduce in ("sum", "prod", "amax", "amin", "mean")
        for s in (True, False)
    ],
    case(aten.scatter_reduce.two, N, 1, Input(("B", 3, 4), places), N, "mean"),
    case(aten.scatter_reduce.two, ONE, 0, Input((), lambda shape, g: torch.tensor(0)), ONE, "amax"),
    case(aten.scatter.value, ONE, 0, Input((1,), lambda shape, g: torch.tensor([0])), 0.5),
    case(aten.scatter_reduce.two, N, 1, Input(("B", 3, 4), places), N, "amax", kwargs={"include_self": False}),
    *each([aten.index_put.default, aten._unsafe_index_put.default], X, [BOOL], ONE),
    case(aten.index_put.default, X, [MASK1], ONE),
    case(aten.index_put.default, X, [None, Input((3,), rows_once)], Input((4,))),
    case(aten.index_put.default, IMAGE, [None, Input((4,), rows_once), None, Input((4,), rows_once)], Input((4, 1, 6))),
    case(aten.index_put.default, X, [None, AT1, AT2], Input(("B", 2, 5)), True),
    case(aten.index_put.default, X, [MASK1, None, None], Input((4,))),
    case(aten.slice_scatter.default, X, Input(("B", 2, 4)), 1, 1),
    case(aten.slice_scatter.default, X, Input(("B", 2, 4)), 1, 0, 2),
    case(aten.slice_scatter.default, X, Input(("B", 1, 4)), 1, -2, -1),
    case(aten.slice_scatter.default, X, Input(("B", 3, 2)), 2, 1, 2**63 - 1, 2),
    case(aten.slice_scatter.default, X, N),
    *[case(aten.select_scatter.default, X, Input(("B", 4)), 1, index) for index in (0, 1, -1)],
    case(aten.select_scatter.default, Input(("B", 1)), Input(("B",)), 1, 0),
    case(aten.select_scatter.default, ANY, Input(("B", "T")), 2, B),
    case(aten.diagonal_scatter.default, X, Input(("B", 3)), 0, 1, 2),
    case(aten.diagonal_scatter.default, Input((5, "B", 4)), Input(("B", 3)), -2, 0, 2),
    case(aten.masked_scatter.default, X, BOOL, Input(("B", 12))),
    case(aten.masked_scatter.default, X, MASK2, Input(("B", 12))),
    case(aten.index_add.default, X, 1, Input((5,), places), Input(("B", 5, 4))),
    case(aten.index_add.default, X, -1, Input((2,), places), Input(("B", 3, 2)), kwargs={"alpha": 0.5}),
    case(aten.index_copy.default, X, 1, Input((3,), rows_once), Input(("B", 3, 4))),
    case(aten.index_fill.int_Scalar, X, 1, Input((2,), places), 0.5),
    case(aten.index_fill.int_Tensor, N, 2, Input((2,), places), Input((), integers)),
]
