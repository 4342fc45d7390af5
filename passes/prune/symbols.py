"""Symbols: which coordinates of a graph live and die together. A union-find over symbols, some of which are products.

A *label* is an int array with one symbol for each position of one tensor dimension. A symbol stands for a set of
*atoms*, and its position goes as soon as one of them is removed:

- a free symbol is one atom; `unify` makes two of them the same;
- a product is the union of two symbols: position (i, j) of a reshaped dimension goes with row i or with column j;
- FIXED, and every frozen symbol, is the empty set: the position stays.

All relations only ever add ties, so whatever is removed in accord with the final ones is in accord with each of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Label = NDArray[np.int64]
Mask = NDArray[np.bool_]

FIXED = 0  # the symbol of a position that always stays


def fixed(size: int) -> Label:
    """Return the label of a dimension that keeps all of its `size` positions."""
    return np.zeros(size, np.int64)


class Symbols:
    """The symbols of one graph, their classes, and why the frozen ones are frozen.

    `parent` is the union-find; a free symbol may have a product as its root. `left` and `right` are the factors of a
    product. `why` of a root is the number of its reason in `reasons`; 0: it is not frozen. `birth` tells which symbols
    were made together.
    """

    def __init__(self) -> None:
        self.reasons: list[str] = ["", "its size is fixed"]
        self.parent, self.left, self.right, self.why, self.birth = (np.zeros(1024, np.int64) for _ in range(5))
        self.count = 1
        self.births = 0
        self.why[FIXED] = 1

    def fresh(self, size: int) -> Label:
        """Return `size` new free symbols."""
        while self.count + size > len(self.parent):
            self.parent, self.left, self.right, self.why, self.birth = (
                np.concatenate([table, np.zeros_like(table)])
                for table in (self.parent, self.left, self.right, self.why, self.birth)
            )
        new = np.arange(self.count, self.count + size)
        self.parent[new] = new
        self.births += 1
        self.birth[new] = self.births
        self.count += size
        return new

    def find(self, symbols: Label) -> Label:
        """Return the root of each symbol."""
        roots = self.parent[symbols]
        while True:
            above = self.parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self.parent[symbols] = roots
        return roots

    def leaves(self, symbols: Label) -> Label:
        """Return the atoms of each symbol, `[symbols, most atoms]`: first the atoms, then FIXED as padding."""
        columns, done = [self.find(symbols)], 0
        while done < len(columns):
            column = columns[done]
            product = self.left[column] != 0
            if not product.any():
                done += 1
                continue
            left = np.where(product, self.find(self.left[column]), column)
            columns[done : done + 1] = [left, np.where(product, self.find(self.right[column]), FIXED)]
        matrix = np.stack(columns, 1)
        matrix[self.why[matrix] != 0] = FIXED
        return _compact(matrix)

    def product(self, left: Label, right: Label) -> Label:
        """Return symbols that go with `left` or with `right`, element by element."""
        left, right = self.find(left), self.find(right)
        result = np.where(self._stays(left), right, left)
        both = ~self._stays(left) & ~self._stays(right) & (left != right)
        if both.any():
            new = self.fresh(int(both.sum()))
            self.left[new], self.right[new] = left[both], right[both]
            result[both] = new
        return result

    def _stays(self, roots: Label) -> Mask:
        stays: Mask = self.why[roots] != 0
        return stays

    def freeze(self, symbols: Label, reason: str) -> None:
        """Let the positions of these symbols stay, for a reason that the user can read."""
        if len(symbols) and symbols.any():
            self._freeze(self.leaves(symbols), self._number(reason))

    def _number(self, reason: str) -> int:
        if self.reasons[-1] != reason:
            self.reasons.append(reason)
        return len(self.reasons) - 1

    def _freeze(self, atoms: Label, number: int | Label) -> None:
        numbers = np.broadcast_to(np.asarray(number), atoms.shape)
        free = self.why[atoms] == 0  # the first reason holds; that of FIXED stays
        self.why[atoms[free]] = numbers[free]

    def reason(self, symbol: int) -> str:
        """Return why a frozen symbol is frozen; of a product, the reason of its first factor."""
        root = int(self.find(np.array([symbol]))[0])
        while self.why[root] == 0 and self.left[root]:
            root = int(self.find(self.left[[root]])[0])
        return self.reasons[int(self.why[root])]

    def unify(self, first: Label, second: Label) -> None:
        """Tie two labels position by position. Where two products do not match, what differs is frozen.

        Labels of different lengths are both frozen.
        """
        if len(first) != len(second):
            reason = f"it is tied to a dimension of another size ({len(first)} and {len(second)})"
            self.freeze(first, reason)
            self.freeze(second, reason)
            return
        waiting = [(first, second)]
        while waiting:
            a, b = (self.find(label) for label in waiting.pop())
            differ = a != b
            if differ.any():
                waiting += self._relate(a[differ], b[differ])

    def _relate(self, a: Label, b: Label) -> list[tuple[Label, Label]]:
        """Tie different roots of one kind; returns the pairs that are left to tie, since each tie may change others."""
        left, right = _same_width(self.leaves(a), self.leaves(b))
        many_left, many_right = (left != FIXED).sum(1), (right != FIXED).sum(1)
        stays = (many_left == 0) | (many_right == 0)
        if stays.any():
            roots = np.where(many_left == 0, a, b)[stays]
            self._freeze(np.concatenate([left, right], 1)[stays], self._why_stays(roots)[:, None])
            return _pairs(a[~stays], b[~stays])
        single = (many_left == 1) & (many_right == 1)
        if single.any():
            self._hook(left[single, 0], right[single, 0])
            return _pairs(a[~single], b[~single])
        bound = many_left == 1
        if bound.any():
            return [*self._bind(left[bound, 0], b[bound], right[bound]), *_pairs(a[~bound], b[~bound])]
        bound = many_right == 1
        if bound.any():
            return [*self._bind(right[bound, 0], a[bound], left[bound]), *_pairs(a[~bound], b[~bound])]
        return self._match(left, right)

    def _why_stays(self, roots: Label) -> Label:
        """Return the numbers of the reasons of frozen roots; a frozen product has that of a factor."""
        while True:
            product = (self.why[roots] == 0) & (self.left[roots] != 0)
            if not product.any():
                return np.maximum(self.why[roots], 1)
            roots = np.where(product, self.find(self.left[roots]), roots)

    def _hook(self, a: Label, b: Label) -> None:
        """Make free roots the same."""
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            self.parent[high] = low  # of several, one is kept; the others come next round

    def _bind(self, atoms: Label, products: Label, factors: Label) -> list[tuple[Label, Label]]:
        """Let atoms stand for products; returns what could not be bound at once. A product never contains itself."""
        if not len(atoms):
            return []
        _, first = np.unique(atoms, return_index=True)
        once = np.zeros(len(atoms), bool)
        once[first] = True
        inside = np.isin(atoms, factors)
        safe = once & ~inside
        self.parent[atoms[safe]] = products[safe]
        if inside.any() and not safe.any():
            return [*self._bind_one(atoms, products, factors), *_pairs(atoms[1:], products[1:])]
        return _pairs(atoms[~safe], products[~safe])

    def _bind_one(self, atoms: Label, products: Label, factors: Label) -> list[tuple[Label, Label]]:
        atom, own = atoms[0], factors[0]
        if atom in own:  # {x} = {x, k} holds if k stays
            self._freeze(own[own != atom], self._number("it is tied to a product with itself"))
        else:
            self.parent[atom] = products[0]
        return []

    def _match(self, left: Label, right: Label) -> list[tuple[Label, Label]]:
        """Tie products factor by factor, in order."""
        equal = left[:, :, None] == right[:, None, :]
        equal &= (left != FIXED)[:, :, None]
        elsewhere = (equal & ~np.eye(left.shape[1], dtype=bool)).any((1, 2))
        plain = ((left != FIXED) == (right != FIXED)).all(1) & ~elsewhere
        rest = _pairs(left[plain].ravel(), right[plain].ravel())
        for row in np.unique(np.concatenate([left[~plain], right[~plain]], 1), axis=0):
            rest += self._match_one(row[: left.shape[1]], row[left.shape[1] :])
        return rest

    def _match_one(self, left: Label, right: Label) -> list[tuple[Label, Label]]:
        first = np.array([atom for atom in left if atom and atom not in right], np.int64)
        second = np.array([atom for atom in right if atom and atom not in left], np.int64)
        if len(first) == len(second):
            return _pairs(first, second)
        if min(len(first), len(second)) == 1:
            return [(self.product_of(first), self.product_of(second))]
        for atoms in (first, second):
            self._freeze(atoms, self._number("two reshapes divide it differently"))
        return []

    def product_of(self, factors: Label) -> Label:
        """Return one symbol, as a label of length 1, that is the product of all the given ones."""
        result = factors[:1] if len(factors) else fixed(1)
        for factor in factors[1:]:
            result = self.product(result, np.array([factor]))
        return result


def _pairs(a: Label, b: Label) -> list[tuple[Label, Label]]:
    return [(a, b)] if len(a) else []


def _same_width(left: Label, right: Label) -> tuple[Label, Label]:
    width = max(left.shape[1], right.shape[1])
    return widen(left, width), widen(right, width)


def widen(matrix: Label, width: int) -> Label:
    """Pad a matrix of atoms to more columns."""
    if matrix.shape[1] == width:
        return matrix
    result = np.zeros((len(matrix), width), np.int64)
    result[:, : matrix.shape[1]] = matrix
    return result


def _compact(matrix: Label) -> Label:
    """Keep each atom of a row once, in order, and move the padding to the end."""
    for column in range(1, matrix.shape[1]):
        again = (matrix[:, :column] == matrix[:, column : column + 1]).any(1)
        matrix[again, column] = FIXED
    if matrix.shape[1] == 1:
        return matrix
    order = np.argsort(matrix == FIXED, axis=1, kind="stable")
    matrix = np.take_along_axis(matrix, order, 1)
    used: Any = (matrix != FIXED).any(0)
    return matrix[:, : max(1, int(used.sum()))]
