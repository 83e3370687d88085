"""SIGINT and SIGTERM end a command at any moment, and leave nothing behind.

The handler raises in the main thread, which cleans up as for any other error. A call into an engine may
keep that thread for minutes, or a library may swallow the exception: then a thread that waits for the
same signal runs the process's exit functions (which remove scratch folders) and ends it.
"""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False  # typing's: this file is imported before anything that takes long
if TYPE_CHECKING:
    from typing import Any

# So long the main thread has to clean up after itself, then the exit functions.
GRACE_S = 2.0
_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

_caught: int | None = None
_ends = False
# Where stderr led at the start: descriptor 2 is an engine's own while its output is looked at.
_stderr = -1


def install() -> None:
    """Have both signals raise KeyboardInterrupt in the main thread, from which to call this."""
    global _stderr
    if os.name != "posix":
        return  # Windows has no SIGTERM to catch, and Ctrl-C raises KeyboardInterrupt by itself
    import contextlib
    import fcntl

    with contextlib.suppress(OSError):  # closed
        # Beyond the standard streams: a closed one's number would be taken for it.
        _stderr = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)
    for number in _NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as shells set it for what runs behind
            signal.signal(number, _interrupt)
    sys.unraisablehook = _unraisable


def watch() -> None:
    """Start the thread that ends the process where the main thread does not."""
    import threading

    if os.name != "posix":
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_wait, args=(reader,), name="edgeserve-endings", daemon=True).start()


def uninstall() -> None:
    """The command is over: what comes now may end the process as it likes."""
    for number in _NUMBERS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)


def caught() -> int | None:
    """The signal that ends this process, or None."""
    return _caught


def end(number: int) -> None:
    """Run the exit functions, say what ended the process, and end it with 128 + `number`."""
    import atexit
    import contextlib
    import threading

    global _ends
    if _ends:
        time.sleep(2 * GRACE_S)  # the other thread ends the process
    _ends = True
    cleaning = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    cleaning.start()
    cleaning.join(GRACE_S)
    with contextlib.suppress(OSError):  # nobody reads it
        os.write(_stderr, f"{_WORDS[signal.Signals(number)]}\n".encode())
    # Engines that were stopped in the middle of something may crash while they are taken down.
    os._exit(128 + number)


def _interrupt(number: int, frame: object) -> None:
    global _caught
    if _caught is None:  # a second one must not stop the cleaning up
        _caught = number
        raise KeyboardInterrupt


def _unraisable(found: Any) -> None:
    if _caught is None or not isinstance(found.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(found)


def _wait(reader: int) -> None:
    while (data := os.read(reader, 1)) and data[0] not in _NUMBERS:
        pass  # other signals wake it, too
    if data:
        time.sleep(GRACE_S)
        end(data[0])
