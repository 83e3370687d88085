"""PyTorch files, made by PyTorch in the tool environment, as ONNX in this one."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.cli.main import main
from edgeserve.conversion.options import SourceOptions
from edgeserve.conversion.sources.onnx import read_onnx
from edgeserve.conversion.tools.registry import UnsupportedOperators
from edgeserve.errors import EdgeServeError, UnsupportedModel
from tests.converters.frameworks import imported, interface, load, run_onnx, run_script

pytestmark = pytest.mark.slow

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head, self.last = nn.Linear(8, classes), nn.LayerNorm(classes)

    def forward(self, image):
        return self.last(self.head(torch.relu(self.norm(self.conv(image))).mean((2, 3))))

class FixedBatch(Net):
    def forward(self, image):
        return super().forward(image).reshape(1, 4)

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, ids, mask=None):
        mask = torch.ones_like(ids) if mask is None else mask
        found = self.table(ids) * mask[..., None]
        return {"logits": self.head(found.sum(1)), "hidden": found}

class Eigen(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).abs()

NotAModule = dict
"""

MAKE = """
import numpy as np, torch
from net import Eigen, Net, Words
torch.manual_seed(0)
net, words, batch = Net(), Words().eval(), torch.export.Dim("batch")
net(torch.randn(64, 3, 16, 16))  # batch norm gets statistics
net.eval()
image = torch.randn(2, 3, 16, 16)
export, save = torch.export.export, torch.export.save
save(export(net, (image,), dynamic_shapes={"image": {0: batch}}), "net.pt2")
save(export(net, (image,)), "static.pt2")
ids = torch.randint(1, 50, (2, 7))
dims = {0: batch, 1: torch.export.Dim("words")}
program = export(words, (ids, torch.ones(2, 7)), dynamic_shapes={"ids": dims, "mask": dims})
save(program, "words.pt2")
save(export(Eigen(), (torch.randn(3, 3),)), "eigen.pt2")
state = net.state_dict()
torch.save(state, "state.pt")
torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, "training.pth")
torch.save(words.state_dict(), "words.pt")
torch.save(net, "module.pt")
torch.jit.save(torch.jit.trace(net, image), "script.pt")
with torch.no_grad():
    many = torch.randn(5, 3, 16, 16)
    np.savez("net.npz", image=many.numpy(), output=net(many).numpy())
    ids, mask = torch.randint(1, 50, (3, 9)), torch.rand(3, 9)
    found = words(ids, mask)
    np.savez("words.npz", ids=ids.numpy(), mask=mask.numpy(), logits=found["logits"].numpy())
"""

NET_CLASS = "net:Net"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    (folder / "net.py").write_text(NET)
    run_script("torch-export-to-onnx", MAKE, folder)
    return folder


def checkpoint(made: Path, name: str = NET_CLASS, **args: object) -> SourceOptions:
    return SourceOptions(model_class=name, model_args=args, python_path=(str(made),))


def test_pt2_keeps_its_dynamic_batch_and_layer_norm(made: Path, tmp_path: Path) -> None:
    found = imported(made / "net.pt2", tmp_path)
    assert interface(found.onnx) == {"image": ["batch", 3, 16, 16], "output": ["batch", 4]}
    wanted = load(made / "net.npz")
    got = run_onnx(found.onnx, {"image": wanted["image"]})["output"]
    np.testing.assert_allclose(got, wanted["output"], atol=1e-5)
    model = onnx.load(found.onnx)
    assert "LayerNormalization" in {n.op_type for n in model.graph.node}
    assert model.opset_import[0].version == 20
    assert read_onnx(found.onnx).interface.inputs[0].shape == ("batch", 3, 16, 16)


def test_the_verification_is_recorded(made: Path, tmp_path: Path) -> None:
    found = imported(made / "net.pt2", tmp_path)
    record = found.verification
    assert record is not None
    assert (record.framework, record.samples) == ("torch", 4)
    assert record.framework_version.startswith("2.13.0")
    assert 0 < record.relative_rms_error < 1e-4
    assert record.outputs["output"].scale > 0.1
    assert found.converter == "torch-export-to-onnx"


