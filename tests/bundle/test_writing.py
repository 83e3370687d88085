"""A bundle is written whole or not at all: errors, a full disk, kill -9."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edgeserve.bundle import Bundle
from edgeserve.bundle.writing import bundle_writer
from edgeserve.errors import OutputExists, UsageError, WriteFailed
from tests.bundles import linear_bundle


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        with bundle_writer(tmp_path / "m.edge") as writer:
            (writer.root / "half").write_bytes(b"x")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_relative_destination_is_written_at_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converters get these paths in processes whose current folder is another one."""
    monkeypatch.chdir(tmp_path)
    with bundle_writer(Path("m.edge")) as writer:
        assert writer.root.is_absolute()
        assert writer.work.is_absolute()
        (writer.root / "manifest.json").write_text("{}")
    assert [p.name for p in tmp_path.iterdir()] == ["m.edge"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_who_may_read_the_folder_may_read_its_files(tmp_path: Path) -> None:
    """onnxruntime's quantizer writes weights beside a large model for the owner alone."""
    with bundle_writer(tmp_path / "m.edge") as writer:
        for name, mode in (("manifest.json", 0o600), ("install.sh", 0o700)):
            (writer.root / name).write_text("{}")
            (writer.root / name).chmod(mode)
    readable = (tmp_path / "m.edge").stat().st_mode & 0o666
    for name, executable in (("manifest.json", 0), ("install.sh", 0o100)):
        mode = (tmp_path / "m.edge" / name).stat().st_mode & 0o777
        assert mode == readable | 0o600 | executable


def test_an_existing_bundle_needs_force(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path)
    with pytest.raises(OutputExists) as caught, bundle_writer(path):
        pass
    assert "--force" in (caught.value.hint or "")
    with bundle_writer(path, force=True) as writer:
        (writer.root / "manifest.json").write_text("new")
    assert (path / "manifest.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_force_does_not_replace_what_is_no_bundle(tmp_path: Path) -> None:
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "cat.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="not a bundle"), bundle_writer(precious, force=True):
        pass
    assert (precious / "cat.jpg").exists()


def test_an_error_with_force_keeps_the_old_bundle(tmp_path: Path) -> None:
    path = linear_bundle(tmp_path)

    def fail() -> None:
        with bundle_writer(path, force=True):
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError):
        fail()
    Bundle.open(path).verify()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


WRITE_FOREVER = """
    import sys, time
    from pathlib import Path
    from edgeserve.bundle.writing import bundle_writer
    with bundle_writer(Path(sys.argv[1])) as writer:
        (writer.root / "half").write_bytes(b"x" * 1000)
        print("writing", flush=True)
        time.sleep(60)
"""


def test_kill_9_leaves_no_bundle_and_the_next_writer_cleans_up(tmp_path: Path) -> None:
    destination = tmp_path / "m.edge"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITE_FOREVER), str(destination)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        child.send_signal(signal.SIGKILL)
    assert not destination.exists()
    linear_bundle(tmp_path, "m")
    Bundle.open(destination).verify()
    assert [p.name for p in tmp_path.iterdir()] == ["m.edge"]


def test_of_two_writers_to_one_place_the_second_fails_at_once(tmp_path: Path) -> None:
    with bundle_writer(tmp_path / "m.edge") as first:
        (first.root / "manifest.json").write_text("first")
        with pytest.raises(OutputExists, match="another process is writing"):
            linear_bundle(tmp_path, "m")
        assert (first.root / "manifest.json").exists()
        linear_bundle(tmp_path, "other")
    assert (tmp_path / "m.edge" / "manifest.json").read_text() == "first"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.edge", "other.edge"]


def test_of_many_writers_that_start_together_one_writes(tmp_path: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITE_TOGETHER), str(tmp_path / "m.edge"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "abcd"
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    told = [child.communicate(timeout=60)[0].strip() for child in children]
    wrote = [name for name, text in zip("abcd", told, strict=True) if text == "wrote"]
    assert len(wrote) == 1, told
    assert (tmp_path / "m.edge" / "manifest.json").read_text() == wrote[0]
    assert [p.name for p in tmp_path.iterdir()] == ["m.edge"]


WRITE_TOGETHER = """
    import sys, time
    from pathlib import Path
    from edgeserve.bundle.writing import bundle_writer
    from edgeserve.errors import OutputExists
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with bundle_writer(Path(sys.argv[1])) as writer:
            (writer.root / "manifest.json").write_text(sys.argv[2])
            time.sleep(1.0)
        print("wrote")
    except OutputExists as error:
        print(error.message)
"""


WRITE_TOO_MUCH = """
    import resource, signal, sys
    from pathlib import Path
    from edgeserve.bundle.writing import bundle_writer
    from edgeserve.errors import WriteFailed
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        with bundle_writer(Path(sys.argv[1])) as writer:
            (writer.root / "big").write_bytes(b"x" * 100_000)
    except WriteFailed as error:
        print(error.message, "|", error.cause, "|", error.hint, "|", error.exit_code)
"""


def test_a_disk_that_takes_no_more_is_explained_and_nothing_stays(tmp_path: Path) -> None:
    """A limit on file size gives the same OSError family as a full disk, on any machine."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WRITE_TOO_MUCH), str(tmp_path / "m.edge")],
        capture_output=True,
        text=True,
    )
    assert "cannot write" in run.stdout, run.stderr
    assert "free some space" in run.stdout
    assert run.stdout.strip().endswith("| 3")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WriteFailed) as caught, bundle_writer(tmp_path / "m.edge"):
            pass
    finally:
        tmp_path.chmod(0o700)
    assert "may write" in (caught.value.hint or "")
