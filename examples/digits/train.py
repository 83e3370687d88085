"""Train the digit classifier that edgeserve ships, on scikit-learn's handwritten digits.

Of the 1,797 images (8x8, 16 grey levels) 200 are held out before anything else: neither trained on nor
used to choose anything. 200 of the training images become the calibration data. Inputs are pixel / 16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).resolve().parent
SEED = 0
EPOCHS = 40


def network() -> nn.Sequential:
    """Three 3x3 convolutions: wide enough that int8 pays, small enough to travel in the wheel."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Move each batch by up to one pixel: digits are rarely centred to the pixel."""
    down, right = (int(n) for n in torch.randint(-1, 2, (2,)))
    return torch.roll(images, (down, right), (2, 3))


def train(images: torch.Tensor, labels: torch.Tensor) -> nn.Sequential:
    torch.manual_seed(SEED)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = EPOCHS * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images))[: len(images) // 64 * 64].view(-1, 64):
            loss = nn.functional.cross_entropy(model(shifted(images[batch])), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def export(model: nn.Sequential, file: Path) -> None:
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        str(file),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"input": {0: torch.export.Dim("batch", min=1, max=1024)}},
        opset_version=20,
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    proto = onnx.load(file)
    # The exporter's notes about source lines are three quarters of a small file.
    for node in proto.graph.node:
        del node.metadata_props[:]
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:], proto.metadata_props[:]
    onnx.save(proto, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = HERE.parent.parent / "edgeserve" / "demo" / "files"
    parser.add_argument("-o", "--output", type=Path, default=default)
    output = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)

    data, target = load_digits(return_X_y=True)
    images = (data / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    x, held_x, y, held_y = train_test_split(
        images, target, test_size=200, stratify=target, random_state=SEED
    )
    model = train(torch.from_numpy(x), torch.from_numpy(y))
    file = output / "digits.onnx"
    export(model, file)

    with torch.no_grad():
        wanted = model(torch.from_numpy(held_x)).numpy()
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"image": held_x})
    error = float(np.abs(wanted - got).max())
    if error > 1e-4:
        raise SystemExit(f"the ONNX file differs from PyTorch by {error:.2g}")
    accuracy = float((got.argmax(1) == held_y).mean())

    np.savez_compressed(output / "digits-samples.npz", image=held_x, label=held_y.astype(np.int64))
    np.savez_compressed(output / "digits-calibration.npz", image=x[:200])
    (output / "digits-labels.txt").write_text("\n".join(str(i) for i in range(10)) + "\n")
    print(f"trained on {len(x)} images, held out {len(held_x)}")
    print(f"held-out accuracy {accuracy:.3f} (onnxruntime, within {error:.1g} of PyTorch)")
    print(f"wrote {file.name}: {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