def test_a_static_pt2_stays_static(made: Path, tmp_path: Path) -> None:
    found = imported(made / "static.pt2", tmp_path)
    assert interface(found.onnx) == {"image": [2, 3, 16, 16], "output": [2, 4]}


def test_several_inputs_and_a_dictionary_of_outputs(made: Path, tmp_path: Path) -> None:
    found = imported(made / "words.pt2", tmp_path)
    assert interface(found.onnx) == {
        "ids": ["batch", "sequence"],
        "mask": ["batch", "sequence"],
        "logits": ["batch", 3],
        "hidden": ["batch", "sequence", 8],
    }
    wanted = load(made / "words.npz")
    got = run_onnx(found.onnx, {n: wanted[n] for n in ("ids", "mask")})
    np.testing.assert_allclose(got["logits"], wanted["logits"], atol=1e-5)


@pytest.mark.parametrize("file", ["state.pt", "training.pth"])
def test_a_checkpoint_with_its_class(made: Path, tmp_path: Path, file: str) -> None:
    shapes = {"image": (1, 3, 16, 16)}
    found = imported(made / file, tmp_path, checkpoint(made, classes=4), shapes)
    assert interface(found.onnx) == {"image": ["batch", 3, 16, 16], "output": ["batch", 4]}
    wanted = load(made / "net.npz")
    got = run_onnx(found.onnx, {"image": wanted["image"]})["output"]
    np.testing.assert_allclose(got, wanted["output"], atol=1e-5)
    assert found.shapes == {}


def test_a_checkpoint_with_integer_inputs(made: Path, tmp_path: Path) -> None:
    options = SourceOptions("net:Words", {}, (str(made),), {"ids": "int64"})
    found = imported(made / "words.pt", tmp_path, options, {"ids": (1, 9)})
    assert interface(found.onnx)["ids"] == ["batch", 9]


def test_the_python_api_and_the_command_line_take_the_type_of_an_input(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.toml").write_text(
        'name = "one"\ntitle = "one"\narch = ["x86_64", "aarch64", "arm64"]\n'
        '[[chain]]\nruntime = "onnxruntime"\ndevice = "cpu"\nprecisions = ["fp32"]\n'
    )
    report = edgeserve.convert(
        made / "words.pt", tmp_path / "a.edge", target=str(tmp_path / "one.toml"),
        model_class="net:Words", python_path=[str(made)], shapes={"ids": (1, 9)},
        input_types={"ids": "int64"},
    )  # fmt: skip
    assert [c.variant for c in report.chain] == ["onnx-fp32"]
    with pytest.raises(SystemExit) as ended:
        main(
        ["convert", str(made / "words.pt"), "-o", str(tmp_path / "b.edge"),
         "--target", str(tmp_path / "one.toml"), "--model-class", "net:Words",
         "--python-path", str(made), "--shape", "ids=1,9", "--input-type", "ids=int64"]
        )  # fmt: skip
    assert not ended.value.code, capsys.readouterr().err
    for name in ("a", "b"):
        assert Bundle.open(tmp_path / f"{name}.edge").manifest.interface.inputs[0].dtype == "INT64"


def test_a_model_of_one_batch_size_is_exported_with_it(made: Path, tmp_path: Path) -> None:
    shapes = {"image": (1, 3, 16, 16)}
    found = imported(made / "state.pt", tmp_path, checkpoint(made, "net:FixedBatch"), shapes)
    assert interface(found.onnx) == {"image": [1, 3, 16, 16], "output": [1, 4]}


SHAPE = {"image": (1, 3, 16, 16)}


