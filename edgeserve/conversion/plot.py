"""The tried variants as a picture: size against speed, fidelity as colour, the Pareto front as a line."""

from __future__ import annotations

from pathlib import Path

from edgeserve.conversion.report import Conversion
from edgeserve.errors import DependencyMissing, UsageError, WriteFailed

_SUFFIXES = (".png", ".svg", ".pdf")
_SHOWN_DB = (0.0, 60.0)  # beyond, one cannot tell variants apart by colour, and need not


def check_plot(path: Path) -> None:
    """Raise UsageError for a suffix that cannot be drawn, WriteFailed without a folder to draw into,
    DependencyMissing without matplotlib."""
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"--plot {path}: cannot draw this", hint=f"use {', '.join(_SUFFIXES)}")
    if not path.parent.is_dir():
        raise WriteFailed(f"{path} cannot be written", cause=f"there is no folder {path.parent}")
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
    axes.margins(x=0.08, y=0.12)
    points = [(s / 1e6, m.speedup) for _, m, s in known]
    for (row, _, _), point, lines in zip(known, points, _label_lines(points), strict=True):
        left = point[0] <= (min(points)[0] + max(points)[0]) / 2
        axes.annotate(
            f"{row.variant} ({row.runtime})", point, xytext=(7 if left else -7, 4 - 11 * lines),
            textcoords="offset points", fontsize=8, ha="left" if left else "right",
        )  # fmt: skip
    for device in dict.fromkeys(r.device for r, _, _ in known):
        front = _front(
            [p for p, (r, _, _) in zip(points, known, strict=True) if r.device == device]
        )
        axes.step(*zip(*front, strict=True), where="post", linestyle=":", color="gray", zorder=0)
    axes.axhline(1.0, color="gray", linewidth=0.5)
    axes.set_xlabel("size, MB")
    axes.set_ylabel(f"speed, times the source on {report.reference}")
    axes.set_title(
        f"{Path(report.bundle).name}: {report.target} (red: chosen; dotted: smaller and faster)"
    )
    figure.colorbar(dots, label="SQNR to the source, dB")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise WriteFailed(f"{path} cannot be written", cause=str(error)) from None


def _front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (size, speed) those that nothing as small outruns, by size."""
    front: list[tuple[float, float]] = []
    for size, speed in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or speed > front[-1][1]:
            front.append((size, speed))
    return front


def _label_lines(points: list[tuple[float, float]]) -> list[int]:
    """How many lines each label must move down so that it covers none of its neighbours'."""
    if not points:
        return []
    width = max(p[0] for p in points) - min(p[0] for p in points) or 1.0
    height = max(p[1] for p in points) - min(p[1] for p in points) or 1.0
    lines: list[int] = []
    for index, (x, y) in enumerate(points):
        taken = {
            line
            for (other_x, other_y), line in zip(points[:index], lines, strict=True)
            if abs(other_x - x) < 0.5 * width and abs(other_y - y) < 0.03 * height
        }
        lines.append(next(i for i in range(len(points)) if i not in taken))
    return lines
