"""The wheelhouse: wheels for another machine, complete and nothing beside them; edgeserve's own wheel."""

from __future__ import annotations

import base64
import csv
import email.parser
import hashlib
import importlib.util
import io
import json
import sys
import zipfile
from collections.abc import Iterable, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlparse

from edgeserve import pip
from edgeserve.errors import DependencyMissing, EnvironmentProblem
from edgeserve.packaging.device import Device
from edgeserve.packaging.requirements import canonical, constraints, parse
from edgeserve.progress import Say

# Written by the installer, not part of a wheel.
_INSTALLERS_OWN: Final = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json"}
_ROUNDS: Final = 5


def fill(
    wheels: Path,
    work: Path,
    needed: Sequence[str],
    device: Device,
    wheelhouse: Path | None,
    say: Say,
) -> None:
    """Put into `wheels` what `needed` requires on `device`, and nothing else.

    pip evaluates markers ("only for Python before 3.13") for the machine it runs on. So what the
    wheels themselves ask for is checked for the device afterwards, missing ones are fetched, and
    superfluous ones dropped. Raises EnvironmentProblem with pip's own words.
    """
    pinned = work / "constraints.txt"
    pinned.write_text("\n".join(constraints()) + "\n", "utf-8")
    missing = list(needed)
    for _ in range(_ROUNDS):
        _download(missing, wheels, pinned, device, wheelhouse, say)
        reached, missing = _closure(wheels, needed, device)
        if not missing:
            break
    else:
        raise EnvironmentProblem("the wheelhouse is incomplete", cause=", ".join(missing))
    for name, wheel in _by_name(wheels).items():
        if name not in reached:
            wheel.unlink()


def fill_pip(tools: Path, wheelhouse: Path | None, say: Say) -> None:
    """Put pip's wheel into `tools`: it installs from the zip, so the device need not have one."""
    bundled = _ensurepip_wheel()
    if bundled is not None:
        (tools / bundled.name).write_bytes(bundled.read_bytes())
        return
    command = [*_pip(), "download", *pip.OPTIONS, "--no-deps", *_where(wheelhouse)]
    _run([*command, "--only-binary=:all:", "-d", str(tools), "pip"], "pip", say)


def own_wheel(folder: Path, work: Path, say: Say) -> Path:
    """edgeserve's wheel: built from the checkout it runs from, or packed again as it is installed."""
    dist = distribution("edgeserve")
    checkout = _checkout(dist)
    if checkout is None:
        return repack(dist, folder)
    say("building edgeserve's wheel", None)
    # With the build backend at hand nothing needs to be downloaded for it.
    here = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    _run(
        [*_pip(), "wheel", *pip.OPTIONS, "--no-deps", *here, "-w", str(folder), str(checkout)],
        "edgeserve",
        say,
    )
    return next(folder.glob("edgeserve-*.whl"))


def repack(dist: Distribution, folder: Path) -> Path:
    """A wheel of an installed pure-Python distribution, from the files its RECORD lists.

    Scripts are left out: the installer makes them again from the entry points.
    """
    info = f"{dist.name.replace('-', '_')}-{dist.version}.dist-info"
    wheel = folder / f"{dist.name.replace('-', '_')}-{dist.version}-py3-none-any.whl"
    rows: list[tuple[str, str, str]] = []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(dist.files or [], key=str):
            if file.suffix == ".pyc" or file.name in _INSTALLERS_OWN or ".." in file.parts:
                continue
            data = Path(str(file.locate())).read_bytes()
            archive.writestr(file.as_posix(), data)
            rows.append((file.as_posix(), _record_digest(data), str(len(data))))
        if not rows:
            raise EnvironmentProblem(
                "edgeserve's own files are not known",
                cause=f"{dist.name} {dist.version} is installed without a RECORD",
                hint="install it with pip",
            )
        record = io.StringIO()
        csv.writer(record, lineterminator="\n").writerows([*rows, (f"{info}/RECORD", "", "")])
        archive.writestr(f"{info}/RECORD", record.getvalue())
    return wheel


def unpacked_bytes(wheel: Path) -> int:
    """What a wheel takes once installed, compiled bytecode aside."""
    with zipfile.ZipFile(wheel) as archive:
        return sum(info.file_size for info in archive.infolist())


def name_and_version(wheel: Path) -> tuple[str, str]:
    """From a wheel's file name (PEP 427)."""
    name, number, *_ = wheel.name.split("-")
    return canonical(name), number


def _record_digest(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"sha256={digest}"


def _checkout(dist: Distribution) -> Path | None:
    """The folder an editable install runs from."""
    text = dist.read_text("direct_url.json")
    record = json.loads(text) if text else {}
    if not record.get("dir_info", {}).get("editable"):
        return None
    return Path(unquote(urlparse(record["url"]).path))


def _download(
    needed: Sequence[str],
    wheels: Path,
    pinned: Path,
    device: Device,
    wheelhouse: Path | None,
    say: Say,
) -> None:
    command = [*_pip(), "download", *pip.OPTIONS, *_where(wheelhouse), *device.pip_arguments()]
    command += ["--constraint", str(pinned), "-d", str(wheels), *needed]
    _run(command, f"wheels for {device.arch}, Python {device.python_text}", say)


def _where(wheelhouse: Path | None) -> list[str]:
    if wheelhouse is None:
        return ["--retries", "2"]
    return ["--no-index", "--find-links", str(wheelhouse.resolve())]


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is None:
        raise DependencyMissing("pip", needed_for="edgeserve package")
    return [sys.executable, "-m", "pip"]


def _run(command: list[str], about: str, say: Say) -> None:
    say(f"collecting {about}", None)
    done = pip.run(command, pip.telling(about, say))
    if done.code != 0:
        raise EnvironmentProblem(
            f"pip cannot provide {about}",
            cause=done.cause,
            hint=done.hint("name a folder of wheels with --wheelhouse")
            + "; --runtime leaves out engines that are not made for this device",
        )


def _ensurepip_wheel() -> Path | None:
    spec = importlib.util.find_spec("ensurepip")
    if spec is None or spec.origin is None:
        return None
    return next(iter((Path(spec.origin).parent / "_bundled").glob("pip-*.whl")), None)


def _by_name(wheels: Path) -> dict[str, Path]:
    return {name_and_version(wheel)[0]: wheel for wheel in sorted(wheels.glob("*.whl"))}


def _closure(wheels: Path, needed: Iterable[str], device: Device) -> tuple[set[str], list[str]]:
    """What is reached from `needed` over the wheels' own requirements, and what is not there."""
    present = _by_name(wheels)
    reached: set[str] = set()
    missing: dict[str, None] = {}
    waiting = [parse(text) for text in needed]
    while waiting:
        requirement = waiting.pop()
        name = canonical(requirement.name)
        if name not in present:
            missing[f"{requirement.name}{requirement.specifier}"] = None
        elif name not in reached:
            reached.add(name)
            extras = ["", *requirement.extras]
            waiting += [
                r
                for r in map(parse, _requires(present[name]))
                if r.marker is None
                or any(r.marker.evaluate({**device.markers(), "extra": e}) for e in extras)
            ]
    return reached, list(missing)


def _requires(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        path = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        message = email.parser.BytesParser().parsebytes(archive.read(path), headersonly=True)
    return [str(value) for value in message.get_all("Requires-Dist", [])]
