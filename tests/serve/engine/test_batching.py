"""The queue and the turns by themselves: batches are formed by the rules, nobody is lost, nobody starves."""

from __future__ import annotations

import queue
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.serve.engine import BatchPolicy, Pending, RequestQueue, Turns
from edgeserve.tensors import join_batches, split_batches
from tests.waiting import wait_for


def request(rows: int, level: int = 0, shape: int = 4, arrived: float | None = None) -> Pending:
    now = time.perf_counter() if arrived is None else arrived
    pending = Pending({"x": np.full((rows, shape), rows)}, rows, lambda result: None, now)
    pending.signature, pending.level = shape, level
    return pending


def batches_of(queue: RequestQueue) -> list[list[Pending]]:
    """Everything that waits, batch by batch."""
    batches = []
    while batch := queue.take(1):
        batches.append(batch)
    return batches


def sizes(queue: RequestQueue) -> list[list[int]]:
    return [[r.rows for r in batch] for batch in batches_of(queue)]


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 2), st.sampled_from([4, 5]))),
    st.sampled_from([(), (4,), (2, 6)]),
)
def test_every_request_is_in_one_batch_and_batches_fit(
    wanted: list[tuple[int, int, int]], preferred: tuple[int, ...]
) -> None:
    queue = RequestQueue(BatchPolicy(8, preferred), levels=3)
    requests = [request(*w) for w in wanted]
    for r in requests:
        queue.put(r)
    batches = batches_of(queue)
    flat = [r for batch in batches for r in batch]
    assert sorted(map(id, flat)) == sorted(map(id, requests))
    for batch in batches:
        assert len({r.signature for r in batch}) == 1
        assert len(batch) == 1 or sum(r.rows for r in batch) <= 8
        assert [r.level for r in batch] == sorted(r.level for r in batch)
    firsts = [batch[0].level for batch in batches]
    assert firsts == sorted(firsts)
    # In one level and shape, requests keep their order.
    order = {id(r): i for i, r in enumerate(requests)}
    for key in {(r.level, r.signature) for r in requests}:
        own = [order[id(r)] for r in flat if (r.level, r.signature) == key]
        assert all(a < b for a, b in pairwise(own))


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 2), st.just(4))),
    st.data(),
)
def test_the_overdue_wait_behind_their_level_and_before_the_next(
    wanted: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    queue = RequestQueue(BatchPolicy(8), levels=3, delays=True)
    requests = [request(*w) for w in wanted]
    late = data.draw(st.sets(st.sampled_from(range(len(wanted))) if wanted else st.nothing()))
    for i, r in enumerate(requests):
        r.overdue = i in late and i % 2 == 0  # before it came here
        queue.put(r)
    for i in sorted(late):
        if not requests[i].overdue:
            requests[i].overdue = True
            queue.delay(requests[i])
    flat = [r for batch in batches_of(queue) for r in batch]
    assert sorted(map(id, flat)) == sorted(map(id, requests))
    lines = [(r.level, r.overdue) for r in flat]
    assert lines == sorted(lines)
    for r in flat:
        queue.delay(r)  # it has started
    assert not batches_of(queue)


@pytest.mark.parametrize(
    ("preferred", "rows", "wanted"),
    [
        ((), [1, 1, 1], [[1, 1, 1]]),
        ((), [5, 5, 3], [[5], [5, 3]]),
        ((2, 4), [1] * 7, [[1, 1, 1, 1], [1, 1], [1]]),
        ((4,), [3, 3], [[3], [3]]),
        ((2,), [7, 1, 1], [[7], [1, 1]]),
    ],
)
def test_preferred_sizes_are_filled(
    preferred: tuple[int, ...], rows: list[int], wanted: list[list[int]]
) -> None:
    queue = RequestQueue(BatchPolicy(8, preferred))
    for r in rows:
        queue.put(request(r))
    assert sizes(queue) == wanted


def test_where_only_the_preferred_size_pays_others_run_alone() -> None:
    queue = RequestQueue(BatchPolicy(8, (4,), small=1))
    for _ in range(7):
        queue.put(request(1))
    assert sizes(queue) == [[1, 1, 1, 1], [1], [1], [1]]


def test_settled_requests_are_in_no_batch_and_make_no_room() -> None:
    queue = RequestQueue(BatchPolicy(4))
    requests = [request(2) for _ in range(4)]
    for r in requests:
        queue.put(r)
    requests[0].settled = requests[2].settled = True
    assert queue.forget(requests[0])
    assert queue.forget(requests[2])
    assert [[id(r) for r in b] for b in batches_of(queue)] == [[id(requests[1]), id(requests[3])]]
    assert not queue.forget(requests[1])  # it has started


def test_other_shapes_are_looked_past_and_keep_their_place() -> None:
    queue = RequestQueue(BatchPolicy(8))
    for shape in (4, 5, 4, 5, 4):
        queue.put(request(1, shape=shape))
    assert [[r.signature for r in b] for b in batches_of(queue)] == [[4, 4, 4], [5, 5]]


@pytest.mark.parametrize(("company", "waits"), [(0, True), (3, False)])
def test_a_delay_ends_when_the_batch_is_full_or_the_oldest_has_waited(
    company: int, waits: bool
) -> None:
    queue = RequestQueue(BatchPolicy(4, (), delay_s=0.2))
    began = time.perf_counter()
    for _ in range(1 + company):
        queue.put(request(1, arrived=began))
    tokens = queue.wait()
    took = time.perf_counter() - began
    assert (took >= 0.2) is waits
    assert len(queue.take(tokens)) == 1 + company


def test_company_that_comes_while_waiting_is_taken_along() -> None:
    queue = RequestQueue(BatchPolicy(4, (), delay_s=1.0))
    first = request(1)
    queue.put(first)
    taken: list[Pending] = []
    worker = threading.Thread(target=lambda: taken.extend(queue.take(queue.wait())))
    worker.start()
    for shape in (4, 9, 4, 4):
        queue.put(request(1, shape=shape))
    worker.join(10)
    assert len(taken) >= 3
    # The one of another shape still has a token to wake somebody.
    left = queue.take(queue.wait())
    assert [r.signature for r in left] == [9]


def test_a_closed_queue_lets_everybody_go() -> None:
    queue = RequestQueue(BatchPolicy(4, (), delay_s=5.0))
    workers = [threading.Thread(target=queue.wait) for _ in range(3)]
    for worker in workers:
        worker.start()
    queue.close(3)
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.sampled_from(["<f4", "<i8", "|b1", "<f2"]),
)
def test_splitting_undoes_joining(rows: list[int], kind: str) -> None:
    generator = np.random.default_rng(len(rows))
    parts = [{"x": generator.integers(0, 2, (n, 3)).astype(kind)} for n in rows]
    back = split_batches(join_batches(parts), rows)
    for before, after in zip(parts, back, strict=True):
        np.testing.assert_array_equal(before["x"], after["x"])
        assert before["x"].dtype == after["x"].dtype


