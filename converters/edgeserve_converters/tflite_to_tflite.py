"""TFLite fp32 -> TFLite static int8, weights per channel, by Google's ai-edge-quantizer."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class TfliteToTflite:
    name = "tflite-to-tflite"
    source_format = "tflite"
    output_format = "tflite"
    requires: tuple[str, ...] = ("ai-edge-quantizer==0.10.0", "ai-edge-litert==2.3.0")
    imports: tuple[str, ...] = ("ai_edge_quantizer",)
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """`calibration` is an .npz of stacked inputs by name, in the source model's layout.

        A `bindings.json` beside the source says how those become the file's inputs; it holds for the
        result, too, and is copied.
        """
        from ai_edge_quantizer import quantizer, recipe

        if options.get("precision") != "int8" or not options.get("calibration"):
            raise ValueError(f"{self.name} makes int8, from calibration data")
        beside = source.parent / "bindings.json"
        bindings = json.loads(beside.read_text("utf-8")) if beside.exists() else {"inputs": {}}
        with _silenced():
            tool = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
            key, rows = _signature(source)
            samples = list(_samples(Path(str(options["calibration"])), bindings["inputs"], rows))
            measured = tool.calibrate({key: samples}, num_threads=os.cpu_count() or 1)
            result = tool.quantize(measured, enable_progress_report=False)
        destination = out_dir / "model.tflite"
        result.export_model(str(destination), overwrite=True)
        destination.chmod(0o644)  # the quantizer makes it executable
        if beside.exists():
            (out_dir / "bindings.json").write_text(json.dumps(bindings, indent=2), "utf-8")
        return [destination]


def _signature(source: Path) -> tuple[str, int]:
    """The name of the file's signature and its batch size."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(source))
    names = list(interpreter.get_signature_list())
    if len(names) != 1:
        raise ValueError(f"{source.name} has {len(names)} signatures, calibration needs one")
    return names[0], int(interpreter.get_input_details()[0]["shape"][0])


def _samples(calibration: Path, inputs: Mapping[str, Any], rows: int) -> Iterator[dict[str, Any]]:
    """Batches of `rows` inputs, called and laid out as the file wants them."""
    import numpy as np

    with np.load(calibration, allow_pickle=False) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(data.values())))
    for start in range(0, count - count % rows, rows):
        batch = {}
        for name, array in data.items():
            binding = inputs.get(name) or {"name": name, "permutation": None}
            part, order = array[start : start + rows], binding["permutation"]
            batch[binding["name"]] = np.ascontiguousarray(
                part if order is None else part.transpose(order)
            )
        yield batch


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """The quantizer prints progress bars, and warns of the memory that calibration takes."""
    with (
        Path(os.devnull).open("w") as sink,
        contextlib.redirect_stderr(sink),
        contextlib.redirect_stdout(sink),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


CONVERTER = TfliteToTflite()
