"""SIGINT and SIGTERM at any moment: the documented code, one line, nothing left. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

import edgeserve

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals")

MODEL = Path(edgeserve.__file__).parent / "demo" / "files" / "digits.onnx"
ENDS = {signal.SIGINT: (130, "interrupted\n"), signal.SIGTERM: (143, "terminated\n")}


def left_in(folder: Path) -> list[str]:
    """What a command left, but for the mark that onnxruntime leaves among temporary files."""
    return sorted(p.name for p in folder.rglob("*") if p.name not in ("tmp", ".ses"))


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# From the imports of the command line to the proof: Python itself takes the first 0.05 s.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "after_s"),
    [(signal.SIGINT, 0.2), (signal.SIGTERM, 0.5), (signal.SIGINT, 1.2), (signal.SIGTERM, 2.0)],
)
def test_convert_ends_at_any_moment(tmp_path: Path, number: signal.Signals, after_s: float) -> None:
    arguments = ("convert", str(MODEL), "--calibrate", "random", "-o", "out.edge")
    with start(tmp_path, "-m", "edgeserve", *arguments) as process:
        time.sleep(after_s)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == ENDS[number]
    assert out == ""
    assert left_in(tmp_path) == []
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert alive == [], gone


BUSY = """
    import sys, time, numpy
    from pathlib import Path
    from edgeserve.bundle.writing import bundle_writer
    from edgeserve.cli import endings
    endings.install()
    endings.watch()
    try:
        with bundle_writer(Path("m.edge")):
            print("busy", flush=True)
            if sys.argv[1] == "computes":
                a = numpy.ones((6000, 6000))
                a @ a @ a @ a
            while True:
                try:
                    time.sleep(9)
                except BaseException:
                    pass
    finally:
        endings.end(endings.caught())
"""


@pytest.mark.parametrize("what", ["computes", "swallows"])
def test_what_does_not_listen_is_ended_all_the_same(tmp_path: Path, what: str) -> None:
    """A call into an engine that returns much later; a library that catches everything."""
    with start(tmp_path, "-c", textwrap.dedent(BUSY), what) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (143, "terminated\n")
    assert left_in(tmp_path) == []


TOOL = """
    import sys, tempfile
    from pathlib import Path
    from edgeserve.cli import endings
    from edgeserve.conversion.tools.registry import _supervise
    endings.install()
    endings.watch()
    child = "import tempfile, time; tempfile.mkdtemp(); print(1, flush=True); time.sleep(60)"
    try:
        with tempfile.TemporaryDirectory() as folder:
            print("started", flush=True)
            _supervise([sys.executable, "-c", child], Path(folder))
    except KeyboardInterrupt:
        endings.end(endings.caught())
"""


def test_a_tool_and_its_temporary_files_end_with_it(tmp_path: Path) -> None:
    with start(tmp_path, "-c", textwrap.dedent(TOOL)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        deadline = time.monotonic() + 20
        while not list((tmp_path / "tmp").glob("*/tmp*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == 1
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "interrupted\n")
    assert psutil.wait_procs(family, timeout=5)[1] == []
    assert left_in(tmp_path) == []


@pytest.mark.slow
def test_two_converts_to_one_place_one_fails_at_once(tmp_path: Path) -> None:
    arguments = ("-m", "edgeserve", "convert", str(MODEL), "-o", "out.edge", "--precision", "fp32")
    with start(tmp_path, *arguments) as first, start(tmp_path, *arguments) as second:
        ended = [p.communicate(timeout=120)[1] for p in (first, second)]
    codes = [first.returncode, second.returncode]
    assert sorted(codes) == [0, 2], ended
    assert "another process is writing out.edge" in ended[codes.index(2)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.edge", "tmp"]