def test_turns_let_a_quick_model_run_beside_a_busy_one() -> None:
    turns = Turns(2)
    slow, quick = turns.line(), turns.line()
    slow.enter()
    slow.enter()
    third = threading.Thread(target=slow.enter)
    third.start()
    quick.enter()  # at once, although both cores are taken
    assert (slow.running, quick.running, turns.running) == (2, 1, 3)
    quick.leave(0.001)
    third.join(0.1)
    assert third.is_alive()  # a second and third of the slow one wait for a core
    slow.leave(1.0)
    third.join(10)
    assert not third.is_alive()
    assert (slow.running, turns.running) == (2, 2)


def test_turns_are_shared_by_weight() -> None:
    """Three models on one core: each gets time by its weight, whatever its batches take."""
    turns = Turns(1)
    turns.most = 1  # one at a time, whoever waits
    lines = {"one": turns.line(1), "long": turns.line(1), "double": turns.line(2)}
    takes = {"one": 1.0, "long": 5.0, "double": 1.0}
    had = dict.fromkeys(lines, 0.0)
    granted: queue.Queue[str] = queue.Queue()
    ran: queue.Queue[None] = queue.Queue()
    ending = threading.Event()

    def work(name: str) -> None:
        while True:
            lines[name].enter()
            if ending.is_set():
                lines[name].leave(0.0)
                return
            granted.put(name)
            ran.get()
            lines[name].leave(takes[name])

    workers = [
        threading.Thread(target=work, args=(n,), daemon=True) for n in lines for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    while sum(had.values()) < 400:
        name = granted.get(timeout=60)
        had[name] += takes[name]
        # Of each model somebody waits when a turn ends.
        wait_for(lambda: all(line.gates for line in lines.values()))
        ran.put(None)
    ending.set()
    for _ in workers:
        ran.put(None)
    for worker in workers:
        worker.join(60)
    assert turns.running == 0
    assert had["long"] == pytest.approx(had["one"], abs=6)
    assert had["double"] == pytest.approx(2 * had["one"], abs=6)
