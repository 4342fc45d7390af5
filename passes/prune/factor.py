"""Reshapes of a label: two dimensions become one, and one becomes two.

Merging is simple: position (i, j) goes with row i or column j. Splitting asks for rows and columns that explain every
position. What all positions of a row have in common is the row's, what a column has in common is the column's; what is
left over becomes new rows and columns where it is free, and is tied across the shorter side where it is not.
"""

from __future__ import annotations

import numpy as np

from fxopt.passes.prune.symbols import FIXED, Label, Mask, Symbols, fixed


def merge(symbols: Symbols, outer: Label, inner: Label) -> Label:
    """Return the label of one dimension made of two, row by row."""
    return symbols.product(np.repeat(outer, len(inner)), np.tile(inner, len(outer)))


def merge_all(symbols: Symbols, labels: list[Label]) -> Label:
    """Return the label of one dimension made of any number of them."""
    result = fixed(1)
    for label in reversed(labels):
        result = merge(symbols, label, result) if len(result) > 1 or result.any() else label
    return result


def split_all(symbols: Symbols, label: Label, sizes: list[int]) -> list[Label]:
    """Return the labels of the dimensions of these sizes that a dimension is divided into."""
    result = []
    for size in sizes[:-1]:
        rows, label = split(symbols, label, size, len(label) // max(size, 1))
        result.append(rows)
    return [*result, label] if sizes else []


def split(symbols: Symbols, label: Label, rows: int, columns: int) -> tuple[Label, Label]:
    """Return the labels of rows and columns of a dimension that is divided into `rows` x `columns`."""
    if rows == 1 or not label.any():
        return fixed(rows), label.copy() if rows == 1 else fixed(columns)
    if columns == 1:
        return label, fixed(1)
    atoms = symbols.leaves(label).reshape(rows, columns, -1)
    of_row, of_column = atoms[:, 0, :].copy(), atoms[0, :, :].copy()
    of_row[~_everywhere(of_row[:, None, :], atoms).all(1)] = FIXED
    of_column[~_everywhere(of_column[None, :, :], atoms).all(0)] = FIXED
    known = np.concatenate(
        [np.broadcast_to(of_row[:, None], atoms.shape), np.broadcast_to(of_column[None], atoms.shape)], 2
    )
    rest = np.where(_everywhere(atoms, known), FIXED, atoms)
    more_rows, more_columns = _divide(symbols, rest)
    return (
        symbols.product(_product(symbols, of_row), more_rows),
        symbols.product(_product(symbols, of_column), more_columns),
    )


def _everywhere(atoms: Label, places: Label) -> Mask:
    """Say which atoms are among those of each place, `[..., atoms]` (padding counts as there)."""
    found: Mask = (atoms[..., :, None] == places[..., None, :]).any(-1)
    found |= np.broadcast_to(atoms, found.shape) == FIXED
    return found


def _product(symbols: Symbols, atoms: Label) -> Label:
    result = atoms[:, 0]
    for column in range(1, atoms.shape[1]):
        result = symbols.product(result, atoms[:, column])
    return result


def _divide(symbols: Symbols, rest: Label) -> tuple[Label, Label]:
    """Explain what neither rows nor columns share, `[rows, columns, atoms]`; returns what rows and columns gain."""
    rows, columns = rest.shape[:2]
    many = (rest != FIXED).sum(2)
    if not many.any():
        return fixed(rows), fixed(columns)
    if (many == 1).all():
        new_rows, new_columns = symbols.fresh(rows), symbols.fresh(columns)
        symbols.unify(rest.max(2).ravel(), merge(symbols, new_rows, new_columns))
        return new_rows, new_columns
    whole = _product(symbols, rest.reshape(rows * columns, -1)).reshape(rows, columns)
    if columns >= rows:
        symbols.unify(np.broadcast_to(whole[0], whole.shape).ravel(), whole.ravel())
        return fixed(rows), whole[0]
    symbols.unify(np.broadcast_to(whole[:, :1], whole.shape).ravel(), whole.ravel())
    return whole[:, 0], fixed(columns)