@pytest.mark.parametrize(
    ("file", "name", "args", "shapes", "said"),
    [
        ("module.pt", NET_CLASS, {}, SHAPE, ["pickled Python objects (net.Net)", ".pt2"]),
        ("script.pt", NET_CLASS, {}, SHAPE, ["TorchScript", ".pt2"]),
        ("state.pt", "", {}, SHAPE, ["--model-class module:Class"]),
        ("state.pt", "Net", {}, SHAPE, ["--model-class module:Class, not 'Net'"]),
        ("state.pt", NET_CLASS, {}, {}, ["--shape image=N,N,…"]),
        ("state.pt", NET_CLASS, {}, {"x": (1, 2)}, ["forward has no 'x'", "--shape image="]),
        ("state.pt", NET_CLASS, {"classes": 9}, SHAPE, ["not those of net:Net", "head.weight"]),
        ("state.pt", NET_CLASS, {"depth": 9}, SHAPE, ["--model-arg", "depth"]),
        ("state.pt", "net:Nett", {}, SHAPE, ["net:Nett cannot be made", "Nett"]),
        ("state.pt", "missing:Net", {}, SHAPE, ["No module named 'missing'", "--python-path"]),
        ("state.pt", "net:NotAModule", {}, SHAPE, ["is a dict, not a torch.nn.Module"]),
        ("state.pt", NET_CLASS, {}, {"image": (1, 5, 8, 8)}, ["cannot trace it", "channels"]),
        ("truncated.pt", NET_CLASS, {}, SHAPE, ["not a complete PyTorch file"]),
    ],
)
def test_checkpoints_that_cannot_be_read_say_why(
    made: Path,
    tmp_path: Path,
    file: str,
    name: str,
    args: dict[str, object],
    shapes: dict[str, tuple[int, ...]],
    said: list[str],
) -> None:
    if file == "truncated.pt":
        (made / file).write_bytes((made / "state.pt").read_bytes()[:2000])
    options = checkpoint(made, name, **args) if name else None
    refused(made / file, tmp_path, said, options, shapes)


def refused(
    path: Path,
    work: Path,
    said: list[str],
    options: SourceOptions | None = None,
    shapes: dict[str, tuple[int, ...]] | None = None,
) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        imported(path, work, options, shapes)
    assert path.name in raised.value.message
    for text in said:
        assert text in str(raised.value.cause)


def test_an_operator_onnx_lacks_is_named(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperators) as raised:
        imported(made / "eigen.pt2", tmp_path)
    assert raised.value.ops == ["aten.linalg_eig"]


def rewritten(source: Path, destination: Path, old: str, new: str) -> Path:
    """A copy of a .pt2 with a text replaced in its program."""
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(destination, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            if name.endswith("models/model.json"):
                assert old.encode() in content
                content = content.replace(old.encode(), new.encode())
            after.writestr(name, content)
    return destination


def test_pt2_files_cannot_run_code(made: Path, tmp_path: Path) -> None:
    """torch itself would evaluate a dimension's text, and load libraries."""
    proof = tmp_path / "executed"
    with zipfile.ZipFile(made / "net.pt2") as archive:
        name = next(n for n in archive.namelist() if n.endswith("models/model.json"))
        text = archive.read(name).decode()
    old = re.findall(r'"expr_str": "[^"]+"', text)[0]
    evil = f"Integer(0*len([open('{proof}','w')]))"
    source = rewritten(made / "net.pt2", tmp_path / "evil.pt2", old, f'"expr_str": "{evil}"')
    refused(source, tmp_path, ["is not arithmetic", "open"])
    assert not proof.exists()
    library = tmp_path / "library.pt2"
    library.write_bytes((made / "net.pt2").read_bytes())
    with zipfile.ZipFile(library, "a") as archive:
        archive.writestr(name.partition("/")[0] + "/data/aotinductor/model/x.so", b"")
    refused(library, tmp_path, ["compiled code", "torch.export.save"])


@pytest.mark.parametrize("content", ["state", "truncated", "text"])
def test_pt2_files_that_are_none(made: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.pt2"
    path.write_bytes(
        {
            "state": (made / "state.pt").read_bytes(),
            "truncated": (made / "net.pt2").read_bytes()[:5000],
            "text": b"not a model",
        }[content]
    )
    with pytest.raises(EdgeServeError) as raised:
        imported(path, tmp_path)
    assert "model.pt2" in raised.value.message
    assert raised.value.exit_code == 2
    if content != "text":
        assert "not an ExportedProgram" in str(raised.value.cause)
