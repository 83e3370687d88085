"""The decision which variant serves: a table of cases."""

from __future__ import annotations

import msgspec
import pytest

from edgeserve.bundle import Accuracy, Fidelity, Kind, Measured, OutputFidelity, Precision
from edgeserve.conversion.bounds import Bounds, quality_problem
from edgeserve.conversion.search.choose import (
    BESIDE_SOURCE,
    Elsewhere,
    VariantTrial,
    choose,
)


def measured(
    latency: float = 1.0,
    *,
    speedup: float = 2.0,
    agreement: float | None = 0.99,
    sqnr: float = 60.0,
    cosine: float = 0.999,
    accuracy: tuple[float, float] | None = None,
    outputs: tuple[OutputFidelity, ...] | None = None,
) -> Measured:
    kind: Kind = "embedding" if agreement is None else "scores"
    if outputs is None:
        outputs = (OutputFidelity("y", kind, "y", sqnr, sqnr, agreement, cosine=cosine),)
    return Measured(
        runtime="onnxruntime",
        runtime_version="1",
        device="cpu",
        machine="test",
        fidelity=Fidelity(100, sqnr, cosine, 0.1, agreement, outputs),
        latency_ms=latency,
        speedup=speedup,
        inference_precision="int8",
        int8_compute_ops=1,
        compute_ops=1,
        accuracy=Accuracy(100, accuracy[1], accuracy[0], "d", "y") if accuracy else None,
    )


def trial(
    name: str, precision: Precision, found: Measured | None, entry: int = 0, high: float = 9.0
) -> VariantTrial:
    return VariantTrial(entry, name, precision, 1000, found, high if found else None)


def chosen(
    trials: list[VariantTrial], bounds: Bounds | None = None, *, asked: Precision | None = None
) -> list[str]:
    verdicts = choose(trials, bounds or Bounds(), asked=asked)
    return [v.trial.variant for v in verdicts if v.chosen]


def test_the_fastest_acceptable_variant_of_each_entry_wins() -> None:
    trials = [
        trial("a-int8", "int8", measured(1.0, speedup=4.0)),
        trial("a-fp32", "fp32", measured(3.0, speedup=1.3)),
        trial("b-int8", "int8", measured(4.0, speedup=1.1), entry=1),
        trial("b-fp32", "fp32", measured(2.0, speedup=2.0), entry=1),
    ]
    assert chosen(trials) == ["a-int8", "b-fp32"]


@pytest.mark.parametrize(
    ("found", "precision", "words"),
    [
        (measured(accuracy=(0.90, 0.88)), "int8", "accuracy drops 2.00 points"),
        (measured(agreement=0.90), "int8", "agrees with the source on 90.0 %"),
        (measured(agreement=None, cosine=0.5), "int8", "cosine to the source is 0.5,"),
        (measured(sqnr=12.0), "fp32", "too much from the source's"),
        (measured(accuracy=(0.90, 0.90), sqnr=12.0), "fp16", "too much from the source's"),
        (measured(accuracy=(0.90, 0.89), agreement=0.5), "int8", None),
        (measured(accuracy=(0.90, 0.93)), "int8", None),
        (measured(), "fp32", None),
    ],
)
def test_quality_is_judged_by_accuracy_first_then_fidelity(
    found: Measured, precision: Precision, words: str | None
) -> None:
    problem = quality_problem(found.fidelity, found.accuracy, precision, Bounds(max_drop=1.0))
    assert (problem is None) == (words is None)
    if words is not None and problem is not None:
        assert words in problem


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (OutputFidelity("y", "numbers", "y[:,2]", 9.9, cosine=1.0), "'y[:,2]': SQNR 9.9 dB against its spread"),
        (OutputFidelity("y", "numbers", "y", 10.0, agreement=0.2, cosine=0.5), None),
        (OutputFidelity("y", "numbers", "y", 9.0, centred=False), "too few samples to know its spread"),
        (OutputFidelity("y", "scores", "y", 2.9, agreement=1.0), "--min-sqnr is 3 dB"),
        (OutputFidelity("y", "scores", "y", 3.0, agreement=0.95), None),
        (OutputFidelity("y", "scores", "y", 9.0, agreement=0.99, overlap=0.5), "50.0 % match the source"),
        (OutputFidelity("y", "probabilities", "y", 9.0, agreement=1.0), "--min-sqnr is 10 dB"),
        (OutputFidelity("y", "embedding", "y", 9.0, cosine=1.0), "--min-sqnr is 10 dB"),
        (OutputFidelity("y", "embedding", "y", 30.0, cosine=0.98), "cosine to the source is 0.98"),
        (OutputFidelity("y", "ids", "y", agreement=0.94), "it equals the source on 94.0 %"),
        (OutputFidelity("y", "ids", "y", agreement=0.95), None),
        (OutputFidelity("y", "text", "y", agreement=0.5), "it equals the source on 50.0 %"),
        (OutputFidelity("y", "numbers", "y", 60.0, mismatched=6), "another shape than the source's on 6 of 100"),
        (OutputFidelity("y", "numbers", "y", 60.0, mismatched=5), None),
    ],
)  # fmt: skip
def test_each_kind_of_output_has_its_bounds(output: OutputFidelity, words: str | None) -> None:
    fine = OutputFidelity("x", "numbers", "x", 60.0)
    found = measured(outputs=(fine, output)).fidelity
    problem = quality_problem(found, None, "int8", Bounds())
    assert (problem is None) == (words is None)
    assert words is None or words in (problem or "")
    # Nothing is asked for: nothing is missed.
    assert quality_problem(found, None, "int8", Bounds(min_fidelity=0.0)) is None


