"""`edgeserve convert` for several targets: a bundle each, and what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgeserve.cli.output import print_error, progress, stdout_console
from edgeserve.errors import DataError, EdgeServeError, SourceError, UnsupportedModel, UsageError
from edgeserve.exporting import to_json
from edgeserve.tables import print_line, print_table, size_text

if TYPE_CHECKING:
    from edgeserve.conversion.options import Options
from edgeserve.conversion.report import Conversion

ALL = "all"


class TargetOutcome(msgspec.Struct, frozen=True):
    """One target's bundle, or why there is none."""

    target: str
    report: Conversion | None = None
    error: str | None = None


def convert_for(
    targets: list[str], source: Path, folder: Path, options: Options, *, as_json: bool
) -> int:
    """Convert for each target into `folder`/NAME-TARGET.edge; 1 when one of them got no bundle.

    Raises SourceError, DataError and UsageError at once: they would come for every target.
    """
    from edgeserve.conversion.pipeline import convert
    from edgeserve.conversion.tools.reuse import reusing
    from edgeserve.targets.schema import target_names

    names = list(target_names()) if targets == [ALL] else targets
    outcomes = []
    with progress() as say, reusing():
        for number, name in enumerate(names, start=1):
            where = f"{number} of {len(names)}, {name}"

            def tell(what: str, share: float | None, where: str = where) -> None:
                say(f"{where}: {what}", share)

            destination = folder / f"{source.resolve().stem}-{Path(name).stem}.edge"
            mine = msgspec.structs.replace(options, target=name)
            try:
                outcomes.append(TargetOutcome(name, convert(source, destination, mine, tell)))
            except EdgeServeError as error:
                everywhere = isinstance(error, SourceError | DataError | UsageError)
                if everywhere and not isinstance(error, UnsupportedModel):
                    raise
                outcomes.append(TargetOutcome(name, error=error.message))
                print_error(error)
    if as_json:
        print(to_json(outcomes))
    else:
        _render(outcomes, folder)
    return int(any(o.report is None for o in outcomes))


def _render(outcomes: list[TargetOutcome], folder: Path) -> None:
    rows = []
    for outcome in outcomes:
        report = outcome.report
        if report is None:
            rows.append((outcome.target, "none", outcome.error or "", ""))
            continue
        measured = {(r.variant, r.runtime, r.device) for r in report.rows if r.measured}
        here = sum((c.variant, c.runtime, c.device) in measured for c in report.chain)
        chain = " -> ".join(c.label for c in report.chain)
        size = size_text(report.bundle_size_bytes)
        rows.append((report.target, size, chain, f"{here} of {len(report.chain)}"))
    console = stdout_console()
    print_table(console, ("target", "bundle", "chain", "verified here"), rows, right=("bundle",))
    remarks = dict.fromkeys(r for o in outcomes if o.report for r in o.report.remarks)
    if remarks:
        console.print()
    for remark in remarks:
        print_line(console, f"note: {remark}")
    made = sum(o.report is not None for o in outcomes)
    print_line(console, f"\n{made} of {len(outcomes)} bundles are in {folder}")
