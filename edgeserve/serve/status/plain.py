"""The status page where Jinja2 is not installed: one HTML document without scripts, fonts or links to elsewhere.

Everything that is shown is escaped, whoever wrote it: names and messages come from bundles and drivers.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterator
from typing import Final

from edgeserve.serve.status.status import (
    CandidateStatus,
    ModelStatus,
    ServerStatus,
    Step,
    WorkerStatus,
)
from edgeserve.serve.status.words import STATES, clock, size, span, word_of

_REFRESH_S: Final = 10
_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c4320a; }
@media (prefers-color-scheme: dark) { :root { --good: #4ac26b; --bad: #ff8f6b; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
h1 small, h2 small { font-weight: normal; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } td.n { text-align: right; font-variant-numeric: tabular-nums; }
dt { float: left; clear: left; min-width: 9rem; font-weight: 600; } dd { margin: 0 0 .2rem 9.5rem; }
code, dd, td, p { overflow-wrap: anywhere; } .good { color: var(--good); } .bad { color: var(--bad); }
@media (min-width: 60rem) { td code { white-space: nowrap; } }
@media (max-width: 45rem) {
  body { margin: 1rem auto; }
  dt { float: none; } dd { margin: 0 0 .4rem 0; }
  thead { display: none; } table, tbody, tr, td { display: block; }
  tr { border-bottom: 1px solid var(--line); padding: .4rem 0; }
  td, td.n { border: 0; padding: 0; text-align: left; } td:empty { display: none; }
  td::before { content: attr(data-name) ": "; opacity: .7; } td:first-child::before { content: none; }
}
"""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
PLAIN_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_COLUMNS: Final = (
    "candidate", "device", "precision", "state", "load ms", "golden error", "what it said",
)  # fmt: skip
_NUMBERS: Final = ("load ms", "golden error")


def render(found: ServerStatus) -> str:
    """The document."""
    word = word_of(found)
    about = (
        f"<p>{_e(clock(found.time))}, up {_e(span(found.up_s))}, process {found.process}, "
        f"{size(found.memory_bytes)} of memory. "
        f"The page reloads itself every {_REFRESH_S} s. For machines: <code>/v2/health/ready</code>, "
        "<code>/metrics</code>, or this with <code>Accept: application/json</code>.</p>"
    )
    body = [
        f"<h1>{_e(found.server)} {_e(found.version)} <small>{_word(word, good=word == 'ready')}</small></h1>",
        about,
        *(_worker(worker) for worker in found.workers),
        *(_model(model, found.time) for model in found.models),
    ]
    if not found.models:
        body.append("<p>No models.</p>")
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><meta http-equiv="refresh" '
        f'content="{_REFRESH_S}"><title>edgeserve: {_e(word)}</title><style>{_STYLE}</style></head>\n'
        f"<body>\n{chr(10).join(body)}\n</body>\n</html>\n"
    )


def _worker(worker: WorkerStatus) -> str:
    word = "ready" if worker.ready else "not ready"
    why = f": {_e(worker.reason)}" if worker.reason else ""
    return f"<p>Worker {worker.worker}: {_word(word, good=worker.ready)}{why}</p>"


def _model(model: ModelStatus, now: float) -> str:
    word = "not ready"
    if model.ready:
        word = "degraded: not on its first candidate" if model.degraded else "ready"
    title = f"{_e(model.name)} <small>version {_e(model.version)}, {_word(word, good=word == 'ready')}</small>"
    return f"<h2>{title}</h2>\n<dl>{''.join(_facts(model, now))}</dl>\n{_candidates(model)}"


def _facts(model: ModelStatus, now: float) -> Iterator[str]:
    if model.reason:
        yield _fact(
            "note" if model.ready else "why", _word(model.reason, good=False, plain=model.ready)
        )
    serving = next((c for c in model.candidates if c.state == "serving"), None)
    if serving is not None and model.since is not None:
        own = ", in a process of its own" if serving.isolated else ""
        where = (
            f"<code>{_e(serving.candidate)}</code> on {_e(serving.device)}, {_e(serving.precision)}"
        )
        yield _fact("serves on", f"{where}{own}, for {_e(span(now - model.since))}")
    if model.placement is not None:
        yield _fact("placement", _e(model.placement))
    if model.batching:
        yield _fact("requests run", _e(model.batching))
    if model.rows_that_fit:
        yield _fact(
            "memory", f"batches run in parts of {model.rows_that_fit} rows, more do not fit"
        )
    if model.last_fallback is not None:
        yield _fact("last fallback", _step(model.last_fallback, now))
    if model.last_recovery is not None:
        yield _fact("last recovery", _step(model.last_recovery, now))
    failed = ", ".join(f"{count} {kind}" for kind, count in model.failed.items())
    yield _fact("requests", f"{model.answered} answered, {_e(failed) or 'none'} failed")
    yield _fact("queue", f"{model.pending} waiting or running, of at most {model.queue}")


def _step(step: Step, now: float) -> str:
    text = f"<code>{_e(step.source)}</code> &rarr; <code>{_e(step.destination)}</code>"
    text += f", {_e(span(now - step.at))} ago, at {_e(clock(step.at))}"
    if step.reason is not None:
        text += f": {_word(step.reason, good=False)}: {_e(step.message)}"
    if step.hint:
        text += f" (hint: {_e(step.hint)})"
    if step.away_s is not None:
        text += f"; it was away for {_e(span(step.away_s))}"
    return f"{text}; {step.count} since it was loaded"


def _candidates(model: ModelStatus) -> str:
    if not model.candidates:
        return ""
    head = "".join(f"<th>{_e(name)}</th>" for name in _COLUMNS)
    rows = "".join(f"<tr>{_row(candidate)}</tr>\n" for candidate in model.candidates)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table>"


def _row(found: CandidateStatus) -> str:
    device = f"{found.device}, own process" if found.isolated else found.device
    state = STATES[found.state]
    if found.retry_s is not None:
        state += f", tried again in {span(found.retry_s)}"
    said = ": ".join(filter(None, (found.reason, found.message)))
    if found.hint:
        said += f" (hint: {found.hint})"
    numbers = (
        "" if found.load_ms is None else f"{found.load_ms:.0f}",
        "" if found.golden_error is None else f"{found.golden_error:.2g}",
    )
    marked = _word(
        state, good=found.state in ("serving", "standby"), plain=found.state in ("closed", "unused")
    )
    name = f"<code>{_e(found.candidate)}</code>"
    cells = (name, _e(device), _e(found.precision), marked, *map(_e, numbers), _e(said))
    return "".join(
        f'<td data-name="{column}"{" class=n" if column in _NUMBERS else ""}>{cell}</td>'
        for column, cell in zip(_COLUMNS, cells, strict=True)
    )


def _fact(name: str, content: str) -> str:
    return f"<dt>{name}</dt><dd>{content}</dd>\n"


def _word(text: str, *, good: bool, plain: bool = False) -> str:
    return _e(text) if plain else f'<span class="{"good" if good else "bad"}">{_e(text)}</span>'


def _e(text: str | None) -> str:
    return html.escape(text or "")
