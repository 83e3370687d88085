"""`edgeserve serve`, with which Amazon SageMaker starts a container."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.bundles import linear_bundle
from tests.commands import edgeserve

MODEL = Path("/opt/ml/model")


@pytest.mark.parametrize("more", [(), ("--cloud", "sagemaker")])
def test_it_serves_as_the_platform_expects_until_sigterm(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    bundle = linear_bundle(tmp_path)
    command = [sys.executable, "-m", "edgeserve", "serve", str(bundle), "--http-port", "0", *more]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        printed = ""
        for line in server.stderr:
            printed += line
            if line.startswith("try: "):
                break
        found = re.search(r"http://\S+?:(\d+)", printed)
        assert found, printed
        assert "protocols: v2, sagemaker" in printed
        request = urllib.request.Request(
            f"http://127.0.0.1:{found[1]}/invocations", b"[[0, 0, 0, 0]]"
        )
        request.remove_header("Content-Type")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.read() == b"[[0.5,0.5,0.5]]"
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0


@pytest.mark.skipif(MODEL.exists(), reason=f"{MODEL} is there")
def test_without_the_platform_s_folder_it_says_what_is_expected(tmp_path: Path) -> None:
    done = edgeserve("serve", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{MODEL} does not exist" in done.stderr
    assert "NAME.edge" in done.stderr


def test_a_wrong_flag_is_reported_as_run_s(tmp_path: Path) -> None:
    done = edgeserve("serve", "--htp-port", "1", cwd=tmp_path)
    assert (done.returncode, "--http-port" in done.stderr) == (2, True)
