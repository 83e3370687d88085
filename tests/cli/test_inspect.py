"""`edgeserve inspect`: what it prints of models and bundles, and how it refuses others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx
import pytest

from edgeserve.bundle import (
    Accuracy,
    Bundle,
    Calibration,
    Candidate,
    Fidelity,
    Measured,
    Placed,
    Preprocess,
    Recipe,
    Rejected,
)
from edgeserve.bundle.manifest import encode
from edgeserve.cli.main import main
from tests.bundles import linear_bundle, linear_model

MODEL = """\
model       {path}
format      onnx (IR 8, ai.onnx 17)
parameters  15
size        232 B
file        model.onnx, 232 B, sha256 {sha256}

tensor   name   type
─────────────────────────────
input    x      FP32[batch,4]
output   y      FP32[batch,3]

operator   count
────────────────
Add            1
MatMul         1
Relu           1

part           tensors   parameters    size    share
────────────────────────────────────────────────────
weights FP32         2           15    60 B   25.9 %
graph                                 172 B   74.1 %

largest weights   type        size    share
───────────────────────────────────────────
w                 FP32[4,3]   48 B   20.7 %
b                 FP32[3]     12 B    5.2 %

convert it: edgeserve convert {path} -o NAME.edge
"""
BUNDLE = """\
bundle      linear ({path})
written     {created}, schema 1.0
target      cpu-x86
source      linear.onnx (onnx, opset 17, 232 B, sha256 {sha256}…)
task        classification
preprocess  RGB image resized and cropped to 8x8, NCHW
batch       requests may share one, up to 64 rows
golden      4 samples
digests     all 3 files match their digests
made with   edgeserve test

tensor   name   type
─────────────────────────────
input    x      FP32[batch,4]
output   y      FP32[batch,3]

variant     format   precision    size   sha256          made by
────────────────────────────────────────────────────────────────────────────────
onnx-fp32   onnx     fp32        232 B   {sha256}…   static int8, U8S8, per \
channel, minmax (onnxruntime 1.32), calibrated on 8 RANDOM samples

measured    on                                 latency ms   speed-up   fidelity \
                                                  accuracy                         int8 ops
────────────────────────────────────────────────────────────────────────────────
onnx-fp32   onnxruntime 1.32 cpu, test CPU          0.250      2.50x   \
top-1 agreement 98.0 %, 31.5 dB, cosine 0.9990 (50 samples)   \
top-1 97.0 % (source 98.0 %)   4 of 5

placement when measured   on                                 what runs where
────────────────────────────────────────────────────────────────────────────────
onnx-fp32                 onnxruntime 1.32 cpu, test CPU     98 % of MACs on npu, int8; 3 ops on cpu: Softmax, TopK

chain   runtime       device   variant
────────────────────────────────────────
1       onnxruntime   cpu      onnx-fp32

not kept        on             size      reason
───────────────────────────────────────────────────────────────────────────
openvino-int8   openvino/cpu   1.2 kB    slower than fp32: 0.80x
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def words(text: str) -> list[str]:
    """A text's words: wide tables wrap within their cells, narrow ones do not."""
    return text.replace("─", "").split()


def measured_bundle(folder: Path) -> Path:
    """The linear bundle with everything in its manifest that `convert` may write."""
    path = linear_bundle(folder)
    manifest = Bundle.open(path).manifest
    measured = Measured(
        runtime="onnxruntime",
        runtime_version="1.32",
        device="cpu",
        machine="test CPU",
        fidelity=Fidelity(50, 31.5, 0.999, 0.01, top1_agreement=0.98),
        latency_ms=0.25,
        speedup=2.5,
        inference_precision="int8",
        int8_compute_ops=4,
        compute_ops=5,
        accuracy=Accuracy(100, 0.97, 0.98, "0" * 64),
        placed=Placed(
            {"npu": 0.9, "cpu": 0.1}, {"npu": 0.98, "cpu": 0.02}, {"Softmax": 2, "TopK": 1}
        ),
    )
    recipe = Recipe(
        "static int8",
        "onnxruntime 1.32",
        scheme="U8S8",
        per_channel=True,
        calibration_method="minmax",
        calibration=Calibration("random", "0" * 64, 8, random=True),
    )
    variant = msgspec.structs.replace(manifest.variants[0], recipe=recipe, measured=(measured,))
    changed = msgspec.structs.replace(
        manifest,
        variants=(variant,),
        task=msgspec.structs.replace(
            manifest.task, kind="classification", preprocess=Preprocess(8, 8)
        ),
        rejected=(
            Rejected("openvino-int8", "openvino", "cpu", "int8", "slower than fp32: 0.80x", 1234),
        ),
    )
    (path / "manifest.json").write_bytes(encode(changed))
    return path


def test_an_onnx_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(linear_model(), file)
    code, out, _ = run(capsys, "inspect", str(file), "--json")
    assert code == 0
    report = json.loads(out)
    code, out, err = run(capsys, "inspect", str(file))
    assert (code, err) == (0, "")
    wanted = MODEL.format(path=file, sha256=report["files"][0]["sha256"])
    assert [line.split() for line in out.splitlines()] == [
        line.split() for line in wanted.splitlines()
    ]