def test_bounds_of_sqnr_go_by_output() -> None:
    outputs = (OutputFidelity("a", "numbers", "a", 15.0), OutputFidelity("b", "numbers", "b", 25.0))
    found = measured(outputs=outputs).fidelity
    assert quality_problem(found, None, "int8", Bounds(min_sqnr_of={"b": 25.0})) is None
    problem = quality_problem(found, None, "int8", Bounds(min_sqnr=15.0, min_sqnr_of={"b": 26.0}))
    assert (
        problem == "output 'b': SQNR 25.0 dB against its spread over samples, --min-sqnr is 26 dB"
    )


def test_accuracy_decides_for_its_output_alone() -> None:
    scores = OutputFidelity("y", "scores", "y", -5.0, agreement=0.5)
    boxes = OutputFidelity("boxes", "numbers", "boxes", 5.0)
    found = measured(accuracy=(0.90, 0.90), outputs=(scores,))
    assert quality_problem(found.fidelity, found.accuracy, "int8", Bounds()) is None
    found = measured(accuracy=(0.90, 0.90), outputs=(scores, boxes))
    problem = quality_problem(found.fidelity, found.accuracy, "int8", Bounds())
    assert problem is not None
    assert "'boxes'" in problem


def test_a_drop_of_exactly_the_limit_passes() -> None:
    found = measured(accuracy=(0.90, 0.89))
    assert quality_problem(found.fidelity, found.accuracy, "int8", Bounds(max_drop=1.0)) is None


def test_a_slower_int8_is_rejected_and_fp32_serves() -> None:
    trials = [
        trial("int8", "int8", measured(5.0, speedup=0.5), high=0.6),
        trial("fp32", "fp32", measured(2.5, speedup=1.0)),
    ]
    verdicts = choose(trials, Bounds(), asked="int8")
    assert [(v.chosen, v.failed) for v in verdicts] == [(False, True), (True, False)]
    assert verdicts[0].reason == "slower than fp32 on the same runtime (0.60x at best)"
    alone = msgspec.structs.replace(trials[0], beside=BESIDE_SOURCE)
    assert choose([alone], Bounds())[0].reason == "slower than the source (0.60x at best)"


def test_noise_is_no_proof_of_slowness() -> None:
    maybe = trial("int8", "int8", measured(5.0, speedup=0.98), high=1.03)
    assert chosen([maybe], asked="int8") == ["int8"]


def test_speed_on_another_cpu_does_not_count() -> None:
    trials = [
        trial("int8", "int8", measured(5.0, speedup=0.5), high=0.6),
        trial("fp32", "fp32", measured(2.5)),
    ]
    assert chosen(trials, Bounds(speed_counts=False)) == ["int8"]


def test_an_asked_for_precision_wins_over_a_faster_one() -> None:
    trials = [trial("fp16", "fp16", measured(3.0)), trial("fp32", "fp32", measured(2.0))]
    assert chosen(trials, asked="fp16") == ["fp16"]


def test_what_could_not_be_verified_here_is_chosen_and_says_so() -> None:
    unverified = VariantTrial(0, "npu-int8", "int8", unverified="no NPU")
    (verdict,) = choose([unverified], Bounds())
    assert verdict.chosen
    assert verdict.reason == (
        "not verified here: no NPU; no runtime here loads its file, so it comes last in the chain"
    )


