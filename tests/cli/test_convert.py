"""`edgeserve convert` as its users call it."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import quote

import pytest

from edgeserve.quantize import RECIPES
from edgeserve.serve.settings.server import Settings
from tests.commands import edgeserve
from tests.serve.background import Background

DATA = Path(__file__).resolve().parents[2] / "edgeserve" / "demo" / "files"


def convert(*arguments: str, cwd: Path) -> CompletedProcess[str]:
    return edgeserve("convert", *arguments, cwd=cwd)


def test_the_report_names_every_variant_and_the_next_step(tmp_path: Path) -> None:
    done = convert(
        str(DATA / "digits.onnx"),
        *("--calibrate", str(DATA / "digits-calibration.npz")),
        *("--eval", str(DATA / "digits-samples.npz")),
        *("--labels", str(DATA / "digits-labels.txt")),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "onnx-int8" in done.stdout
    assert "5 of 5" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next: edgeserve bench digits.edge")
    assert (tmp_path / "digits.edge" / "labels.txt").read_text().split() == list("0123456789")


def test_json_is_the_whole_report_and_nothing_else(tmp_path: Path) -> None:
    done = convert(
        str(DATA / "digits.onnx"), "-o", "out/d.edge", "--precision", "fp32", "--json", cwd=tmp_path
    )
    report = json.loads(done.stdout)
    assert report["bundle"] == "out/d.edge"
    assert all(row["precision"] == "fp32" for row in report["rows"])
    assert report["chain"][0]["device"] == "cpu"


def test_images_and_preprocessing_flags(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    (tmp_path / "images").mkdir()
    with np.load(DATA / "digits-samples.npz") as data:
        rows = ["file,label"]
        for i in range(60):
            pixels = np.round(data["image"][i, 0] * 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
            rows.append(f"{i}.png,{data['label'][i]}")
    (tmp_path / "images" / "labels.csv").write_text("\n".join(rows))
    done = convert(
        str(DATA / "digits.onnx"),
        *("--calibrate", "images", "--eval", "images/labels.csv", "--image-size", "8"),
        *("--channels", "L", "--std", "255", "--recipe", "static", "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["reference_accuracy"] >= 0.95
    manifest = json.loads((tmp_path / "digits.edge" / "manifest.json").read_text())
    assert manifest["task"]["preprocess"]["channels"] == "L"


def test_several_targets_get_a_bundle_each(tmp_path: Path) -> None:
    done = convert(
        str(DATA / "digits.onnx"), "-o", "all", "--target", "jetson-orin", "--target",
        "webgpu", "--precision", "fp32", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 of 2 bundles are in all" in done.stdout
    names = sorted(p.name for p in (tmp_path / "all").iterdir())
    assert names == ["digits-jetson-orin.edge", "digits-webgpu.edge"]
    notes = [line for line in done.stdout.splitlines() if line.startswith("note: ")]
    assert any(note.startswith("note: jetson-orin: Nothing was run on") for note in notes)
    assert len(notes) == len(set(notes))


def test_a_target_without_bundle_is_named_and_the_others_are_made(tmp_path: Path) -> None:
    done = convert(
        str(DATA / "digits.onnx"), "-o", "all", "--target", "cpu-arm64", "--target",
        "coral-edgetpu", "--no-tool-env", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no variant for the cpu of target coral-edgetpu" in done.stderr
    assert [p.name for p in (tmp_path / "all").iterdir()] == ["digits-cpu-arm64.edge"]


def test_a_type_that_is_none_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    done = convert(str(DATA / "digits.onnx"), "--input-type", "image=float31", cwd=tmp_path)
    assert done.returncode == 2
    assert "--input-type image=float31 is not INPUT=TYPE" in done.stderr
    assert "float32" in done.stderr


def test_help_names_every_recipe_there_is(tmp_path: Path) -> None:
    words = " ".join(convert("--help", cwd=tmp_path).stdout.replace("-\n", "-").split())
    listed = words.partition("Try only this recipe for int8 and int4: ")[2].partition(". May")[0]
    assert set(listed.replace("- ", "-").split(", ")) == RECIPES.keys() - {"plain", "cast"}


@pytest.mark.parametrize(
    ("file", "flags", "name"),
    [
        ("modèle.onnx", (), "modèle"),
        ("模型 (v2).onnx", (), "模型-v2"),
        ("model.onnx", ("--name", "größe"), "größe"),
    ],
)
def test_whatever_a_file_is_called_the_bundle_can_be_served(
    tmp_path: Path, file: str, flags: tuple[str, ...], name: str
) -> None:
    shutil.copy(DATA / "digits.onnx", tmp_path / file)
    done = convert(file, "--precision", "fp32", "-o", "it.edge", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Background(Settings(bundle=str(tmp_path / "it.edge"), http_port=0)) as server:
        with urllib.request.urlopen(f"{server.url}/v2/models/{quote(name)}") as answer:
            assert json.load(answer)["name"] == name
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            assert f'model="{name}"' in answer.read().decode()
