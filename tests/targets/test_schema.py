"""Targets: the schema, its errors, where TOMLs are found."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.errors import TargetError
from edgeserve.targets.schema import (
    ChainEntry,
    Quantization,
    Target,
    TargetLimits,
    all_targets,
    load_target,
    misfits,
    parse_document,
    parse_target,
    take_unknown_fields,
    target_names,
)
from tests.distributions import write_distribution

ROOT = Path(__file__).parents[2]
MINIMAL = """
name = "mine"
title = "My board"
arch = ["aarch64"]

[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["int8", "fp32"]
"""
SHIPPED = {
    "amd-ryzen-ai": ["onnxruntime/npu", "onnxruntime/cpu"],
    "android-gpu": ["litert/gpu", "litert/cpu"],
    "apple-coreml": ["onnxruntime/gpu", "onnxruntime/cpu"],
    "coral-edgetpu": ["litert/cpu"],
    "cpu-arm64": ["onnxruntime/cpu", "litert/cpu"],
    "cpu-x86": ["openvino/cpu", "onnxruntime/cpu", "litert/cpu"],
    "cpu-x86-amx": ["openvino/cpu", "onnxruntime/cpu", "litert/cpu"],
    "cpu-x86-avx2": ["openvino/cpu", "onnxruntime/cpu"],
    "cpu-x86-vnni": ["openvino/cpu", "onnxruntime/cpu", "litert/cpu"],
    "graviton": ["onnxruntime/cpu", "litert/cpu"],
    "intel-dgpu": ["openvino/gpu.1", "openvino/cpu", "onnxruntime/cpu"],
    "intel-gpu": ["openvino/gpu", "openvino/cpu", "onnxruntime/cpu"],
    "intel-npu": ["openvino/npu", "openvino/cpu", "onnxruntime/cpu"],
    "jetson-orin": ["onnxruntime/gpu", "onnxruntime/cpu"],
    "mobile-cpu": ["litert/cpu", "onnxruntime/cpu"],
    "nvidia-gpu": ["onnxruntime/gpu", "onnxruntime/cpu"],
    "nvidia-tensorrt-rtx": ["onnxruntime/gpu", "onnxruntime/cpu"],
    "qualcomm-htp": ["onnxruntime/npu", "onnxruntime/cpu"],
    "qualcomm-htp-a8w8": ["onnxruntime/npu", "onnxruntime/cpu"],
    "raspberry-pi-4": ["onnxruntime/cpu", "litert/cpu"],
    "raspberry-pi-5": ["onnxruntime/cpu", "litert/cpu"],
    "rockchip-rk3588": ["onnxruntime/cpu"],
    "st-npu": ["onnxruntime/cpu"],
    "webgpu": ["onnxruntime/gpu", "onnxruntime/cpu"],
}


def test_shipped_targets_and_their_chains() -> None:
    assert {t.name: [e.label for e in t.chain] for t in all_targets()} == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_target_ends_on_a_cpu_and_cites_sources(name: str) -> None:
    target = load_target(name)
    assert target.chain[-1].device == "cpu"
    assert target.url
    comments = [
        line
        for line in (ROOT / "targets" / f"{name}.toml").read_text("utf-8").splitlines()
        if line.startswith("#")
    ]
    sources = ("://", "url above", "measured by the project")
    assert any(source in line for line in comments for source in sources)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_table_of_a_shipped_target_has_a_comment_or_follows_a_cited_one(name: str) -> None:
    text = (ROOT / "targets" / f"{name}.toml").read_text("utf-8")
    blocks = [block.splitlines() for block in text.split("\n\n")]
    first_chain, scheme = (
        next(b for b in blocks if table in b) for table in ("[[chain]]", "[quantization]")
    )
    assert first_chain[0].startswith("#")
    assert scheme[0].startswith("#")


@pytest.mark.parametrize("name", SHIPPED)
def test_convert_only_targets_say_what_is_unverified(name: str) -> None:
    target = load_target(name)
    assert target.unverified or not target.convert_only


@pytest.mark.parametrize("name", SHIPPED)
def test_a_line_of_the_documentation_describes_it(name: str) -> None:
    lines = (ROOT / "docs" / "targets.md").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith(f"| `{name}` |")]


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("cpu-x86-avx2", Quantization(reduce_range=True)),
        ("cpu-x86-vnni", Quantization()),
        ("qualcomm-htp", Quantization(False, "uint16", "uint8")),
        ("qualcomm-htp-a8w8", Quantization(False, "uint8", "uint8")),
        (
            "coral-edgetpu",
            Quantization(True, "int8", "int8", full_integer=True, per_channel_matmul=False),
        ),
        ("st-npu", Quantization(False, "uint8", "uint8")),
    ],
)
def test_schemes_that_hardware_depends_on(name: str, scheme: Quantization) -> None:
    assert load_target(name).quantization == scheme


def test_defaults_of_a_minimal_target() -> None:
    assert parse_target(MINIMAL.encode(), "mine.toml") == Target(
        name="mine",
        title="My board",
        arch=("aarch64",),
        chain=(ChainEntry("onnxruntime", "cpu", ("int8", "fp32")),),
        quantization=Quantization(True, "uint8", "int8", False, False, False),
        limits=TargetLimits(None),
        cpu_features=(),
        cpus=(),
        convert_only=False,
        unverified=None,
    )


def test_arch_is_compared_without_case() -> None:
    assert load_target("cpu-x86").runs_on("amd64")
    assert not load_target("cpu-x86").runs_on("aarch64")


@pytest.mark.parametrize("as_text", [False, True])
def test_a_path_is_accepted(tmp_path: Path, as_text: bool) -> None:
    file = tmp_path / "board.toml"
    file.write_text(MINIMAL)
    assert load_target(str(file) if as_text else file).name == "mine"


def test_unknown_name_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(TargetError, match="unknown target 'cpu_x68'") as caught:
        load_target("cpu_x68")
    assert caught.value.exit_code == 2
    assert caught.value.hint == f"did you mean 'cpu-x86'? known targets: {', '.join(SHIPPED)}"


def test_name_that_looks_like_nothing_known_lists_all() -> None:
    with pytest.raises(TargetError) as caught:
        load_target("zzzzzz")
    assert caught.value.hint == f"known targets: {', '.join(SHIPPED)}, or a path to a .toml"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.toml", "missing.toml does not exist"),
        ("folder.toml", "folder.toml cannot be read"),
        ("nul\0.toml", "cannot be read"),
    ],
)
def test_unreadable_paths(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(TargetError) as caught:
        load_target(tmp_path / path)
    assert caught.value.message.endswith(message)


@pytest.mark.parametrize(
    ("old", "new", "cause", "hint"),
    [
        ('name = "mine"', "name = ", "Invalid value", None),
        ('name = "mine"', "name = 3", "Expected `str`, got `int` - at `$.name`", None),
        ('name = "mine"', 'name = "a b"', "at `$.name`", "lower-case letters"),
        ('title = "My board"', "", "missing required field `title`", None),
        ('arch = ["aarch64"]', "arch = []", "length >= 1 - at `$.arch`", None),
        ('"int8", "fp32"', '"fp8"', "at `$.chain[0].precisions[0]`", "fp32, fp16, bf16, int8"),
        ('"int8", "fp32"', "", "length >= 1 - at `$.chain[0].precisions`", None),
        ('"int8", "fp32"', '"int8", "int8"', "onnxruntime/cpu list int8 twice", None),
        ('device = "cpu"', 'device = "tpu"', "at `$.chain[0].device`", "cpu, gpu or npu"),
        ('device = "cpu"', 'devise = "cpu"', "unknown field `devise`", "did you mean 'device'?"),
        ('title = "My board"', 'titel = "x"', "unknown field `titel`", "did you mean 'title'?"),
        (
            "[[chain]]",
            '[quantization]\nactivation_type = "int4"\n[[chain]]',
            "at `$.quantization.activation_type`",
            "known: uint8, int8, uint16, int16",
        ),
        (
            "[[chain]]",
            "[limits]\nmemory_mb = 0\n[[chain]]",
            "at `$.limits.memory_mb`",
            None,
        ),
        (
            "[[chain]]",
            "[limits]\ndisk = 3\n[[chain]]",
            "unknown field `disk`",
            "known fields: memory_mb",
        ),
        (
            "[[chain]]",
            '[[chain]]\nruntime = "onnxruntime"\ndevice = "cpu"\nprecisions = ["fp16"]\n[[chain]]',
            "lists onnxruntime/cpu twice",
            "put all precisions of a device into one entry",
        ),
        ("[[chain]]", "options = [1]\n[[chain]]", "unknown field `options`", None),
        (
            'runtime = "onnxruntime"',
            'runtime = "onnxruntime"\nnetworks = "matmuls"',
            "Invalid enum value 'matmuls'",
            "known: any, convolutional, matmul",
        ),
        (
            'runtime = "onnxruntime"',
            'runtime = "onnxruntime"\noptional = true',
            "the first chain entry cannot be optional",
            None,
        ),
        ('name = "mine"', 'name = "check"', "is reserved by the command line", "rename"),
        ('name = "mine"', 'name = "auto"', "is reserved by the command line", "rename"),
        (
            "[[chain]]",
            "convert_only = true\n[[chain]]",
            "must state in `unverified`",
            "unverified =",
        ),
        ("[[chain]]", 'unverified = ""\n[[chain]]', "length >= 1 - at `$.unverified`", None),
        (
            "[[chain]]",
            'cpu_features = ["AVX2"]\n[[chain]]',
            "at `$.cpu_features[0]`",
            "names as in /proc/cpuinfo",
        ),
        (
            "[[chain]]",
            "[quantization]\nreduced_range = true\n[[chain]]",
            "unknown field `reduced_range`",
            "did you mean 'reduce_range'?",
        ),
    ],
)
def test_an_invalid_target_names_file_field_and_what_was_expected(
    old: str, new: str, cause: str, hint: str | None
) -> None:
    with pytest.raises(TargetError) as caught:
        parse_target(MINIMAL.replace(old, new, 1).encode(), "mine.toml")
    assert caught.value.message.startswith("mine.toml is not ")
    assert cause in str(caught.value.cause)
    assert hint is None or hint in str(caught.value.hint)


def test_two_providers_of_one_device_are_two_entries() -> None:
    entry = '[[chain]]\nruntime = "onnxruntime"\ndevice = "gpu"\nprecisions = ["fp32"]\n'
    text = (
        'name = "two"\ntitle = "t"\narch = ["x86_64"]\n'
        + entry
        + 'options = { provider = "A" }\n'
        + entry
        + 'options = { provider = "B", count = 2, ratio = 0.5, on = true }\n'
    )
    target = parse_target(text.encode(), "two.toml")
    assert target.chain[1].options == {"provider": "B", "count": 2, "ratio": 0.5, "on": True}


# --- any input ------------------------------------------------------------------------------------

toml_keys = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8)
schema_words = st.sampled_from(
    sorted({*Target.__struct_fields__, *ChainEntry.__struct_fields__, "memory_mb", "per_channel"})
)
toml_values = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        toml_keys,
        st.sampled_from(["fp32", "int8", "cpu", "gpu.1", "uint8"]),
        st.dates().map(lambda d: _Raw(d.isoformat())),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(schema_words | toml_keys, inner, max_size=5)
    ),
    max_leaves=12,
)


class _Raw(str):
    """Text that goes into TOML without quotes."""


def to_toml(value: Any) -> str:
    if isinstance(value, _Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {to_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_toml(v) for v in value) + "]"
    if isinstance(value, float):
        return repr(value) if "." in repr(value) or "e" in repr(value) else f"{value!r}.0"
    return json.dumps(value)


def document(values: dict[str, Any]) -> bytes:
    return "\n".join(f"{json.dumps(k)} = {to_toml(v)}" for k, v in values.items()).encode()


@given(st.one_of(st.binary(), st.text().map(str.encode)))
def test_any_bytes_raise_nothing_but_target_error(data: bytes) -> None:
    with contextlib.suppress(TargetError):
        parse_target(data, "any.toml")


@given(st.dictionaries(schema_words | toml_keys, toml_values, max_size=9))
def test_any_toml_raises_nothing_but_target_error(values: dict[str, Any]) -> None:
    with contextlib.suppress(TargetError):
        parse_target(document(values), "any.toml")


@given(st.dictionaries(schema_words | toml_keys, toml_values, max_size=9))
def test_misfits_are_found_exactly_where_the_schema_refuses(values: dict[str, Any]) -> None:
    parsed = parse_document(document(values), "any.toml")
    take_unknown_fields(parsed)
    found = misfits(parsed)
    try:
        msgspec.convert(parsed, Target)
    except msgspec.ValidationError:
        assert found
    else:
        assert not found


table = st.fixed_dictionaries(
    {},
    optional={
        "runtime": st.sampled_from(["litert", "", 3]),
        "device": st.sampled_from(["cpu", "tpu", True]),
        "precisions": st.sampled_from([["int8"], [], ["int9"], "int8", [1]]),
        "options": st.sampled_from([{"a": 1}, {"a": [1]}, 2]),
    },
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.sampled_from(["board", "Board", 1]),
            "title": st.sampled_from(["A board", "", 1]),
            "arch": st.sampled_from([["x86_64"], [], "x86_64", [2]]),
            "chain": st.lists(table | st.integers(), max_size=2) | table,
            "quantization": st.sampled_from([{}, {"weight_type": "int4"}, 3, []]),
            "limits": st.sampled_from([{"memory_mb": 1}, {"memory_mb": 0}, "none"]),
            "cpu_features": st.sampled_from([["avx2"], ["AVX2"], "avx2"]),
        },
    )
)
def test_misfits_near_a_target_are_found_exactly_where_the_schema_refuses(
    parsed: dict[str, Any],
) -> None:
    found = misfits(parsed)
    try:
        msgspec.convert(parsed, Target)
    except msgspec.ValidationError:
        assert found
    else:
        assert not found


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(TargetError, match="too deeply nested"):
        parse_target(b"a=" + b"[" * 100_000, "deep.toml")


targets = st.builds(
    Target,
    name=st.from_regex(r"[a-z0-9][a-z0-9._-]{0,12}", fullmatch=True),
    title=toml_keys.filter(bool),
    arch=st.lists(toml_keys, min_size=1, max_size=3).map(tuple),
    chain=st.lists(
        st.builds(
            ChainEntry,
            runtime=toml_keys.filter(bool),
            device=st.sampled_from(["cpu", "gpu", "npu", "gpu.1"]),
            precisions=st.lists(
                st.sampled_from(["fp32", "fp16", "bf16", "int8"]), min_size=1, unique=True
            ).map(tuple),
            static_shapes=st.booleans(),
            options=st.dictionaries(toml_keys, st.booleans() | st.integers(-9, 9) | toml_keys),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda e: (e.runtime, e.device),
    ).map(tuple),
    quantization=st.builds(Quantization),
    cpu_features=st.lists(st.sampled_from(["avx2", "avx512_vnni|avx_vnni"])).map(tuple),
    cpus=st.lists(toml_keys, max_size=2).map(tuple),
    unverified=st.text("abc ", min_size=1, max_size=8),
    limits=st.builds(TargetLimits, memory_mb=st.none() | st.integers(1, 10**6)),
    convert_only=st.booleans(),
    notes=st.none() | toml_keys,
)


@given(targets)
def test_a_target_written_as_toml_reads_back_the_same(target: Target) -> None:
    plain = msgspec.to_builtins(target)
    without_none = {k: v for k, v in plain.items() if v is not None}
    without_none["limits"] = {k: v for k, v in plain["limits"].items() if v is not None}
    assert parse_target(document(without_none), "t.toml") == target


# --- where targets come from ----------------------------------------------------------------------


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `acme` on sys.path whose entry point is the folder `acme_targets`."""
    folder = tmp_path / "acme_targets"
    folder.mkdir()
    (folder / "acme-board.toml").write_text(MINIMAL.replace('"mine"', '"acme-board"'))
    (folder / "README.md").write_text("not a target")
    site = write_distribution(
        tmp_path / "site",
        "acme",
        "edgeserve.targets",
        "acme = acme:FOLDER",
        f"from pathlib import Path\nFOLDER = Path({str(folder)!r})\n"
        "def folder():\n    return FOLDER\n"
        "def broken():\n    raise RuntimeError('no licence')\n"
        "text = 'targets'\n",
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "acme", raising=False)
    return folder


def _entry_point(plugin: Path, line: str) -> None:
    info = plugin.parent / "site" / "acme-1.0.dist-info"
    (info / "entry_points.txt").write_text(f"[edgeserve.targets]\n{line}\n")


@pytest.mark.parametrize("attribute", ["FOLDER", "folder"])
def test_third_party_targets_are_found_by_entry_point(plugin: Path, attribute: str) -> None:
    _entry_point(plugin, f"acme = acme:{attribute}")
    assert target_names() == ("acme-board", *SHIPPED)
    assert load_target("acme-board").title == "My board"


def test_two_targets_of_one_name_are_an_error(plugin: Path) -> None:
    (plugin / "cpu-x86.toml").write_text(MINIMAL)
    with pytest.raises(TargetError, match="two targets are called 'cpu-x86'") as caught:
        target_names()
    assert str(plugin / "cpu-x86.toml") in str(caught.value.cause)


def test_a_target_is_called_like_its_file(plugin: Path) -> None:
    (plugin / "other.toml").write_text(MINIMAL)
    with pytest.raises(TargetError, match="name is 'mine'"):
        load_target("other")


@pytest.mark.parametrize(
    ("attribute", "cause"),
    [
        ("broken", "no licence"),
        ("text", "expected a folder"),
        ("absent", "has no attribute 'absent'"),
    ],
)
def test_a_broken_plugin_is_named(plugin: Path, attribute: str, cause: str) -> None:
    _entry_point(plugin, f"acme = acme:{attribute}")
    with pytest.raises(TargetError, match="package acme") as caught:
        load_target("cpu-x86")
    assert cause in str(caught.value.cause)


def test_the_wheel_brings_the_targets(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    wheel = next(tmp_path.glob("*.whl"))
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = "import edgeserve.targets.schema as t; print(t.__file__, *t.target_names())"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(site)},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout.split() == [str(site / "edgeserve" / "targets" / "schema.py"), *SHIPPED]


def test_the_package_of_the_documentation_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "targets.md").read_text("utf-8")
    block = re.compile(r"^`([^`\n]+)`[^\n]*:\n\n```\w+\n(.*?)```", re.MULTILINE | re.DOTALL)
    for path, content in block.findall(text):
        file = tmp_path / "package" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=tmp_path / "package",
        check=True,
        capture_output=True,
    )
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert load_target("acme-box").limits.memory_mb == 2048
    assert set(target_names()) == {"acme-box", *SHIPPED}
