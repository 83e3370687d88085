"""ONNX -> smaller ONNX: constants folded, dead and redundant nodes gone, by onnxslim; verified."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeserve_converters._onnx import graph_inputs, save
from edgeserve_converters._verify import (
    SAMPLES,
    open_onnx,
    run_onnx,
    sample_array,
    write_verification,
)


class OnnxSlim:
    name = "onnx-slim"
    source_format = "onnx"
    output_format = "onnx"
    requires: tuple[str, ...] = ("onnxslim==0.1.98", "onnx==1.23.2", "onnxruntime==1.32.0")
    imports: tuple[str, ...] = ("onnxslim", "onnx", "onnxruntime")
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Inputs, outputs and their dimensions stay as they are. No options."""
        import numpy as np
        import onnx
        import onnxruntime

        with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
            import onnxslim

            model = onnxslim.slim(str(source))
        destination = out_dir / "model.onnx"
        files = save(model, destination)
        before, after = open_onnx(source), open_onnx(destination)
        random, pairs = np.random.default_rng(0), []
        inputs = graph_inputs(onnx.load_model(str(source), load_external_data=False))
        for _ in range(SAMPLES):
            feeds = {v.name: _sample(onnx, v, random) for v in inputs}
            pairs.append((run_onnx(before, feeds), run_onnx(after, feeds)))
        write_verification(out_dir, "onnxruntime", onnxruntime.__version__, pairs)
        return files


def _sample(onnx: Any, value: Any, random: Any) -> Any:
    tensor = value.type.tensor_type
    # Dynamic dimensions get the same size everywhere: those of one name have to agree.
    shape = [dim.dim_value if dim.HasField("dim_value") else 2 for dim in tensor.shape.dim]
    return sample_array(shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type), random)


CONVERTER = OnnxSlim()
