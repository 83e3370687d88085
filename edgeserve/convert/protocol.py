"""The converter contract: one conversion, a plug-in found by the entry-point group `edgeserve.converters`.

A converter's module imports nothing but the standard library at module level and never edgeserve: it
may be run by file path inside a tool environment, where edgeserve is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Converter(Protocol):
    """Turns one file format into another.

    `requires` are pip requirements, pinned where a tool environment is made from them; `imports` the
    modules that must be importable to run in this interpreter; `pip_arguments` go to pip when the
    environment is made.
    """

    name: str
    source_format: str
    output_format: str
    requires: tuple[str, ...]
    imports: tuple[str, ...]
    pip_arguments: tuple[str, ...]

    def convert(
        self, source: Path, out_dir: Path, options: Mapping[str, str | int | float]
    ) -> list[Path]:
        """Write into `out_dir`; the first path returned is the file a runtime opens.

        Known options: `precision` (fp32, fp16, int8), `batch` (0: any), `calibration` (an .npz).
        Where tensors are renamed or laid out anew, a file `bindings.json` says so:
        `{"inputs": {NAME: {"name": …, "permutation": [..] or null}}, "outputs": {…}}`.
        An operator that cannot be converted raises an exception with an attribute
        `unsupported_ops`, a list of operator types.
        """
        ...
