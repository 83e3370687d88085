"""Shared memory regions: only names we allow, only bytes that are there, nothing that ends the server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory as Segment
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.errors import InvalidInput, UsageError
from edgeserve.serve.shm import Region, SharedMemory, SharedMemoryOff, UnknownRegion

pytestmark = pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no POSIX shared memory")


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment(f"edgeserve-test-{uuid.uuid4().hex}", create=True, size=64)
    made.buf[:] = bytes(range(64))
    yield made
    made.close()
    made.unlink()


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory(["edgeserve-test-"], regions=3)
    yield made
    made.close()


def test_regions_are_read_and_written(memory: SharedMemory, segment: Segment) -> None:
    memory.register("in", f"/{segment.name}", 16, 32)
    assert memory.status() == [Region("in", f"/{segment.name}", 16, 32)]
    assert memory.status("in") == memory.status()
    assert bytes(memory.read("in", 4, 8)) == bytes(range(20, 28))
    memory.write("in", 30, b"zz")
    assert bytes(segment.buf[46:48]) == b"zz"
    memory.unregister("in")
    memory.unregister("in")
    assert memory.status() == []
    with pytest.raises(UnknownRegion):
        memory.read("in", 0, 1)


@pytest.mark.parametrize(("offset", "size"), [(0, 33), (32, 1), (-1, 1), (0, -1), (1 << 70, 1)])
def test_nothing_outside_a_region_is_touched(
    memory: SharedMemory, segment: Segment, offset: int, size: int
) -> None:
    memory.register("r", segment.name, 16, 32)
    with pytest.raises(InvalidInput, match="at most 32 bytes"):
        memory.read("r", offset, size)
    with pytest.raises(InvalidInput, match="at most 32 bytes"):
        memory.check_room("r", offset, size)
    with pytest.raises(InvalidInput):
        memory.write("r", 31, b"zz")
    assert bytes(segment.buf) == bytes(range(64))


@pytest.mark.parametrize(
    "key",
    ["", "/", "/etc/passwd", "../etc/passwd", "edgeserve-test-/../x", "other", "/other", "a\0b",
     "edgeserve-test-../../etc/passwd", "edgeserve-test-" + "x" * 300, "EDGESERVE-TEST-x"],
)  # fmt: skip
def test_keys_outside_the_prefix_are_refused_and_not_opened(memory: SharedMemory, key: str) -> None:
    with pytest.raises(InvalidInput, match="expected a name that this server allows"):
        memory.register("r", key, 0, 1)
    assert memory.status() == []


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 65), (64, 1), (-1, 4), (0, 0), (0, -1), (0, 1 << 60), (1 << 60, 1)]
)
def test_sizes_are_checked_against_the_object(
    memory: SharedMemory, segment: Segment, offset: int, size: int
) -> None:
    with pytest.raises(InvalidInput):
        memory.register("r", segment.name, offset, size)
    assert memory.status() == []


def test_a_region_that_its_owner_cuts_is_an_error_and_no_sigbus(
    memory: SharedMemory, segment: Segment
) -> None:
    memory.register("r", segment.name, 0, 64)
    os.truncate(f"/dev/shm/{segment.name}", 8)
    with pytest.raises(InvalidInput, match="expected an object of 64 bytes, got 8"):
        memory.read("r", 0, 64)
    assert bytes(memory.read("r", 0, 8)) == bytes(range(8))
    with pytest.raises(InvalidInput):
        memory.write("r", 0, bytes(64))


def test_links_and_folders_and_pipes_are_no_shared_memory(memory: SharedMemory) -> None:
    name = f"edgeserve-test-{uuid.uuid4().hex}"
    path = Path("/dev/shm") / name
    for make in (lambda: path.symlink_to("/etc/passwd"), path.mkdir, lambda: os.mkfifo(path)):
        make()
        try:
            with pytest.raises(InvalidInput, match="cannot be opened"):
                memory.register("r", name, 0, 1)
        finally:
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def test_names_are_counted_and_told_apart(memory: SharedMemory, segment: Segment) -> None:
    for name in ("a", "b", "c"):
        memory.register(name, segment.name, 0, 8)
    with pytest.raises(InvalidInput, match="3 shared memory regions"):
        memory.register("d", segment.name, 0, 8)
    memory.unregister("c")
    with pytest.raises(InvalidInput, match="registered already"):
        memory.register("a", segment.name, 0, 8)
    memory.unregister(None)
    for name in ("", "a\nb", "x" * 201):
        with pytest.raises(InvalidInput, match="region name"):
            memory.register(name, segment.name, 0, 8)


def test_descriptors_are_given_back(segment: Segment) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    memory = SharedMemory(["edgeserve-test-"])
    for i in range(20):
        memory.register(f"r{i}", segment.name, 0, 8)
        with pytest.raises(InvalidInput):
            memory.register(f"s{i}", segment.name, 0, 800)
    memory.unregister("r3")
    memory.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_off_is_off() -> None:
    memory = SharedMemory(())
    for call in (
        lambda: memory.register("r", "k", 0, 1),
        lambda: memory.unregister("r"),
        lambda: memory.unregister(None),
        memory.status,
        lambda: memory.read("r", 0, 1),
        lambda: memory.write("r", 0, b""),
    ):
        with pytest.raises(SharedMemoryOff) as caught:
            call()
        assert "--shared-memory" in (caught.value.hint or "")


def test_several_prefixes(segment: Segment) -> None:
    """Triton's examples call theirs /input_simple and /output_simple."""
    memory = SharedMemory(["/input", "output", "edgeserve-test-"])
    memory.register("r", segment.name, 0, 8)
    for key in ("input_simple", "/output_simple", "inputs"):
        with pytest.raises(InvalidInput, match="cannot be opened"):
            memory.register("x", key, 0, 8)
    for key in ("other", "xinput", "/edgeserve"):
        with pytest.raises(InvalidInput, match="expected a name that this server allows"):
            memory.register("x", key, 0, 8)
    memory.close()


@pytest.mark.parametrize("prefix", ["", "/", "a", "..", "../x", "a/b", "-x", ".x"])
def test_a_prefix_names_something(prefix: str) -> None:
    with pytest.raises(UsageError, match="is not a valid prefix"):
        SharedMemory([prefix])


@given(st.text(max_size=40), st.integers(), st.integers())
def test_whatever_is_registered_does_not_exist(key: str, offset: int, size: int) -> None:
    memory = SharedMemory(["edgeserve-test-none-"])
    with pytest.raises(InvalidInput) as caught:
        memory.register("r", key, offset, size)
    assert "/dev/shm" not in str(caught.value)
