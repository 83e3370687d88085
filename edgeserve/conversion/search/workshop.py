"""Where variants are made: fresh folders, converters run into them, calibration data written for them."""

from __future__ import annotations

import shutil
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from edgeserve.conversion.job import Job
from edgeserve.conversion.sources.onnx import named_nodes
from edgeserve.conversion.tools.protocol import Converter, ConverterOptions
from edgeserve.conversion.tools.registry import (
    UnsupportedOperators,
    converter_called,
    run_converter,
)
from edgeserve.errors import UnsupportedModel, UsageError
from edgeserve.evaluate import Samples
from edgeserve.progress import Say
from edgeserve.tensors import storable

# Formats whose files accept one batch size only.
FIXED_BATCH: Final = {"tflite": 1}


class Workshop:
    """Scratch folders below `folder`, and what is done in them for one job."""

    def __init__(self, job: Job, folder: Path, say: Say) -> None:
        self._job = job
        self._folder = folder
        self._say = say

    def fresh(self, name: str) -> Path:
        """An empty folder of this name; what was in it is gone."""
        folder = self._folder / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def convert(self, converter: str, source: Path, out: Path, options: ConverterOptions) -> Path:
        """Run one converter by its name; the file that a runtime opens."""
        return run_converter(
            converter_called(converter), source, out, options,
            tool_env=self._job.options.tool_env, say=self._say,
        )[0]  # fmt: skip

    def walk(self, path: list[Converter], source: Path, precision: str, out: Path) -> Path:
        """Run converters one after the other; the last one writes into `out`.

        Raises UnsupportedModel naming the nodes that one of them does not know.
        """
        current = source
        for index, converter in enumerate(path):
            folder = out if index == len(path) - 1 else self.fresh(f"step-{index}")
            self._say(f"converting to {converter.output_format}", None)
            options = {
                "precision": "fp16" if precision == "fp16" else "fp32",
                "batch": FIXED_BATCH.get(converter.output_format, 0),
            }
            try:
                current = self.convert(converter.name, current, folder, options)
            except UnsupportedOperators as error:
                proto = self._job.model.proto
                if proto is None:
                    raise
                nodes = "; ".join(named_nodes(proto, op) for op in error.ops)
                raise UnsupportedModel(f"{converter.name} cannot convert {nodes}") from None
        return current

    def calibration(self) -> Samples:
        """Raises UsageError where there is none."""
        if self._job.data.calibration is None:
            raise UsageError(
                "this recipe needs calibration data",
                hint="--calibrate FOLDER|FILE.npz, or --calibrate random to try without real data",
            )
        return self._job.data.calibration

    @cached_property
    def calibration_file(self) -> Path:
        """The calibration data as converters read them (`converters/…/_calibration.py`), written one by
        one: thousands of images would fill the memory. Raises UsageError where there are none."""
        arrays = self._folder / "requests.npz"
        samples = self.calibration()
        with zipfile.ZipFile(arrays, "w") as archive:
            for index, request in enumerate(samples):
                self._say(f"preparing {len(samples)} calibration samples", index / len(samples))
                for name, array in storable(request).items():
                    with archive.open(f"{index}/{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
        return arrays
