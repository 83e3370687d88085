"""The package folder: what is in it, what its installer refuses, and that it serves without a network."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.bundle import Bundle, Candidate
from edgeserve.bundle.manifest import MANIFEST_NAME
from edgeserve.errors import EnvironmentProblem, OutputExists, UsageError
from edgeserve.packaging import DevicePackage, PackageOptions, package
from edgeserve.packaging.device import device
from edgeserve.packaging.folder import safe_name
from edgeserve.packaging.requirements import parse, requirements
from edgeserve.packaging.wheels import own_wheel
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear, linear_bundle
from tests.conversion.wheels import write_wheel
from tests.packaging.bundles import two_runtimes


def quiet(what: str, share: float | None) -> None:
    pass


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheelhouse of empty wheels with the names and versions that real ones would have."""
    folder = tmp_path_factory.mktemp("house")
    chain = [Candidate("v", name, "cpu") for name in ("onnxruntime", "litert", "openvino")]
    for text in requirements(chain, device(), ("grpc", "images")):
        name = parse(text).name
        try:
            number = version(name)
        except PackageNotFoundError:
            number = "999"
        write_wheel(folder, name.replace("-", "_"), "", version=number)
    return folder


def written(source: Path, out: Path, house: Path, **options: Any) -> DevicePackage:
    return package(source, out, PackageOptions(wheelhouse=str(house), **options), quiet)


@pytest.fixture(scope="module", autouse=True)
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """edgeserve's own wheel is the same in every package: it is built once."""
    folder = tmp_path_factory.mktemp("own")
    wheel = own_wheel(folder, folder, quiet)

    def copied(folder: Path, work: Path, say: object) -> Path:
        return shutil.copy(wheel, folder / wheel.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeserve.packaging.folder.own_wheel", copied)
        yield


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, house: Path) -> Path:
    """A package of `linear` for this machine, for tests that change nothing in it."""
    folder = tmp_path_factory.mktemp("plain")
    written(linear_bundle(folder), folder / "package", house)
    return folder / "package"


def wheel_names(folder: Path) -> set[str]:
    return {wheel.name.partition("-")[0] for wheel in (folder / "wheels").iterdir()}


def test_everything_the_device_needs_and_no_other_engine(tmp_path: Path, house: Path) -> None:
    out = tmp_path / "package"
    made = written(two_runtimes(tmp_path), out, house, runtimes=("litert",), http_port=9000)
    names = wheel_names(out)
    assert {"edgeserve", "ai_edge_litert", "numpy"} <= names
    assert not names & {"onnxruntime", "openvino", "onnx", "grpcio", "pillow"}
    assert {p.name for p in out.iterdir()} == {
        "README.txt", "SHA256SUMS", "edgeserve-linear.service", "install.sh", "linear.edge",
        "package.json", "serve.toml", "tools", "wheels",
    }  # fmt: skip
    bundle = Bundle.open(out / "linear.edge")
    bundle.verify()
    assert [v.id for v in bundle.manifest.variants] == ["tflite-int8"]
    serve = tomllib.loads((out / "serve.toml").read_text())
    assert serve == {"bundle": "linear.edge", "host": "localhost", "http_port": 9000}
    assert os.access(out / "install.sh", os.X_OK)
    assert sum(p.packed_bytes for p in made.parts) == made.packed_bytes
    assert {"linear.edge", "edgeserve", "numpy", "pip (tools)"} <= {p.name for p in made.parts}


def test_nothing_tells_where_it_was_made(plain: Path) -> None:
    for file in plain.iterdir():
        if file.is_file():
            text = file.read_text("utf-8")
            assert str(plain.parent) not in text
            assert not re.search(
                r"@[A-Z_]+@(?!@)", text.replace("@@HERE@@", "").replace("@@VENV@@", "")
            )
            assert "://" not in text or file.suffix in (".txt", ".service")


def test_the_sums_cover_every_file(plain: Path) -> None:
    listed = {line.split("  ", 1)[1] for line in (plain / "SHA256SUMS").read_text().splitlines()}
    there = {p.relative_to(plain).as_posix() for p in plain.rglob("*") if p.is_file()}
    assert listed == there - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=plain, check=True)


def test_an_existing_folder_is_replaced_only_when_it_is_a_package(
    tmp_path: Path, house: Path, plain: Path
) -> None:
    out, bundle = tmp_path / "package", linear_bundle(tmp_path)
    shutil.copytree(plain, out)
    with pytest.raises(OutputExists):
        written(bundle, out, house)
    (out / "old").touch()
    written(bundle, out, house, force=True)
    assert not (out / "old").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "letter").touch()
    with pytest.raises(UsageError, match="is not a package"):
        written(bundle, mine, house, force=True)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    bundle = linear_bundle(tmp_path)
    (tmp_path / "empty").mkdir()
    before = set(tmp_path.iterdir())
    with pytest.raises(EnvironmentProblem, match="pip cannot provide wheels"):
        written(bundle, tmp_path / "package", tmp_path / "empty")
    assert set(tmp_path.iterdir()) == before


def test_a_wheelhouse_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--wheelhouse"):
        written(linear_bundle(tmp_path), tmp_path / "package", tmp_path / "nowhere")


