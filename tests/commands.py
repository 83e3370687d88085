"""Commands run in this process: no test waits for Python to start, unless the process is what it is about."""

from __future__ import annotations

import io
import subprocess
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path

from edgeserve.cli.main import main


def edgeserve(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`edgeserve ARGUMENTS` in `cwd`: its exit code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with chdir(cwd), redirect_stdout(out), redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as ended:
            code = ended.code
    assert code is None or isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())
