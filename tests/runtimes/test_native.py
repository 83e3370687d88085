"""What engines write past Python is caught, what others write meanwhile is not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeserve.runtimes.native import NativeLog, caught_output


def log_of(text: str) -> NativeLog:
    log = NativeLog()
    log.text = text
    return log


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("INFO: [gpu_registry.cc:130] Attempting to load GPU accelerator.\n", None),
        ("", None),
        (
            (
                "Warning: vkCreateInstance: Found no drivers!\n"
                "    at CheckVkSuccessImpl (third_party/dawn/VulkanError.cpp:106)\n\n"
                "ERROR: [delegate_webgpu.cc:359] Failed to initialize: No adapters found\n"
                "WARNING: Logging before InitGoogle() is written to STDERR\n"
                "E0000 00:00:1795574490.689219   22314 delegate_webgpu.cc:736] Failed to get environment\n"
                "I0000 00:00:1795574490.689219   22314 delegate_webgpu.cc:751] threads = 0\n"
                "=== Source Location Trace: ===\nthird_party/odml/delegate.cc:432\n"
            ),
            (
                "vkCreateInstance: Found no drivers!; Failed to initialize: No adapters found; "
                "Failed to get environment"
            ),
        ),
        (
            (
                "\x1b[1;31m2026-11-25 02:43:00.456400818 [E:onnxruntime:Default, bridge.cc:1862 Get] "
                "Failed to load libcublas.so.12\x1b[m\n"
            ),
            "Failed to load libcublas.so.12",
        ),
        ("the driver's own words\n" * 3, "the driver's own words"),
        (
            (
                "2026-11-25 02:43:00.45 [E:onnxruntime:Default, bridge.cc:2043 Get] "
                "/src/bridge.cc:2043 Provider& Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library\n"
            ),
            "Failed to load library",
        ),
    ],
)
def test_complaints_are_without_chatter_times_and_places(text: str, complaints: str | None) -> None:
    assert log_of(text).complaints() == complaints


def test_endless_complaints_are_cut() -> None:
    found = log_of("\n".join(f"line {i}" for i in range(1000))).complaints()
    assert found is not None
    assert len(found) <= 600
    assert found.endswith("…")


def test_file_descriptors_and_c_s_buffers_are_caught(capfd: pytest.CaptureFixture[str]) -> None:
    libc = ctypes.CDLL(None)
    with caught_output(passes=lambda line: line.startswith("mine")) as log:
        os.write(2, b"INFO: chatter\nmine too\n")
        libc.puts(b"printed by C")
        libc.puts(b"mine, by C")
    print("after")
    out, err = capfd.readouterr()
    assert log.text == "INFO: chatter\nmine too\n"
    assert out == "mine, by C\nafter\n"
    assert err == "mine too\n"


def test_they_are_given_back_after_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> None:
        with caught_output(passes=lambda line: False):
            os.write(2, b"lost\n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    os.write(2, b"seen\n")
    assert capfd.readouterr().err == "seen\n"


def test_blocks_inside_each_other(capfd: pytest.CaptureFixture[str]) -> None:
    def passes(line: str) -> bool:
        return "outer" in line

    with caught_output(passes) as outer, caught_output(passes) as inner:
        os.write(2, b"inner\nouter\n")
    assert inner.text == "inner\nouter\n"
    assert outer.text == "outer\n"
    assert capfd.readouterr().err == "outer\n"


def test_closed_streams_are_no_problem() -> None:
    code = (
        "import os; os.close(2); os.close(1)\n"
        "from edgeserve.runtimes.native import caught_output\n"
        "with caught_output(lambda line: True): pass\n"
        "os._exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 7


def test_no_descriptor_is_left_open() -> None:
    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with caught_output(passes=lambda line: True):
        pass
    before = count()
    for _ in range(50):
        with caught_output(passes=lambda line: True):
            pass
    assert count() == before
