"""Runs one converter inside a tool environment: `python runner.py JOB.json`.

Standard library only: edgeserve is not installed where this runs. The result is written as JSON beside
the job, so that whatever the converter prints cannot be taken for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any


def main() -> int:
    threading.Thread(target=_die_with_parent, daemon=True).start()
    # As edgeserve.telemetry does, which cannot be imported here.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # as there
    os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    job_file = Path(sys.argv[1])
    job = json.loads(job_file.read_text("utf-8"))
    result: dict[str, object]
    try:
        converter = getattr(_load(job["module"], Path(job["file"])), job["attribute"])
        files = converter.convert(Path(job["source"]), Path(job["out_dir"]), job["options"])
        result = {"files": [str(f) for f in files]}
    except Exception as error:  # noqa: BLE001 - reported to the parent, whatever it is
        traceback.print_exc()
        result = {
            "kind": type(error).__name__,
            "error": str(error),
            "os_error": [error.errno, error.strerror, _text(error.filename)]
            if isinstance(error, OSError) and error.errno is not None
            else None,
            "missing_module": isinstance(error, ImportError),
            "unsupported_ops": list(getattr(error, "unsupported_ops", [])),
        }
    job_file.with_suffix(".result").write_text(json.dumps(result), "utf-8")
    return 0


def _text(path: object) -> str | None:
    return None if path is None else str(path)


def _load(name: str, file: Path) -> Any:
    """Import a converter's module from its file, with its package, and nothing else beside them.

    Putting the folder on `sys.path` would let the packages next to it hide the environment's own.
    """
    package, _, inner = name.partition(".")
    root = file.parents[len(inner.split(".")) - 1] if inner else file
    init = root / "__init__.py" if inner else file
    spec = importlib.util.spec_from_file_location(
        package, init, submodule_search_locations=[str(root)] if inner else None
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[package] = module
    spec.loader.exec_module(module)
    return importlib.import_module(name)


def _die_with_parent() -> None:
    """The parent holds our stdin open: its end means that the parent is gone, killed perhaps."""
    sys.stdin.buffer.read()
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # converters' libraries may hang or crash while they are taken down
