"""`convert`: read the source, plan, build, prove, choose, write. One call, one bundle, or nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from edgeserve.bundle.labels import names_in
from edgeserve.bundle.writing import bundle_writer, check_destination
from edgeserve.conversion.answering import Decided, OutputFacts, decide
from edgeserve.conversion.batching import by_graph
from edgeserve.conversion.bounds import Bounds
from edgeserve.conversion.demands import check_source, enforce, unmet_wishes
from edgeserve.conversion.job import Job
from edgeserve.conversion.options import Options, check_options
from edgeserve.conversion.report import Conversion, fp16_remarks, report
from edgeserve.conversion.search.builder import Builder
from edgeserve.conversion.search.choose import (
    Decision,
    choose,
    is_here,
    optional_entries,
    ordered_chain,
    without_worse_than_source,
)
from edgeserve.conversion.search.confirm import confirmed
from edgeserve.conversion.search.restore import explain
from edgeserve.conversion.search.search import Found, Search
from edgeserve.conversion.search.timing import threads_served
from edgeserve.conversion.sources.first_run import LEVEL_OPTION, first_run
from edgeserve.conversion.sources.model import SourceModel
from edgeserve.conversion.sources.native import with_own_runtime
from edgeserve.conversion.sources.reading import open_source, read_source
from edgeserve.conversion.sources.reference import Reference
from edgeserve.conversion.writing import write_bundle
from edgeserve.errors import EdgeServeError
from edgeserve.evaluate import Samples
from edgeserve.progress import Say, silent
from edgeserve.quantize import LayerError
from edgeserve.runtimes import Session
from edgeserve.runtimes.detect import resolve_target
from edgeserve.tensors import Interface

# Answers of the source that show what its outputs are, and how long they may take.
_LOOKED_AT: Final = 8
_LOOK_S: Final = 2.0


def convert(
    source: Path, destination: Path, options: Options | None = None, say: Say | None = None
) -> Conversion:
    """Turn a model into a bundle at `destination`.

    `say(what, share)` is called with what is being done. Raises SourceError, UnsupportedModel, DataError,
    TargetError, OutputExists, WriteFailed; CheckFailed with `strict` when a variant was rejected.
    On any error the destination is as it was.
    """
    options, say = options or Options(), say or silent
    check_options(options)
    check_destination(destination, force=options.force)
    with bundle_writer(destination, force=options.force) as writer:
        with _prepared(source, options, writer.work, say) as (job, reference):
            builder = Builder(job, root=writer.root, work=writer.work, say=say)
            search = Search(job, builder, reference, say)
            found = search.run()  # plans, converts, quantizes, proves
        say("checking what was chosen", None)
        decisions = _decided(job, search, found)
        chain = ordered_chain(decisions, job.target)
        enforce(job, decisions, chain)
        unmet = unmet_wishes(job, decisions, found.recipes)
        layers, unranked = _ranked_layers(job, builder, found, writer.work, say)
        remarks = (*fp16_remarks(builder, chain), *unmet, *unranked)
        say("writing the bundle", None)
        manifest = write_bundle(writer, job, builder, found, decisions, chain)
    return report(destination, job, manifest, found, decisions, remarks, layers)


@contextlib.contextmanager
def _prepared(
    path: Path, options: Options, work: Path, say: Say
) -> Iterator[tuple[Job, Reference]]:
    """What to work on, and the source's open session, closed when the block ends."""
    say("reading the source", None)
    target = resolve_target(options.target)
    model = read_source(path, options, work, say)
    if options.labels is None and model.labels is not None:
        options = msgspec.structs.replace(options, labels=str(model.labels))
    check_source(options, model)

    def open_at(level: str | None, threads: int = 0) -> Session:
        return open_source(model, threads, {} if level is None else {LEVEL_OPTION: level})

    first = first_run(model, options, open_at)
    with Reference(
        first.reference, model.source.size_bytes, lambda threads: open_at(first.level, threads)
    ) as reference:
        threads = threads_served(reference, first.data.proof[0])
        reference.limit_threads(threads)
        interface, batching = by_graph(model)
        answering = _answering(model, options, interface, first.data.proof, reference)
        target = first.target(with_own_runtime(target, model))
        # A source that is quantized has no floats to be faster than.
        speed_counts = is_here(target) and model.precision in ("fp32", "fp16")
        bounds = Bounds.of(options, model.precision, speed_counts=speed_counts)
        yield (
            Job(
                options, model, target, first.data, interface, batching, bounds, threads, answering
            ),
            reference,
        )


def _answering(
    model: SourceModel,
    options: Options,
    interface: Interface,
    samples: Samples,
    reference: Reference,
) -> Decided:
    """How outputs become an answer, by what the source answers to a few samples."""
    end = time.monotonic() + _LOOK_S
    inputs, answers = [], []
    for index in range(min(_LOOKED_AT, len(samples))):
        inputs.append(samples[index])
        answers.append(reference.run(inputs[-1]))
        if time.monotonic() > end:
            break
    labels = None if options.labels is None else names_in(Path(options.labels).read_text("utf-8"))
    facts = OutputFacts(
        interface,
        model.kinds,
        answers,
        inputs,
        labels=labels,
        labelled=options.evaluate is not None,
        has_graph=model.proto is not None,
        scales=model.scales,
    )
    decided = decide(facts, options.task, options.postprocess)
    remarks = []
    if labels is not None and options.labels == str(model.labels):
        remarks.append(
            f"class names come from the model's own file: {len(labels)} (--labels overrides them)"
        )
    image = options.preprocess
    if decided.kind in ("detection", "segmentation") and image and image.resize == "crop":
        remarks.append(
            "the edges of photographs are cut off: --resize letterbox or stretch keeps them (use what the model was "
            "trained with)"
        )
    return msgspec.structs.replace(decided, remarks=(*remarks, *decided.remarks))


def _decided(job: Job, search: Search, found: Found) -> list[Decision]:
    """What serves each entry of the chain, opened once more to reproduce the golden samples."""
    asked = None if job.options.precision == "auto" else job.options.precision
    optional = optional_entries(job.target)
    decisions = confirmed(
        job,
        found,
        lambda trials: choose(trials, job.bounds, asked=asked, optional=optional),
        search.contender,
    )
    if job.model.is_quantized and is_here(job.target):
        devices = {i: e.device for i, e in enumerate(job.target.chain)}
        return without_worse_than_source(decisions, job.model.source.size_bytes, devices)
    return decisions


def _ranked_layers(
    job: Job, builder: Builder, found: Found, work: Path, say: Say
) -> tuple[tuple[LayerError, ...], tuple[str, ...]]:
    """The layers by the noise of int8 in them, where the search or the user wanted that; else why not."""
    layers = next((r.layers for r in found.restorations if r.layers), ())
    if layers or not job.options.explain:
        return layers, ()
    say("ranking layers", None)
    problem: object = "static int8 quantizes none"
    try:
        layers = explain(builder, job.data, work / "explain")
    except EdgeServeError as error:
        problem = error
    return layers, () if layers else (f"layers could not be ranked: {problem}",)