def test_a_file_that_was_loaded_elsewhere_is_judged_by_what_it_gave_there() -> None:
    good, bad = measured(1.0).fidelity, measured(1.0, sqnr=5.0).fidelity
    trials = [
        VariantTrial(
            0, "good", "fp16", unverified="no GPU", elsewhere=Elsewhere("onnxruntime/cpu", good)
        ),
        VariantTrial(
            1, "bad", "fp16", unverified="no GPU", elsewhere=Elsewhere("onnxruntime/cpu", bad)
        ),
    ]
    first, second = choose(trials, Bounds())
    assert first.chosen
    assert "its file runs on onnxruntime/cpu" in first.reason
    assert not second.chosen
    assert second.failed
    assert second.reason.startswith(
        "on onnxruntime/cpu, its numbers differ too much from the source's"
    )


def test_what_could_not_be_built_is_not_a_broken_promise() -> None:
    (verdict,) = choose([VariantTrial(0, "x", "int8", problem="boom")], Bounds())
    assert (verdict.chosen, verdict.failed, verdict.reason) == (False, False, "boom")


def test_a_file_that_is_poor_on_the_cpu_is_not_trusted_on_an_npu() -> None:
    npu = VariantTrial(0, "int8", "int8", unverified="no NPU")
    fp16 = VariantTrial(0, "fp16", "fp16", unverified="no NPU")
    cpu = trial("int8", "int8", measured(agreement=0.5), entry=1)
    fp32 = trial("fp32", "fp32", measured(), entry=1)
    verdicts = choose([npu, fp16, cpu, fp32], Bounds())
    assert [v.trial.variant for v in verdicts if v.chosen] == ["fp16", "fp32"]
    assert verdicts[0].failed
    assert verdicts[0].reason.startswith("elsewhere output 'y': top-1 agrees")


def test_size_and_latency_bounds_leave_out_but_are_no_broken_promise() -> None:
    trials = [
        trial("big", "fp32", measured(1.0, speedup=5.0)),
        msgspec.structs.replace(trial("slow", "int8", measured(9.0, speedup=1.5)), size_bytes=10),
        msgspec.structs.replace(trial("fits", "int8", measured(2.0, speedup=2.0)), size_bytes=10),
    ]
    verdicts = choose(trials, Bounds(max_size=500, max_latency=5.0))
    assert [v.chosen for v in verdicts] == [False, False, True]
    assert "--max-size 500" in verdicts[0].reason
    assert "takes 9.000 ms" in verdicts[1].reason
    assert not any(v.failed for v in verdicts)


@pytest.mark.parametrize(("speedup", "kept"), [(2.0, False), (2.05, False), (2.2, True)])
def test_an_optional_runtime_is_kept_only_where_it_is_clearly_faster(
    speedup: float, kept: bool
) -> None:
    trials = [
        trial("needed", "int8", measured(2.0, speedup=2.0)),
        trial("optional", "int8", measured(2.0, speedup=speedup), entry=1),
    ]
    verdicts = choose(trials, Bounds(), optional={1: (0,)})
    assert [v.chosen for v in verdicts] == [True, kept]
    if not kept:
        assert verdicts[1].reason.startswith("not worth another runtime: 1.0")
        assert not verdicts[1].failed


def test_an_optional_runtime_serves_where_nothing_else_can() -> None:
    trials = [
        VariantTrial(0, "needed", "int8", problem="unsupported operator"),
        trial("optional", "int8", measured(), entry=1),
    ]
    assert [v.chosen for v in choose(trials, Bounds(), optional={1: (0,)})] == [False, True]


@pytest.mark.parametrize(
    ("other", "size", "wins", "reason"),
    [
        (measured(speedup=1.9), 1000, "a", "a is 1.05x faster"),
        (measured(speedup=1.99, sqnr=70.0), 1000, "b", "b is as fast and closer to the source"),
        (measured(speedup=1.99, sqnr=50.0), 1000, "a", "a is as fast and closer to the source"),
        (measured(speedup=1.99, sqnr=50.0), 700, "b", "b is as fast and smaller"),
    ],
)
def test_of_those_as_fast_the_smaller_or_closer_one_is_taken(
    other: Measured, size: int, wins: str, reason: str
) -> None:
    trials = [
        trial("a", "int8", measured(speedup=2.0)),
        msgspec.structs.replace(trial("b", "int8", other), size_bytes=size),
    ]
    verdicts = choose(trials, Bounds())
    assert [v.trial.variant for v in verdicts if v.chosen] == [wins]
    assert [v.reason for v in verdicts if not v.chosen] == [reason]


def test_what_was_asked_for_is_preferred_not_called_closer() -> None:
    trials = [
        trial("int8", "int8", measured(speedup=2.0, sqnr=30.0)),
        trial("fp32", "fp32", measured(speedup=2.0, sqnr=120.0)),
    ]
    verdicts = choose(trials, Bounds(), asked="int8")
    assert verdicts[1].reason == "int8 is preferred"
    assert choose(trials, Bounds())[0].reason == "fp32 is as fast and closer to the source"
