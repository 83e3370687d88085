"""`edgeserve targets`: what it prints, as JSON and for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from edgeserve.cli.main import main
from edgeserve.devices import machine
from edgeserve.runtimes.detect import detect_target
from edgeserve.targets.schema import target_names
from tests.distributions import write_distribution

# A target of an adapter nobody has: what is printed of it is the same on every machine.
BOARD = """
name = "acme-board"
title = "ACME board, 1 GB"
arch = ["{arch}"]
url = "https://acme.example/board"
notes = "Needs the [ACME] driver."

[[chain]]
runtime = "acme"
device = "npu"
precisions = ["int8", "fp16"]
static_shapes = true
options = {{ tiles = 2, turbo = true }}

[quantization]
per_channel = false
activation_type = "int8"
symmetric_activations = true

[limits]
memory_mb = 256
"""
EXPLAINED = """\
target        acme-board: ACME board, 1 GB
architecture  {arch}
this machine  {machine}
not satisfied no runtime adapter is called acme
int8          weights int8 per tensor, activations int8 symmetric
memory        up to 256 MB
notes         Needs the [ACME] driver.
more          https://acme.example/board

chain      precisions   shapes   options             opens here   what the engine says
────────────────────────────────────────────────────────────────────────────────────────────────────
acme/npu   int8 fp16    static   tiles=2 turbo=True  no           no runtime adapter is called acme

convert for it: edgeserve convert MODEL --target acme-board -o NAME.edge
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def squeezed(text: str) -> list[list[str]]:
    """Lines as words: tables are laid out by width, which is not what these tests are about."""
    return [line.split() for line in text.splitlines() if set(line.strip()) != {"─"}]


@pytest.fixture
def board(tmp_path: Path) -> Path:
    file = tmp_path / "acme-board.toml"
    file.write_text(BOARD.format(arch=machine().arch))
    return file


def test_explains_a_target_of_one_s_own(capsys: pytest.CaptureFixture[str], board: Path) -> None:
    code, out, _ = run(capsys, "targets", str(board))
    assert code == 0
    wanted = EXPLAINED.format(arch=machine().arch, machine=machine().describe())
    assert squeezed(out) == squeezed(wanted)


def test_lists_every_target_and_marks_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "targets")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"this machine: {machine().describe()}"
    assert lines[-1] == "explain one: edgeserve targets NAME"
    rows = {line.split()[0]: line for line in lines if line.split()[:1] and line[0] != " "}
    assert set(target_names()) <= set(rows)
    assert " yes " in rows[detect_target().name]


def test_json_of_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "targets", "--json")
    assert code == 0
    report = json.loads(out)
    assert report["machine"]["arch"] == machine().arch
    assert [t["target"]["name"] for t in report["targets"]] == list(target_names())
    satisfied = {t["target"]["name"] for t in report["targets"] if t["satisfied"]}
    assert detect_target().name in satisfied


def test_json_of_one(capsys: pytest.CaptureFixture[str], board: Path) -> None:
    code, out, _ = run(capsys, "targets", str(board), "--json")
    assert code == 0
    report = json.loads(out)
    assert report["target"]["limits"] == {"memory_mb": 256}
    assert report["satisfied"] is False
    assert report["entries"][0]["reason"] == "no runtime adapter is called acme"


def test_auto_is_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "targets", "auto", "--json")
    assert code == 0
    assert json.loads(out)["target"]["name"] == detect_target().name


def test_unknown_target_suggests_the_nearest_and_exits_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, "targets", "intel-npuu")
    assert (code, out) == (2, "")
    assert err == (
        "error: unknown target 'intel-npuu'\n"
        f"hint: did you mean 'intel-npu'? known targets: {', '.join(target_names())}\n"
    )


def test_a_broken_toml_names_the_field_and_exits_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('name = "mine"\nmemory = 3\n')
    code, out, err = run(capsys, "targets", str(file))
    assert (code, out) == (2, "")
    assert err == (
        f"error: {file} is not a valid target\n"
        "cause: Object contains unknown field `memory`\n"
        "hint: known fields: name, title, arch, chain, quantization, limits, cpu_features, cpus, "
        "convert_only, unverified, url, notes\n"
    )


