"""The wheelhouse, filled from a folder of tiny wheels; edgeserve's own wheel packed again."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from edgeserve.errors import EnvironmentProblem
from edgeserve.packaging.device import Device
from edgeserve.packaging.wheels import fill, fill_pip, own_wheel, repack, unpacked_bytes
from tests.conversion.wheels import write_wheel


def quiet(what: str, share: float | None) -> None:
    pass


def filled(tmp_path: Path, *needed: str, python: tuple[int, int] = (3, 11)) -> set[str]:
    wheels, work = tmp_path / "wheels", tmp_path / "work"
    wheels.mkdir()
    work.mkdir()
    fill(wheels, work, needed, Device("aarch64", python), tmp_path / "house", quiet)
    return {wheel.name.partition("-")[0] for wheel in wheels.iterdir()}


def test_markers_are_those_of_the_device(tmp_path: Path) -> None:
    """pip evaluates them for the Python it runs on, which is another one here."""
    other = (3, sys.version_info[1] + 1)
    house = tmp_path / "house"
    needs = (
        f"only_there; python_version >= '3.{other[1]}'",
        f"only_here; python_version < '3.{other[1]}'",
        "deep; platform_machine == 'aarch64'",
        "tests; extra == 'test'",
    )
    write_wheel(house, "tool", "", needs)
    for name in ("only_there", "only_here", "deep", "tests"):
        write_wheel(house, name, "", ("base",) if name == "only_there" else ())
    write_wheel(house, "base", "")
    assert filled(tmp_path, "tool", python=other) == {"tool", "only_there", "deep", "base"}


def test_what_the_wheelhouse_lacks_is_told_in_pips_words(tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", "tool", "", ("absent>=2",))
    with pytest.raises(EnvironmentProblem, match="pip cannot provide wheels for aarch64") as raised:
        filled(tmp_path, "tool")
    assert "absent>=2" in str(raised.value.cause)
    assert "--runtime leaves out" in str(raised.value.hint)
    assert raised.value.exit_code == 3


def test_pip_comes_along(tmp_path: Path) -> None:
    fill_pip(tmp_path, tmp_path, quiet)
    (wheel,) = tmp_path.glob("pip-*.whl")
    run = subprocess.run(
        [sys.executable, "-I", f"{wheel}/pip", "--version"], capture_output=True, text=True
    )
    assert run.stdout.startswith("pip ")


@pytest.mark.slow
def test_an_installed_distribution_is_packed_again(tmp_path: Path) -> None:
    """Installed by pip, packed, installed elsewhere: the same files, and its command runs."""
    first, second = tmp_path / "first", tmp_path / "second"
    wheel = write_wheel(tmp_path, "tinytool", "def main():\n    print('hello')\n")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(
            "tinytool-1.0.dist-info/entry_points.txt", "[console_scripts]\ntiny = tinytool:main\n"
        )
    _install(wheel, first)
    (info,) = first.glob("*.dist-info")
    again = repack(PathDistribution(info), tmp_path / "house")
    _install(again, second)
    assert (second / "tinytool.py").read_text() == (first / "tinytool.py").read_text()
    assert (second / "bin" / "tiny").exists()
    assert unpacked_bytes(again) > 0


def _install(wheel: Path, target: Path) -> None:
    (wheel.parent / "house").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*command, "--disable-pip-version-check", "--target", target, wheel], check=True)


@pytest.mark.slow
def test_the_checkouts_wheel_holds_code_targets_and_templates(tmp_path: Path) -> None:
    wheel = own_wheel(tmp_path, tmp_path, quiet)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "edgeserve/packaging/files/install.sh.in" in names
    assert "edgeserve/_targets/cpu-x86.toml" in names
    assert "edgeserve_converters/onnx_to_onnx.py" in names
    assert not any(name.startswith("tests/") for name in names)
