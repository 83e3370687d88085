"""`edgeserve run` in a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import psutil

from tests.serve.conftest import RawClient
from tests.waiting import wait_for


class Served:
    """Runs until `stop`, or the end of its `with` block, which kills it."""

    def __init__(self, folder: Path, bundle: Path, *flags: str) -> None:
        """`folder` gets what it writes."""
        self.log, out = folder / "log", folder / "out"
        command = [
            sys.executable,
            "-m",
            "edgeserve",
            "run",
            str(bundle),
            "--http-port",
            "0",
            *flags,
        ]
        with self.log.open("wb") as err, out.open("wb") as printed:
            self.process = subprocess.Popen(command, stdout=printed, stderr=err)
        self.url = ""

        def serves() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            found = re.search(
                r"serving .* at (http://[\d.:]+)", out.read_text() + self.log.read_text()
            )
            self.url = found[1] if found else ""
            return found is not None

        try:
            wait_for(serves, 60)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def members(self) -> list[psutil.Process]:
        """The process and its workers, if it has any."""
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def metrics(self) -> str:
        with RawClient(self.url) as client:
            client.send(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
            return client.response()[2].decode()

    def stop(self) -> int:
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
