"""The converter contract: one conversion, a plug-in found by the entry-point group `edgeserve.converters`.

A converter's module imports nothing but the standard library and its own package at module level, and
never edgeserve: it may be run inside a tool environment, where edgeserve is not installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

ConverterOptions = Mapping[str, object]


class Converter(Protocol):
    """Turns one file format into another.

    `requires` are pip requirements, pinned where a tool environment is made from them; `imports` the
    modules that must be importable to run in this interpreter; `pip_arguments` go to pip when the
    environment is made. Converters with the same requirements may share one: an attribute `environment`
    is its name, which is the converter's where it is absent.
    """

    name: str
    source_format: str
    output_format: str
    requires: tuple[str, ...]
    imports: tuple[str, ...]
    pip_arguments: tuple[str, ...]

    def convert(self, source: Path, out_dir: Path, options: ConverterOptions) -> list[Path]:
        """Write into `out_dir`, which exists; the first path returned is the file a runtime opens.

        Known options, all of which may be absent: `precision` (fp32, fp16, int8), `batch` (0: any),
        `input_shapes` (input name -> dimensions), `calibration` (an .npz). Where tensors are renamed
        or laid out anew, a file `bindings.json` in `out_dir` says so:
        `{"inputs": {NAME: {"name": …, "permutation": [..] or null}}, "outputs": {…}}`.

        An operator that cannot be converted raises an exception with an attribute `unsupported_ops`,
        a list of operator types (`Op` or `domain.Op`), and a text that names their nodes.
        """
        ...
