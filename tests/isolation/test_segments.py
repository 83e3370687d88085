"""Tensors in shared memory are those that were put there."""

from __future__ import annotations

import gc
import os
from collections import deque

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeserve.isolation.segments import (
    Segment,
    attach,
    copies,
    create,
    lay_out,
    lend,
    views,
    write,
)
from edgeserve.tensors import DTYPES, Tensors

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
NUMBERS = st.sampled_from([d for d in DTYPES.values() if d.kind != "O"]).flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES)
)
TEXTS = hnp.arrays(np.object_, SHAPES, elements=st.one_of(st.text(), st.binary()))
TENSORS = st.dictionaries(st.text(max_size=5), st.one_of(NUMBERS, TEXTS), max_size=4)


def same(a: Tensors, b: Tensors) -> bool:
    return list(a) == list(b) and all(
        a[n].dtype == b[n].dtype
        and a[n].shape == b[n].shape
        and (a[n].tobytes() == b[n].tobytes() if a[n].dtype.kind != "O" else (a[n] == b[n]).all())
        for n in a
    )


def segment_of(tensors: Tensors) -> tuple[Segment, int]:
    layout = lay_out(tensors)
    segment, descriptor = create(1, max(1, layout.size))
    write(segment, layout)
    return segment, descriptor


@given(TENSORS)
def test_what_is_written_is_read_on_the_other_side(tensors: Tensors) -> None:
    segment, descriptor = segment_of(tensors)
    places = lay_out(tensors).places
    other = attach(1, segment.size, descriptor)  # closes the descriptor
    assert same(tensors, views(other.memory, places))
    assert same(tensors, copies(segment, places))
    assert same(tensors, lend(segment, places, deque()))


def test_arrays_in_any_memory_order_arrive() -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    tensors = {"t": array.T, "r": array[::-1, ::2], "be": array.astype(">f4")}
    segment, descriptor = segment_of(tensors)
    os.close(descriptor)
    got = copies(segment, lay_out(tensors).places)
    for name, wanted in tensors.items():
        np.testing.assert_array_equal(got[name], wanted)


def test_a_lent_segment_comes_back_with_the_last_array_on_it() -> None:
    tensors: Tensors = {"a": np.arange(8.0), "b": np.arange(4)}
    segment, descriptor = segment_of(tensors)
    os.close(descriptor)
    pool: deque[Segment] = deque()
    lent = lend(segment, lay_out(tensors).places, pool)
    row = lent["a"][2:3].reshape(1, 1)
    del lent
    gc.collect()
    assert not pool
    assert row[0, 0] == 2.0
    del row
    gc.collect()
    assert list(pool) == [segment]
