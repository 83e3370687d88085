"""Memory goes back to the system."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
import weakref

import psutil
import pytest

from edgeserve.serve.process.heap import collect, trim

glibc = pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's"
)
# Prints whether the number of arenas was set, and how many 16 threads then use.
ARENAS = """
import ctypes, sys, threading
from edgeserve.serve.process.heap import few_arenas
print(few_arenas(2))
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
together = threading.Barrier(16)
def allocate():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(16)]
for thread in threads: thread.start()
for thread in threads: thread.join()
out = ctypes.c_void_p(libc.fopen(b"/dev/stdout", b"w"))
libc.malloc_info(0, out)
libc.fclose(out)
"""


@glibc
@pytest.mark.parametrize(
    ("variables", "is_set", "arenas"),
    [({}, "True", range(1, 3)), ({"MALLOC_ARENA_MAX": "5"}, "False", range(3, 6))],
)
def test_threads_share_few_arenas_unless_the_environment_says_otherwise(
    variables: dict[str, str], is_set: str, arenas: range
) -> None:
    own = {k: v for k, v in os.environ.items() if k not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-u", "-c", ARENAS],
        env=own | variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(is_set)
    assert done.stdout.count("<heap nr=") in arenas


@glibc
def test_holes_in_the_heap_go_back() -> None:
    """What is freed below a block still in use stays resident until somebody trims."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    size, count = 100_000, 1_000
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:
        libc.free(block)
    process = psutil.Process()
    before = process.memory_info().rss
    trim()
    assert before - process.memory_info().rss > size * count // 2
    libc.free(blocks[-1])


def test_it_may_be_called_when_there_is_nothing_to_give() -> None:
    trim()
    trim()


def test_what_refers_to_itself_goes() -> None:
    class Node:
        """Refers to itself."""

        def __init__(self) -> None:
            self.me = self

    gone = weakref.ref(Node())
    collect()
    assert gone() is None
