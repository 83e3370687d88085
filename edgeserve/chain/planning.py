"""Which candidate of a bundle is tried first, and how many calls run at a time where options leave it open."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from edgeserve.bundle import Bundle, Candidate
from edgeserve.chain.options import ChainOptions
from edgeserve.devices import plan_instances


def matching(chain: Iterable[Candidate], options: ChainOptions) -> list[Candidate]:
    """The candidates that the options allow, in the order they are tried in."""
    allowed = [c for c in chain if c.is_on(options.device) and options.variant in (None, c.variant)]
    # Whoever requires a device wants it to serve, wherever in the chain it stands.
    return sorted(allowed, key=lambda c: not options.is_required(c))


def first_candidate(bundle: Bundle, options: ChainOptions) -> Candidate:
    """The candidate that is tried first, or would be if any matched."""
    chain = bundle.manifest.chain
    return (*matching(chain, options), *chain)[0]


def planned(bundle: Bundle, options: ChainOptions, cores: int) -> ChainOptions:
    """The options with `instances`, and `threads` where several calls share the cores, chosen where they are 0:
    by the cores, and by the latency of the first candidate that the bundle records."""
    first = first_candidate(bundle, options)
    measured = [
        m.latency_ms
        for m in bundle.manifest.variant(first.variant).measured
        if m.runtime == first.runtime and m.device == first.device
    ]
    latency = measured[0] if measured else None
    chosen = plan_instances(options.instances, options.threads, cores, latency, first.device)
    return msgspec.structs.replace(options, instances=chosen.count, threads=chosen.threads)
