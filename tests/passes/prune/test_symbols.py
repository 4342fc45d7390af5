"""Symbols against the definition: a symbol is a set of atoms, and a position goes if one of them does."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fxopt.passes.prune.factor import merge, merge_all, split, split_all
from fxopt.passes.prune.symbols import FIXED, Label, Symbols, fixed


def sets(symbols: Symbols, label: Label) -> list[frozenset[int]]:
    return [frozenset(int(atom) for atom in row if atom) for row in symbols.leaves(label)]


def test_united_symbols_are_one() -> None:
    symbols = Symbols()
    a, b, c = symbols.fresh(3), symbols.fresh(3), symbols.fresh(3)
    symbols.unify(a, b)
    symbols.unify(b[::-1].copy(), c)
    assert sets(symbols, a) == sets(symbols, b) == sets(symbols, c)[::-1]


def test_a_frozen_symbol_freezes_its_class_and_says_why() -> None:
    symbols = Symbols()
    a, b = symbols.fresh(2), symbols.fresh(2)
    symbols.freeze(a[:1], "reason")
    symbols.unify(a, b)
    assert sets(symbols, b) == [frozenset(), sets(symbols, a)[1]]
    assert symbols.reason(int(b[0])) == "reason"
    symbols.freeze(b[1:], "another")
    assert symbols.reason(int(a[1])) == "another"


def test_what_is_tied_to_a_fixed_position_stays() -> None:
    symbols = Symbols()
    a = symbols.fresh(2)
    symbols.unify(a, fixed(2))
    assert sets(symbols, a) == [frozenset()] * 2


def test_labels_of_different_sizes_stay() -> None:
    symbols = Symbols()
    a, b = symbols.fresh(2), symbols.fresh(3)
    symbols.unify(a, b)
    assert sets(symbols, a) + sets(symbols, b) == [frozenset()] * 5
    assert "another size" in symbols.reason(int(a[0]))


def test_a_merged_dimension_is_split_into_what_it_was_made_of() -> None:
    symbols = Symbols()
    rows, columns = symbols.fresh(3), symbols.fresh(4)
    whole = merge(symbols, rows, columns)
    again = split(symbols, whole, 3, 4)
    assert sets(symbols, again[0]) == sets(symbols, rows)
    assert sets(symbols, again[1]) == sets(symbols, columns)


def test_three_dimensions_are_split_elsewhere() -> None:
    """[a, b, c] as [a, b c] and then [a b, c]: every factor is found again."""
    symbols = Symbols()
    a, b, c = symbols.fresh(2), symbols.fresh(3), symbols.fresh(4)
    whole = merge_all(symbols, [a, b, c])
    assert [sets(symbols, part) for part in split_all(symbols, whole, [2, 3, 4])] == [
        sets(symbols, part) for part in (a, b, c)
    ]
    outer, inner = split(symbols, whole, 6, 4)
    assert sets(symbols, outer) == sets(symbols, merge(symbols, a, b))
    assert sets(symbols, inner) == sets(symbols, c)


def test_free_positions_become_rows_and_columns() -> None:
    symbols = Symbols()
    label = symbols.fresh(6)
    rows, columns = split(symbols, label, 2, 3)
    for (i, j), atoms in zip(itertools.product(range(2), range(3)), sets(symbols, label), strict=True):
        assert atoms == sets(symbols, rows)[i] | sets(symbols, columns)[j]
    assert len(set(sets(symbols, rows)) | set(sets(symbols, columns))) == 5


def test_a_product_with_itself_keeps_the_other_factor() -> None:
    symbols = Symbols()
    a, b = symbols.fresh(1), symbols.fresh(1)
    symbols.unify(a, symbols.product(a, b))
    assert sets(symbols, b) == [frozenset()]
    assert sets(symbols, a) != [frozenset()]


def test_products_that_bind_each_other_end() -> None:
    symbols = Symbols()
    a, b, c = symbols.fresh(1), symbols.fresh(1), symbols.fresh(1)
    symbols.unify(np.concatenate([a, b]), np.concatenate([symbols.product(b, c), symbols.product(a, c)]))
    assert sets(symbols, a) == sets(symbols, symbols.product(b, c))
    assert sets(symbols, b) == sets(symbols, symbols.product(a, c))


SIZE = 6


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["unify", "product", "split", "freeze", "permute"]),
            st.integers(0, 30),
            st.integers(0, 30),
            st.integers(0, 719),
        ),
        max_size=12,
    )
)
def test_every_relation_holds_at_the_end(steps: list[tuple[str, int, int, int]]) -> None:
    """Whatever is related in whatever order: the ties of all steps hold for the final sets."""
    symbols = Symbols()
    labels = [symbols.fresh(SIZE) for _ in range(4)]
    relations: list[tuple[Label, Label, Label]] = []  # each position of the first is the union of the other two
    for kind, first, second, order in steps:
        a, b = labels[first % len(labels)], labels[second % len(labels)]
        if kind == "unify":
            symbols.unify(a, b)
            relations.append((a, b, fixed(SIZE)))
        elif kind == "product":
            labels.append(symbols.product(a, b))
            relations.append((labels[-1], a, b))
        elif kind == "split":
            shape = (2, 3) if order % 2 else (3, 2)
            rows, columns = split(symbols, a, *shape)
            relations.append((a, np.repeat(rows, shape[1]), np.tile(columns, shape[0])))
            labels.append(np.concatenate([rows, columns, fixed(1)]))
        elif kind == "freeze":
            symbols.freeze(a[: order % 3], "chosen")
        else:
            labels.append(a[np.array(list(itertools.permutations(range(SIZE)))[order])])
    for whole, left, right in relations:
        parts = zip(sets(symbols, left), sets(symbols, right), strict=True)
        assert sets(symbols, whole) == [a | b for a, b in parts]
    assert sets(symbols, fixed(1)) == [frozenset()] and symbols.find(fixed(1))[0] == FIXED
