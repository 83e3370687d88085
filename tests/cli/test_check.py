"""`edgeserve check`: output, exports and exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from edgeserve.cli.main import main
from tests.checking.models import one_node, saved
from tests.networks import small_cnn, with_unknown_op

UNKNOWN = """\
error[unsupported-op] (cpu-x86): openvino/cpu cannot run acme.Sparkle (1 node): its ONNX frontend has \
no rule for it
  nodes: weird
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `edgeserve check`."""
    with pytest.raises(SystemExit) as stopped:
        main(["check", *map(str, arguments)])
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out, captured.err


def test_a_fine_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = saved(small_cnn(), tmp_path)
    code, out, err = run(capsys, file, "--target", "cpu-x86")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["onnxruntime/cpu", "int8", "fp32", "runs", "fully"] in lines
    assert ["fp32", "7.4", "kB", "79.7", "kB"] in lines
    assert out.splitlines()[-1] == (
        f"fine; next: edgeserve convert {file} --target cpu-x86 -o NAME.edge"
    )


def test_an_unknown_operator(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, saved(with_unknown_op(), tmp_path), "--target", "cpu-x86")
    assert (code, err) == (1, "")
    assert "1 of 2 nodes unsupported" in out
    assert UNKNOWN in out
    assert ["acme.Sparkle", "1", "no", "no"] in [line.split() for line in out.splitlines()]
    assert out.splitlines()[-1].startswith("not fine: cpu-x86 (")


def test_ops_lists_every_operator(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = saved(small_cnn(), tmp_path)
    rows = ["GlobalAveragePool", "1", "yes", "yes"]
    for flags, shown in (([], False), (["--ops"], True)):
        _, out, _ = run(capsys, file, "--target", "cpu-x86", *flags)
        assert (rows in [line.split() for line in out.splitlines()]) is shown


def test_several_targets_and_one_that_is_not_fine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = saved(one_node("Relu", shape=("batch", 3, "h", "w")), tmp_path)
    asked = ("--target", "nvidia-gpu", "--target", "intel-npu", "--json")
    code, out, _ = run(capsys, file, *asked)
    assert code == 1
    assert {t["name"]: t["ok"] for t in json.loads(out)["targets"]} == {
        "nvidia-gpu": True,
        "intel-npu": False,
    }
    code, out, _ = run(capsys, file, *asked, "--shape", "x=1,3,8,8")
    assert code == 0
    assert json.loads(out)["ok"] is True


def test_all_targets(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from edgeserve.targets.schema import target_names

    code, out, _ = run(capsys, saved(small_cnn(), tmp_path), "--target", "all", "--json")
    assert code == 0
    assert [t["name"] for t in json.loads(out)["targets"]] == list(target_names())


def test_a_target_of_ones_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    toml = tmp_path / "tiny.toml"
    toml.write_text(
        'name = "tiny"\ntitle = "Tiny"\narch = ["armv7l"]\n'
        '[[chain]]\nruntime = "onnxruntime"\ndevice = "cpu"\nprecisions = ["fp32"]\n'
        "[limits]\nmemory_mb = 1\n"
    )
    file = saved(one_node("Relu", shape=("batch", 512, 512)), tmp_path)
    code, out, _ = run(capsys, file, "--target", toml)
    assert code == 1
    assert "onnxruntime/cpu needs about fp32 2.1 MB; tiny has 1 MB" in out


def test_sarif_to_a_file_and_to_stdout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file, result = saved(with_unknown_op(), tmp_path), tmp_path / "check.sarif"
    code, out, _ = run(capsys, file, "--target", "cpu-x86", "--sarif", result)
    assert code == 1
    assert "not fine: cpu-x86" in out
    written = json.loads(result.read_text("utf-8"))
    code, out, _ = run(capsys, file, "--target", "cpu-x86", "--sarif", "-")
    assert code == 1
    assert json.loads(out) == written
    code, _, err = run(capsys, file, "--sarif", "-", "--json")
    assert code == 2
    assert "both write to stdout" in err


def test_sarif_that_cannot_be_written_exits_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = saved(small_cnn(), tmp_path)
    code, _, err = run(capsys, file, "--target", "cpu-x86", "--sarif", tmp_path / "no" / "a.sarif")
    assert code == 3
    assert err.startswith("error: ")


def _cut(folder: Path) -> Path:
    file = folder / "cut.onnx"
    file.write_bytes(small_cnn().SerializeToString()[:3000])
    return file


def _text(folder: Path) -> Path:
    file = folder / "notes.onnx"
    file.write_text("hello\n")
    return file


def _without_data(folder: Path) -> Path:
    file = folder / "split.onnx"
    onnx.save_model(
        small_cnn(), file, save_as_external_data=True, location="split.data", size_threshold=0
    )
    (folder / "split.data").unlink()
    return file


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_cut, "is not a whole ONNX model"),
        (_text, "is not an ONNX model"),
        (_without_data, "lacks its external data"),
        (lambda folder: folder, "is a folder"),
        (lambda folder: folder / "absent.onnx", "cannot be read"),
    ],
)
def test_wrong_input_says_why_and_exits_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    make: Callable[[Path], Path],
    error: str,
) -> None:
    code, out, err = run(capsys, make(tmp_path), "--target", "cpu-x86")
    assert (code, out) == (2, "")
    assert error in err.splitlines()[0]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--target", "cpu-x68"), "unknown target 'cpu-x68'"),
        (("--shape", "image"), "--shape image is not INPUT=N,N"),
        (("--shape", "picture=1,3,32,32"), "--shape names no input of the model"),
    ],
)
def test_wrong_flags_exit_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, flags: tuple[str, ...], error: str
) -> None:
    code, out, err = run(capsys, saved(small_cnn(), tmp_path), *flags)
    assert (code, out) == (2, "")
    assert error in err


def test_without_onnx_the_pip_command_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(small_cnn(), tmp_path)
    for name in [n for n in sys.modules if n.partition(".")[0] == "onnx"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)  # what `import` sees of an absent package
    code, out, err = run(capsys, file, "--target", "cpu-x86")
    assert (code, out) == (3, "")
    assert err.splitlines()[-1] == "hint: pip install 'edgeserve[convert]'"