def test_says_what_could_not_be_verified_and_which_cpu(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, _ = run(capsys, "targets", "st-npu")
    assert code == 0
    assert "unverified    ST Edge AI and the NPU were not at hand." in out
    assert "not satisfied its devices run bundles without edgeserve" in out
    _, out, _ = run(capsys, "targets", "cpu-x86-vnni")
    assert "CPU           avx512_vnni or avx_vnni" in out
    assert "matmul, where faster" in out
    _, out, _ = run(capsys, "targets", "cpu-x86-avx2")
    assert "weights int8 in 7 bits per channel, activations uint8 with zero point" in out


# --- check ----------------------------------------------------------------------------------------


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


GOOD = """\
# Data sheet: https://acme.example/board
name = "good"
title = "Good board"
arch = ["aarch64"]
[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["int8"]
"""
BAD = """\
name = "mine"
titel = "x"
title = "My board"
arch = ["x86-64"]
cpu_features = ["avx512vnni"]
[[chain]]
runtime = "onnxruntme"
device = "gpu"
devise = "x"
precisions = ["int8"]
[quantization]
activation = "uint8"
"""


def test_check_of_a_good_file(capsys: pytest.CaptureFixture[str], in_folder: Path) -> None:
    (in_folder / "good.toml").write_text(GOOD)
    code, out, err = run(capsys, "targets", "check", "good.toml")
    assert (code, err) == (0, "")
    assert squeezed(out) == squeezed(
        "file target valid what hint\ngood.toml good yes\n\n"
        "convert for it: edgeserve convert MODEL --target good.toml -o NAME.edge\n"
    )


def test_check_tells_everything_at_once(
    capsys: pytest.CaptureFixture[str], in_folder: Path
) -> None:
    (in_folder / "bad.toml").write_text(BAD)
    (in_folder / "good.toml").write_text(GOOD)
    code, out, _ = run(capsys, "targets", "check", "bad.toml", "good.toml", "--json")
    assert code == 1
    bad, good = json.loads(out)["files"]
    assert (bad["target"], bad["valid"], good["target"], good["valid"]) == (
        "mine",
        False,
        "good",
        True,
    )
    assert good["findings"] == []
    assert [(f["level"], f["text"], f["hint"]) for f in bad["findings"]] == [
        ("error", "unknown field `titel`", "did you mean 'title'?"),
        ("error", "unknown field `chain[0].devise`", "did you mean 'device'?"),
        (
            "error",
            "unknown field `quantization.activation`",
            "did you mean 'activation_type'?",
        ),
        (
            "error",
            "the target is called 'mine', the file bad.toml",
            "call the file mine.toml: targets are found by their file's name",
        ),
        ("warning", "no runtime adapter is called onnxruntme", "did you mean 'onnxruntime'?"),
        (
            "warning",
            "edgeserve never reports the CPU feature avx512vnni: no machine satisfies it",
            "did you mean 'avx512_vnni'?",
        ),
        (
            "warning",
            "platform.machine() is not known to return x86-64",
            "did you mean 'x86_64'?",
        ),
        (
            "warning",
            "the chain does not end on a CPU: nothing serves when the device is lost",
            'add a last [[chain]] with device = "cpu"',
        ),
        (
            "warning",
            "no comment gives a source",
            "put the source above each fact: # https://... (what it says)",
        ),
    ]


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("good", "name = ", "Invalid value (at end of document)"),
        ("good", GOOD + GOOD[GOOD.index("[[chain]]") :], "the chain lists onnxruntime/cpu twice"),
        ("check", GOOD.replace('"good"', '"check"'), "'check' is reserved by the command line"),
        ("good", GOOD.replace('"int8"', '"int3"'), "Invalid enum value 'int3'"),
    ],
)
def test_check_of_an_invalid_file_exits_1(
    capsys: pytest.CaptureFixture[str], in_folder: Path, name: str, text: str, error: str
) -> None:
    (in_folder / f"{name}.toml").write_text(text)
    code, out, _ = run(capsys, "targets", "check", f"{name}.toml", "--json")
    assert code == 1
    (checked,) = json.loads(out)["files"]
    assert checked["valid"] is False
    assert error in checked["findings"][0]["text"]
    code, out, _ = run(capsys, "targets", "check", f"{name}.toml")
    assert code == 1
    assert out.splitlines()[-1] == "1 of 1 not valid: docs/targets.md"


