"""Starts `edgeserve run` and tells where it listens."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class Served:
    """A running server; `http` and `grpc` are HOST:PORT, as tritonclient wants them."""

    def __init__(self, popen: subprocess.Popen[bytes], printed: str) -> None:
        self.popen = popen
        self.printed = printed
        found = re.search(r"http://(\S+:\d+)", printed)
        assert found, printed
        self.http = found[1]
        grpc = re.search(r"gRPC: (\S+:\d+)", printed)
        self.grpc = grpc[1] if grpc else ""

    @property
    def url(self) -> str:
        return f"http://{self.http}"


@contextmanager
def serve(*arguments: object) -> Iterator[Served]:
    """`edgeserve run ARGUMENTS` on free ports; ended with SIGTERM, which must be clean."""
    command = [sys.executable, "-m", "edgeserve", "run", *map(str, arguments)]
    command += ["--http-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as popen:
        try:
            assert popen.stderr is not None
            printed = ""
            for line in popen.stderr:
                printed += line.decode()
                if line.startswith(b"try: "):
                    break
            yield Served(popen, printed)
            popen.terminate()
            _, rest = popen.communicate(timeout=30)
            assert popen.returncode == 0, rest.decode()
            assert b"Traceback" not in rest
        finally:
            popen.kill()
