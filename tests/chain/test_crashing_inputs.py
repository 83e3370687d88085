"""Inputs that ended processes, recognised when they come again."""

from __future__ import annotations

import numpy as np
import pytest

from edgeserve.chain.crashing_inputs import LethalInputs
from edgeserve.tensors import Tensors

GPU, CPU = 0, 1


def inputs(value: float, size: int = 1000) -> Tensors:
    return {"x": np.full(size, value, np.float32)}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_once_is_an_accident_twice_is_none() -> None:
    known = LethalInputs()
    assert known.struck(GPU, 1, [inputs(1)]) == {}
    assert not known.are(GPU, inputs(1))
    assert known.struck(GPU, 2, [inputs(1)]) == {GPU: 2}
    assert known.are(GPU, inputs(1))
    assert not known.are(CPU, inputs(1))  # another device may answer them
    assert not known.are(GPU, inputs(2))


def test_equal_requests_that_were_in_one_process_count_once() -> None:
    known = LethalInputs()
    known.struck(GPU, 1, [inputs(1), inputs(1)])
    known.struck(GPU, 1, [inputs(1)])
    assert not known.are(GPU, inputs(1))


def test_two_candidates_processes_are_enough_everywhere() -> None:
    known = LethalInputs()
    known.struck(GPU, 1, [inputs(1)])
    assert known.struck(CPU, 2, [inputs(1)]) == {GPU: 1, CPU: 1}
    assert [known.are(link, inputs(1)) for link in (GPU, CPU, 2)] == [True] * 3


def test_what_was_answered_meanwhile_did_not_end_it() -> None:
    known = LethalInputs()
    bystander, poison = inputs(1), inputs(2)
    known.struck(GPU, 1, [bystander, poison])
    known.answered(GPU, [bystander])
    known.struck(GPU, 2, [bystander, poison])
    assert (known.are(GPU, bystander), known.are(GPU, poison)) == (False, True)
    known.answered(CPU, [poison])  # elsewhere: that tells nothing of the GPU
    assert known.are(GPU, poison)


def test_all_is_forgotten_after_an_hour_and_costs_nothing_then() -> None:
    clock = Clock()
    known = LethalInputs(clock)
    for process in (1, 2):
        known.struck(GPU, process, [inputs(1)])
    clock.now = 3599.0
    assert known.are(GPU, inputs(1))
    clock.now = 3601.0
    assert not known.are(GPU, inputs(1))
    assert not known.any


def test_few_are_remembered() -> None:
    known = LethalInputs()
    for value in range(300):
        for process in (1, 2):
            known.struck(GPU, process, [inputs(value)])
    assert [known.are(GPU, inputs(value)) for value in (0, 299)] == [False, True]


@pytest.mark.parametrize(
    "one",
    [
        {"x": np.array([b"a", b"b"], object)},
        {"x": np.zeros(0, np.float32)},
        {"x": np.array(3, np.int64)},
        {"x": np.arange(24).reshape(2, 3, 4)[:, ::2]},
    ],
)
def test_every_kind_of_tensor_is_recognised(one: Tensors) -> None:
    known = LethalInputs()
    for process in (1, 2):
        known.struck(GPU, process, [one])
    assert known.are(GPU, {"x": one["x"].copy()})
    other = np.append(one["x"].reshape(-1), one["x"].reshape(-1)[:1])
    if other.size != one["x"].size:
        assert not known.are(GPU, {"x": other})