WORSE = """
name = "worse"
title = 3
arch = ["x86_64"]
[[chain]]
runtime = "litert"
device = "tpu"
precisions = ["int9"]
[quantization]
activation_type = "float8"
"""


def test_check_tells_of_every_value_that_does_not_fit(
    capsys: pytest.CaptureFixture[str], in_folder: Path
) -> None:
    (in_folder / "worse.toml").write_text(WORSE)
    code, out, _ = run(capsys, "targets", "check", "worse.toml", "--json")
    assert code == 1
    found = json.loads(out)["files"][0]["findings"]
    assert [f["text"].partition(" - at ")[2] for f in found] == [
        "`$.title`",
        "`$.chain[0].device`",
        "`$.chain[0].precisions[0]`",
        "`$.quantization.activation_type`",
    ]
    assert "cpu, gpu or npu" in found[1]["hint"]
    assert found[3]["hint"] == "known: uint8, int8, uint16, int16"


def test_check_tells_of_every_mistake_in_what_fits(
    capsys: pytest.CaptureFixture[str], in_folder: Path
) -> None:
    twice = GOOD + GOOD[GOOD.index("[[chain]]") :]
    (in_folder / "list.toml").write_text(twice.replace('"good"', '"list"'))
    code, out, _ = run(capsys, "targets", "check", "list.toml", "--json")
    assert code == 1
    texts = [f["text"] for f in json.loads(out)["files"][0]["findings"] if f["level"] == "error"]
    assert texts == [
        "'list' is reserved by the command line",
        "the chain lists onnxruntime/cpu twice",
    ]


def test_list_is_what_stands_there_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    plain = run(capsys, "targets", "--json")
    assert run(capsys, "targets", "list", "--json") == plain


def test_check_of_a_name_that_is_installed_warns(
    capsys: pytest.CaptureFixture[str], in_folder: Path
) -> None:
    (in_folder / "webgpu.toml").write_text(GOOD.replace('"good"', '"webgpu"'))
    code, out, _ = run(capsys, "targets", "check", "webgpu.toml", "--json")
    assert code == 0
    (finding,) = json.loads(out)["files"][0]["findings"]
    assert (finding["level"], finding["text"]) == (
        "warning",
        "a target called webgpu is installed",
    )


def test_check_of_a_missing_file_exits_2(
    capsys: pytest.CaptureFixture[str], in_folder: Path
) -> None:
    (in_folder / "good.toml").write_text(GOOD)
    code, out, err = run(capsys, "targets", "check", "good.toml", "gone.toml")
    assert (code, out) == (2, "")
    assert err.startswith("error: gone.toml does not exist\n")


def test_check_without_files_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "targets", "check")
    assert (code, out) == (2, "")
    assert "missing argument 'FILE...'" in err


def test_shipped_targets_pass_the_check_without_a_remark(
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = sorted((Path(__file__).parent.parent.parent / "targets").glob("*.toml"))
    code, out, _ = run(capsys, "targets", "check", *map(str, files), "--json")
    assert code == 0
    checked = json.loads(out)["files"]
    assert sorted(c["target"] for c in checked) == list(target_names())
    assert [f for c in checked for f in c["findings"]] == []


def test_help_tells_of_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "targets", "--help")
    assert code == 0
    assert "edgeserve targets [NAME] [--json]" in out
    assert "  check " in out


def test_targets_of_packages_are_listed(
    capsys: pytest.CaptureFixture[str],
    board: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = f"from pathlib import Path\nFOLDER = Path({str(board.parent)!r})\n"
    site = write_distribution(
        tmp_path / "site",
        "acme_list",
        "edgeserve.targets",
        "acme = acme_list:FOLDER",
        module,
    )
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "acme_list", raising=False)
    code, out, _ = run(capsys, "targets")
    assert code == 0
    assert "acme-board" in out
