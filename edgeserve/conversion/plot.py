"""The tried variants as a picture: size against speed, fidelity as colour, the Pareto front as a line."""

from __future__ import annotations

from pathlib import Path

from edgeserve.conversion.options import Conversion
from edgeserve.errors import DependencyMissing, UsageError, WriteFailed

_SUFFIXES = (".png", ".svg", ".pdf")
_SHOWN_DB = (0.0, 60.0)  # beyond, one cannot tell variants apart by colour, and need not


def check_plot(path: Path) -> None:
    """Raise UsageError for a suffix that cannot be drawn, DependencyMissing without matplotlib."""
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"--plot {path}: cannot draw this", hint=f"use {', '.join(_SUFFIXES)}")
    try:
        import matplotlib as mpl  # noqa: F401 - only whether it is there
    except ImportError:
        raise DependencyMissing("matplotlib", needed_for="--plot", extra="plot") from None


def plot(report: Conversion, path: Path) -> None:
    """Draw the rows that were measured. Raises what `check_plot` raises, and WriteFailed."""
    check_plot(path)
    from matplotlib.figure import Figure

    rows = [(r, r.measured, r.size_bytes) for r in report.rows]
    known = [(r, m, s) for r, m, s in rows if m is not None and s is not None]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    dots = axes.scatter(
        [s / 1e6 for _, _, s in known],
        [m.speedup for _, m, _ in known],
        c=[m.fidelity.sqnr_db for _, m, _ in known],
        vmin=_SHOWN_DB[0],
        vmax=_SHOWN_DB[1],
        cmap="viridis",
        s=[120 if r.chosen else 50 for r, _, _ in known],
        edgecolors=["red" if r.chosen else "black" for r, _, _ in known],
    )
    for row, measured, size in known:
        axes.annotate(
            f"{row.variant} ({row.runtime})", (size / 1e6, measured.speedup),
            xytext=(6, 4), textcoords="offset points", fontsize=8,
        )  # fmt: skip
    for device in dict.fromkeys(r.device for r, _, _ in known):
        front = sorted((s / 1e6, m.speedup) for r, m, s in known if r.pareto and r.device == device)
        axes.plot(*zip(*front, strict=True), linestyle=":", color="gray", zorder=0)
    axes.axhline(1.0, color="gray", linewidth=0.5)
    axes.set_xlabel("size, MB")
    axes.set_ylabel("speed, times the fp32 source on onnxruntime")
    axes.set_title(
        f"{Path(report.bundle).name}: {report.target} (red: chosen; dotted: Pareto front)"
    )
    figure.colorbar(dots, label="SQNR to the source, dB")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise WriteFailed(f"{path} cannot be written", cause=str(error)) from None