def test_a_host_that_the_server_would_refuse_is_refused(tmp_path: Path, house: Path) -> None:
    bundle, out = linear_bundle(tmp_path), tmp_path / "package"
    with pytest.raises(UsageError, match="open to the network"):
        written(bundle, out, house, host="0.0.0.0")
    written(bundle, out, house, host="0.0.0.0", insecure=True)
    serve = tomllib.loads((out / "serve.toml").read_text())
    assert (serve["host"], serve["insecure"]) == ("0.0.0.0", True)


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("resnet-50", "resnet-50"),
        ("my model (v2)", "my-model-v2"),
        ("../x; rm", "x-rm"),
        ("…", "model"),
    ],
)
def test_model_names_become_safe_words(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def install(out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", out / "install.sh", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_another_architecture_is_refused_by_the_installer(tmp_path: Path, house: Path) -> None:
    other = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    out = tmp_path / "package"
    written(linear_bundle(tmp_path), out, house, arch=other)
    run = install(out)
    assert run.returncode == 3
    assert f"this package is for {other}, this machine is {platform.machine()}" in run.stderr
    assert not (out / "venv").exists()


def test_another_python_is_refused_by_the_installer(tmp_path: Path, house: Path) -> None:
    out = tmp_path / "package"
    written(linear_bundle(tmp_path), out, house, python="3.99")
    run = install(out)
    assert run.returncode == 3
    assert "error: this package needs Python 3.99" in run.stderr
    assert "PYTHON=/path/to/python3.99" in run.stderr


def test_a_damaged_package_is_refused_by_the_installer(tmp_path: Path, plain: Path) -> None:
    out = tmp_path / "package"
    shutil.copytree(plain, out)
    (out / "linear.edge" / "golden-inputs.npz").write_bytes(b"")
    run = install(out, PYTHON=sys.executable)
    assert run.returncode == 3
    assert "error: the package is damaged" in run.stderr


def test_the_unit_is_one_that_systemd_reads(tmp_path: Path, plain: Path) -> None:
    unit = tmp_path / "edgeserve-linear.service"
    text = (plain / unit.name).read_text()
    for line in ("DynamicUser=yes", "ProtectSystem=strict", "NoNewPrivileges=yes",
                 "PrivateDevices=yes", "ExecReload=/bin/kill -HUP $MAINPID", "LimitNOFILE=65536",
                 "TimeoutStopSec=60"):  # fmt: skip
        assert line in text
    settings = Settings()
    assert settings.lame_duck + settings.drain_timeout + 15 < 60
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here; the text alone was checked")
    unit.write_text(text.replace("@@VENV@@/bin/edgeserve", "/bin/true").replace("@@HERE@@", "/"))
    run = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert "edgeserve-linear.service" not in run.stderr


def test_what_decodes_images_travels_with_a_bundle_that_takes_them(
    tmp_path: Path, house: Path
) -> None:
    bundle, out = linear_bundle(tmp_path), tmp_path / "package"
    manifest = json.loads((bundle / MANIFEST_NAME).read_bytes())
    manifest["task"]["preprocess"] = {"kind": "image", "height": 1, "width": 1}
    (bundle / MANIFEST_NAME).write_text(json.dumps(manifest))
    written(bundle, out, house)
    assert "pillow" in {name.lower() for name in wheel_names(out)}


def test_grpc_travels_where_its_port_is_asked_for(tmp_path: Path, house: Path) -> None:
    out = tmp_path / "package"
    written(linear_bundle(tmp_path), out, house, grpc_port=8001)
    assert {"grpcio", "grpcio_health_checking", "grpcio_reflection"} <= wheel_names(out)
    assert tomllib.loads((out / "serve.toml").read_text())["grpc_port"] == 8001
    (wheel,) = (out / "wheels").glob("edgeserve-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "edgeserve/wire/messages.binpb" in archive.namelist()


@pytest.fixture(scope="module")
def device_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real package from the package index, installed with no index in reach."""
    folder = tmp_path_factory.mktemp("device")
    out = folder / "package"
    package(linear_bundle(folder), out, PackageOptions(http_port=0), quiet)
    run = install(out, PIP_NO_INDEX="1", PIP_INDEX_URL="http://127.0.0.1:9/", PYTHON=sys.executable)
    assert run.returncode == 0, run.stderr
    return out


@pytest.mark.slow
def test_the_installed_package_has_what_it_needs_and_no_more(device_install: Path) -> None:
    code = (
        "import importlib.util as u; print([n for n in "
        "('edgeserve', 'numpy', 'onnxruntime', 'onnx', 'openvino', 'ai_edge_litert', 'nncf', 'PIL', "
        "'pip', 'torch') if u.find_spec(n)])"
    )
    python = device_install / "venv" / "bin" / "python"
    run = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['edgeserve', 'numpy', 'onnxruntime']"


@pytest.fixture
def served(device_install: Path) -> Iterator[str]:
    """The installed package's own server; its address is in what it logs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = device_install / "serve.toml"
    config.write_text(config.read_text().replace("http_port = 0", f"http_port = {port}"))
    process = subprocess.Popen(
        [device_install / "venv" / "bin" / "edgeserve", "run", "--config", config],
        env={"PATH": os.environ["PATH"], "HOME": str(device_install)},
        cwd="/",
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server does not get ready"
        try:
            with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=1):
                break
        except OSError:
            time.sleep(0.05)
    yield address
    process.terminate()
    assert process.wait(15) == 0


@pytest.mark.slow
def test_the_installed_package_serves(served: str) -> None:
    inputs = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    tensor = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": inputs.ravel().tolist()}
    request = urllib.request.Request(
        f"{served}/v2/models/linear/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        (output,) = json.load(response)["outputs"]
    got = np.array(output["data"], np.float32).reshape(output["shape"])
    np.testing.assert_allclose(got, linear(inputs), atol=1e-5)
