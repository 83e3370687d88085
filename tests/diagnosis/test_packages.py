"""Clashes of packages, on folders that look like installed ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.diagnosis.packages import (
    InstalledPackage,
    installed_packages,
    onnxruntime_on_disk,
    package_findings,
)


def install(site: Path, name: str, version: str, *requires: str, module: str | None = None) -> None:
    """A distribution as pip leaves it; `module` is the package whose files it brings."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {r}" for r in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    record = f"{module}/__init__.py,,\n" if module else f"{name}.py,,\n"
    (info / "RECORD").write_text(record)


def texts(site: Path, on_disk: str | None = None) -> list[tuple[str, str, str | None]]:
    packages = installed_packages([str(site)])
    return [(f.level, f.text, f.command) for f in package_findings(packages, on_disk)]


def test_two_onnxruntimes_overwrite_each_other(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.32.0", module="onnxruntime")
    install(tmp_path, "onnxruntime_gpu", "1.31.1", module="onnxruntime")
    ((level, text, command),) = texts(tmp_path, on_disk="onnxruntime")
    assert level == "error"
    assert text == (
        "onnxruntime and onnxruntime-gpu both install the module onnxruntime and overwrite each other "
        "(the files there are onnxruntime's)"
    )
    assert command == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
    )


def test_plug_ins_beside_onnxruntime_do_not_clash(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.32.0", module="onnxruntime")
    install(tmp_path, "onnxruntime-ep-webgpu", "0.4.0", module="onnxruntime_ep_webgpu")
    install(tmp_path, "onnxruntime-qnn", "2.7.0", "onnxruntime>=1.24.2", module="onnxruntime_qnn")
    assert texts(tmp_path) == []


def test_a_plug_in_alone(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime-ep-webgpu", "0.4.0", module="onnxruntime_ep_webgpu")
    ((level, text, command),) = texts(tmp_path)
    assert (level, command) == ("error", "pip install 'onnxruntime>=1.24.4'")
    assert "onnxruntime-ep-webgpu is a plug-in" in text


def test_an_onnxruntime_older_than_its_plug_in_wants(tmp_path: Path) -> None:
    install(tmp_path, "onnxruntime", "1.20.0", module="onnxruntime")
    install(tmp_path, "onnxruntime-qnn", "2.7.0", "onnxruntime>=1.24.2", module="onnxruntime_qnn")
    assert texts(tmp_path) == [
        (
            "error",
            "onnxruntime-qnn needs onnxruntime>=1.24.2, and 1.20.0 is installed",
            "pip install 'onnxruntime>=1.24.2'",
        )
    ]


def test_a_numpy_that_an_engine_cannot_take(tmp_path: Path) -> None:
    install(tmp_path, "tflite-runtime", "2.14.0", "numpy<2,>=1.23.2", module="tflite_runtime")
    install(tmp_path, "numpy", "2.4.6", module="numpy")
    found = texts(tmp_path)
    assert [level for level, *_ in found] == ["warning", "error"]
    assert found[0][2] == "pip uninstall -y tflite-runtime && pip install ai-edge-litert"
    assert found[1][1] == "tflite-runtime needs numpy<2,>=1.23.2, and 2.4.6 is installed"


def test_extras_are_no_requirements(tmp_path: Path) -> None:
    install(tmp_path, "openvino", "2026.4.1", 'numpy<1 ; extra == "old"', module="openvino")
    install(tmp_path, "numpy", "2.4.6", module="numpy")
    assert texts(tmp_path) == []


def test_edgeserve_s_own_requirements_count() -> None:
    packages = [InstalledPackage("numpy", "1.20.0")]
    (finding,) = package_findings(packages, ours=["numpy>=1.26"])
    assert finding.text == "edgeserve needs numpy>=1.26, and 1.20.0 is installed"


def test_this_environment_is_in_order() -> None:
    packages = installed_packages()
    assert {"numpy", "onnxruntime"} <= {p.name for p in packages}
    assert [
        f for f in package_findings(packages, onnxruntime_on_disk()) if f.level == "error"
    ] == []
    assert onnxruntime_on_disk() == "onnxruntime"


@pytest.mark.parametrize("text", ["", "__version__ = '1'\n"])
def test_a_build_that_does_not_say_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    install(tmp_path, "onnxruntime", "1.0", module="onnxruntime")
    file = tmp_path / "onnxruntime/capi/build_and_package_info.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    (tmp_path / "onnxruntime-1.0.dist-info/RECORD").write_text(
        "onnxruntime/capi/build_and_package_info.py,,\n"
    )
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    assert onnxruntime_on_disk() is None
