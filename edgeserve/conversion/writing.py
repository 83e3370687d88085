"""From verdicts to a bundle on disk: no decision is taken here."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgeserve.bundle import (
    Bundle,
    Candidate,
    FileEntry,
    Golden,
    Manifest,
    Rejected,
    Task,
    Variant,
)
from edgeserve.bundle.manifest import SCHEMA_VERSION
from edgeserve.bundle.writing import BundleWriter
from edgeserve.conversion.job import Job
from edgeserve.conversion.search.builder import Builder
from edgeserve.conversion.search.choose import Decision
from edgeserve.conversion.search.confirm import with_tolerances
from edgeserve.conversion.search.search import Found
from edgeserve.evaluate import class_scores
from edgeserve.names import name_of
from edgeserve.targets.schema import Target
from edgeserve.tensors import storable
from edgeserve.version import __version__


def write_bundle(
    writer: BundleWriter,
    job: Job,
    builder: Builder,
    found: Found,
    decisions: Sequence[Decision],
    chain: Sequence[Candidate],
) -> Manifest:
    """Write the variants of `chain`, the golden samples and the manifest; other variants are removed."""
    built, proof = found.built, found.proof
    kept = {c.variant for c in chain}
    for name, variant in built.items():
        if name not in kept:
            builder.discard(variant)
    np.savez_compressed(
        writer.root / "golden-inputs.npz", allow_pickle=False, **storable(proof.golden_inputs)
    )
    np.savez_compressed(
        writer.root / "golden-outputs.npz", allow_pickle=False, **storable(proof.golden_outputs)
    )
    labels = None
    if job.options.labels is not None:
        (writer.root / "labels.txt").write_bytes(Path(job.options.labels).read_bytes())
        labels = writer.entry("labels.txt")
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        name=job.options.name or name_of(job.model.path.stem),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        target=job.target.name,
        source=job.model.source,
        interface=job.interface,
        task=_task(job, labels),
        variants=tuple(
            with_tolerances(job, v, decisions, proof)
            for v in _sharing([v for n, v in built.items() if n in kept], writer.root)
        ),
        chain=tuple(chain),
        golden=Golden(
            writer.entry("golden-inputs.npz"),
            writer.entry("golden-outputs.npz"),
            len(next(iter(proof.golden_inputs.values()))),
        ),
        tools=_tools(),
        rejected=tuple(_rejected(d, job.target, built) for d in decisions if not d.chosen),
        reference_latency_ms=proof.reference_latency_ms,
        state=job.model.state,
        batching=job.batching,
        outputs=dict(job.model.kinds),
    )
    writer.write_manifest(manifest)
    Bundle.open(writer.root)  # what was written must read
    return manifest


def _sharing(variants: list[Variant], root: Path) -> list[Variant]:
    """The variants, those whose files are another's stored as that one's (bf16 runs the fp32 file)."""
    first: dict[tuple[tuple[str, str], ...], Variant] = {}
    shared = []
    for variant in variants:
        folder = Path(variant.main).parent
        key = tuple(
            sorted((str(Path(f.path).relative_to(folder)), f.sha256) for f in variant.files)
        )
        owner = first.setdefault(key, variant)
        if owner is not variant and Path(owner.main).name == Path(variant.main).name:
            shutil.rmtree(root / folder)
            variant = msgspec.structs.replace(variant, main=owner.main, files=owner.files)
        shared.append(variant)
    return shared


def _task(job: Job, labels: FileEntry | None) -> Task:
    scores = class_scores(job.interface, job.model.kinds)
    classifies = scores is not None and (labels or job.options.evaluate)
    return Task(
        kind=job.answering.kind or ("classification" if classifies else "generic"),
        preprocess=job.options.preprocess,
        labels=labels,
        postprocess=job.answering.postprocess,
    )


def _rejected(decision: Decision, target: Target, built: dict[str, Variant]) -> Rejected:
    trial, entry = decision.trial, target.chain[decision.trial.entry]
    return Rejected(
        id=trial.variant,
        runtime=entry.runtime,
        device=entry.device,
        precision=trial.precision,
        reason=decision.reason,
        size_bytes=built[trial.variant].size_bytes if trial.variant in built else None,
        measured=trial.measured,
    )


def _tools() -> dict[str, str]:
    tools = {"edgeserve": __version__}
    for package in ("numpy", "onnx", "onnxruntime", "openvino", "ai-edge-litert"):
        try:
            tools[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return tools