def test_a_bundle_with_all_there_is_to_show(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = measured_bundle(tmp_path)
    code, out, _ = run(capsys, "inspect", str(path), "--json")
    assert code == 0
    report = json.loads(out)
    assert report["manifest"]["rejected"][0]["reason"] == "slower than fp32: 0.80x"
    assert report["verified_files"] == 3
    monkeypatch.setattr("edgeserve.cli.output.stdout_console", _wide_console)
    code, out, err = run(capsys, "inspect", str(path))
    assert (code, err) == (0, "")
    head, _, parts = out.partition("part ")
    manifest = report["manifest"]
    digest = manifest["source"]["sha256"][:12]
    assert words(head) == words(
        BUNDLE.format(path=path, created=manifest["created"], sha256=digest)
    )
    assert "golden samples" in parts
    assert out.splitlines()[-1] == f"measure it here: edgeserve bench {path}"


@pytest.mark.slow
def test_candidates_are_opened_and_say_what_runs_where(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeserve.cli.output.stdout_console", _wide_console)
    npu = Candidate("onnx-fp32", "openvino", "npu")
    cpu = Candidate("onnx-fp32", "onnxruntime", "cpu")
    path = linear_bundle(tmp_path, chain=(npu, cpu))
    code, out, err = run(capsys, "inspect", str(path), "--placement")
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    assert "openvino/npu/onnx-fp32 does not serve here: openvino" in text
    assert "100 % of operations on cpu, fp32" in text or "100 % of MACs on cpu, fp32" in text
    code, out, _ = run(capsys, "inspect", str(path), "--placement", "--json")
    found = json.loads(out)["placements"]
    assert [p["candidate"] for p in found] == [npu.label, cpu.label]
    assert found[0]["placement"] is None
    assert "npu" in found[0]["problem"]
    assert found[1]["placement"]["shares"] == {"cpu": 1.0}
    assert found[1]["golden_error"] < 1e-6
    assert json.loads(run(capsys, "inspect", str(path), "--json")[1])["placements"] == []


def test_a_model_file_has_no_placement(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(linear_model(), file)
    code, _, err = run(capsys, "inspect", str(file), "--placement")
    assert code == 2
    assert f"error: {file} is not a bundle" in err


def _wide_console() -> object:
    from rich.console import Console

    return Console(width=400, highlight=False)


def _tampered(folder: Path) -> Path:
    path = linear_bundle(folder)
    model = path / "onnx-fp32" / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    return path


def _newer(folder: Path) -> Path:
    path = linear_bundle(folder)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace('"1.0"', '"2.0"'))
    return path


def _escaping(folder: Path) -> Path:
    path = linear_bundle(folder)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace("onnx-fp32/model", "../model"))
    return path


def _truncated(folder: Path) -> Path:
    file = folder / "cut.onnx"
    file.write_bytes(linear_model().SerializeToString()[:120])
    return file


def _text(folder: Path) -> Path:
    file = folder / "notes.onnx"
    file.write_text("hello, world\n")
    return file


def _without_data(folder: Path) -> Path:
    file = folder / "split.onnx"
    onnx.save_model(
        linear_model(), file, save_as_external_data=True, location="split.data", size_threshold=0
    )
    (folder / "split.data").unlink()
    return file


@pytest.mark.parametrize(
    ("make", "error", "hint"),
    [
        (_tampered, "is not the file the bundle was written with", "copy the bundle again"),
        (_newer, "has schema version 2.0, this edgeserve reads 1.0", "install a newer edgeserve"),
        (_escaping, "names a file outside the bundle", "do not use this bundle"),
        (lambda folder: folder, "is not a bundle", "a bundle is the folder"),
        (_truncated, "is not a whole ONNX model", "it may be truncated"),
        (_text, "is not an ONNX model", "edgeserve inspect reads"),
        (_without_data, "lacks its external data", "copy split.data into"),
        (lambda folder: folder / "absent", "cannot be read", "edgeserve inspect reads"),
    ],
)
def test_what_cannot_be_inspected_says_why_and_exits_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    make: Callable[[Path], Path],
    error: str,
    hint: str,
) -> None:
    path = make(tmp_path)
    code, out, err = run(capsys, "inspect", str(path))
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[-1].startswith(f"hint: {hint}")


def test_files_nobody_vouches_for_are_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = linear_bundle(tmp_path)
    (path / "extra.bin").write_bytes(b"?")
    code, out, _ = run(capsys, "inspect", str(path))
    assert code == 0
    assert "unlisted    extra.bin is not in the manifest" in out.splitlines()


@pytest.mark.parametrize(
    ("package", "content", "extra"),
    [
        ("onnx", linear_model().SerializeToString(), "convert"),
        ("openvino", b'<?xml version="1.0"?><net name="a" version="11"></net>', "openvino"),
        ("ai_edge_litert", b"\x18\0\0\0TFL3\0\0\0\0", "litert"),
    ],
)
def test_a_missing_reader_is_named_with_its_pip_command_and_exits_3(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    content: bytes,
    extra: str,
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # what `import` sees of an absent package
    file = tmp_path / "model"
    file.write_bytes(content)
    code, out, err = run(capsys, "inspect", str(file))
    assert (code, out) == (3, "")
    assert err.splitlines()[-1] == f"hint: pip install 'edgeserve[{extra}]'"
