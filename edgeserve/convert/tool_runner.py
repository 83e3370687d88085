"""Runs one converter inside a tool environment: `python tool_runner.py JOB.json`.

Standard library only: edgeserve is not installed where this runs. The result is written as JSON beside
the job, so that whatever the converter prints cannot be taken for it.
"""

import importlib.util
import json
import sys
import traceback
from pathlib import Path


def main() -> int:
    job_file = Path(sys.argv[1])
    job = json.loads(job_file.read_text("utf-8"))
    spec = importlib.util.spec_from_file_location("edgeserve_tool_converter", job["module"])
    if spec is None or spec.loader is None:
        raise SystemExit(f"{job['module']} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    converter = getattr(module, job["attribute"])
    try:
        files = converter.convert(Path(job["source"]), Path(job["out_dir"]), job["options"])
        result: dict[str, object] = {"files": [str(f) for f in files]}
    except Exception as error:  # noqa: BLE001 - reported to the parent, whatever it is
        traceback.print_exc()
        result = {
            "error": f"{type(error).__name__}: {error}",
            "unsupported_ops": list(getattr(error, "unsupported_ops", [])),
        }
    job_file.with_suffix(".result").write_text(json.dumps(result), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
