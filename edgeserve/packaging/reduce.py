"""The bundle that travels: of a bundle, the candidates that were chosen and the variants they run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from edgeserve.bundle import Bundle, Candidate
from edgeserve.bundle.manifest import MANIFEST_NAME, encode
from edgeserve.errors import UsageError, did_you_mean


def chosen_chain(
    bundle: Bundle, runtimes: Sequence[str], variants: Sequence[str]
) -> tuple[Candidate, ...]:
    """The bundle's chain, or of it what runs on these runtimes and variants. Raises UsageError."""
    chain = bundle.manifest.chain
    _check_known("runtime", runtimes, [c.runtime for c in chain])
    _check_known("variant", variants, [c.variant for c in chain])
    chosen = tuple(
        c
        for c in chain
        if (not runtimes or c.runtime in runtimes) and (not variants or c.variant in variants)
    )
    if not chosen:
        raise UsageError(
            f"no candidate of {bundle.name} is left with these --runtime and --variant",
            hint=f"its chain: {', '.join(c.label for c in chain)}",
        )
    return chosen


def write_reduced(
    bundle: Bundle, chain: Sequence[Candidate], destination: Path, *, keep_all: bool
) -> Bundle:
    """Copy to `destination` what `chain` needs, verified on the way; with `keep_all`, every variant."""
    manifest = bundle.manifest
    needed = {c.variant for c in chain}
    reduced = msgspec.structs.replace(
        manifest,
        chain=tuple(chain),
        variants=tuple(v for v in manifest.variants if keep_all or v.id in needed),
    )
    for entry in reduced.files():
        target = destination / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.verified_path(entry), target)
    (destination / MANIFEST_NAME).write_bytes(encode(reduced))
    return Bundle.open(destination)


def _check_known(kind: str, asked: Sequence[str], known: Sequence[str]) -> None:
    for name in asked:
        if name not in known:
            listed = f"it has {', '.join(dict.fromkeys(known))}"
            raise UsageError(
                f"the bundle's chain has no {kind} '{name}'",
                hint=did_you_mean(name, known, listed),
            )
