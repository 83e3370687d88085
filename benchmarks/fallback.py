"""The matrix of faults: what a failing device costs the requests of that moment, and when it is back.

    python benchmarks/fallback.py [--repeats 5] [--fault segv ...] [--json FILE]

Each cell is a server process of its own with three clients; the GPU is played by the CPU engine in a worker
process, and fails on order (docs/fallback.md). Added latency is that of the requests that the fault
touched, less the median before it; cells of the moment `run` are repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.bundles import linear_bundle
from tests.fallback.matrix import FAULTS, Cell, Moment, Protocol, cells, run_cell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fault", nargs="*", default=())
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = []
    print(
        "| fault | moment | over | requests | lost | wrong | counted as | added p50, ms | p99 | max | back after, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        bundle = linear_bundle(Path(folder))
        for fault, moment, protocol in cells():
            if arguments.fault and fault.partition("=")[0] not in arguments.fault:
                continue
            repeats = arguments.repeats if moment == "run" else 1
            row = summary(bundle, fault, moment, protocol, repeats)
            rows.append(row)
            print(line(row), flush=True)
    requests, lost, wrong = (sum(r[k] for r in rows) for k in ("requests", "lost", "wrong"))
    print(f"\n{requests} requests, {lost} lost, {wrong} wrong")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if lost or wrong else 0


def summary(
    bundle: Path, fault: str, moment: Moment, protocol: Protocol, repeats: int
) -> dict[str, Any]:
    done = [run_cell(bundle, fault, moment, protocol) for _ in range(repeats)]
    while_serving = moment in ("run", "reload") and "run" in FAULTS[fault]
    added = [ms for cell in done for ms in added_ms(cell)] if while_serving else []
    back = [cell.recover_s for cell in done if cell.recover_s is not None]
    return {
        "fault": fault,
        "moment": moment,
        "protocol": protocol,
        "requests": sum(len(c.replies) for c in done),
        "lost": sum(c.lost for c in done),
        "wrong": sum(c.wrong for c in done),
        "counted": ", ".join(sorted({reason for c in done for reason in c.fallbacks or c.replays})),
        "added_ms": [float(np.percentile(added, q)) for q in (50, 99, 100)] if added else None,
        "back_s": median(back) if back else None,
    }


def added_ms(cell: Cell) -> list[float]:
    """Of the requests that the fault touched: those sent before the first one that another device
    answered was answered, and answered by that as well."""
    away = [r for r in cell.replies if r.device != "gpu"]
    if not away:
        return []
    first = min(away, key=lambda r: r.sent + r.seconds)
    before = [r.seconds for r in cell.replies if r.sent + r.seconds < first.sent]
    usual = median(before) if before else 0.0
    end = first.sent + first.seconds
    touched = [r for r in away if r.sent < end]
    return [1000.0 * (r.seconds - usual) for r in touched]


def line(row: dict[str, Any]) -> str:
    added = [f"{ms:.1f}" for ms in row["added_ms"]] if row["added_ms"] else ["", "", ""]
    back = f"{row['back_s']:.2f}" if row["back_s"] is not None else ""
    cells = [row["fault"], row["moment"], row["protocol"], row["requests"], row["lost"]]
    cells += [row["wrong"], row["counted"], *added, back]
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
