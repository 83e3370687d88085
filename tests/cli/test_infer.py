"""`edgeserve infer` and `edgeserve status`: what they read, print and refuse, against real servers."""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgeserve.bundle import Preprocess, Task
from edgeserve.bundle.files import file_sha256
from edgeserve.bundle.manifest import FileEntry, decode, encode
from edgeserve.cli.main import main
from edgeserve.preprocess import load_image
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear, linear_bundle, write_bundle
from tests.networks import SMALL_CNN, images, small_cnn
from tests.serve.background import Background
from tests.serve.found import found_bundle
from tests.serve.protocols.v2.test_texts import texts_bundle

X = np.random.default_rng(5).normal(size=(3, 4)).astype(np.float32)
Run = Callable[..., tuple[int, str, str]]
HOW = Preprocess(height=32, width=32, scale=1 / 255, mean=(0.5,), std=(0.25,))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line, in this process: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles, linear.edge and cnn.edge, which classifies images and has labels; their inputs."""
    import onnxruntime

    folder = tmp_path_factory.mktemp("infer")
    linear_bundle(folder)
    np.savez(folder / "x.npz", x=X)
    np.save(folder / "x.npy", X)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    model, golden = small_cnn(), images(2)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    outputs = dict(zip(("logits", "features"), session.run(None, {"image": golden}), strict=True))
    cnn = write_bundle(folder, "cnn", model, SMALL_CNN, {"image": golden}, outputs)
    labels = cnn / "labels.txt"
    labels.write_text("".join(f"class {i}\n" for i in range(10)))
    entry = FileEntry("labels.txt", file_sha256(labels), labels.stat().st_size)
    manifest = decode((cnn / "manifest.json").read_bytes(), "manifest")
    task = Task("classification", HOW, entry)
    (cnn / "manifest.json").write_bytes(encode(msgspec.structs.replace(manifest, task=task)))
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with Background(Settings(bundle=str(folder / "linear.edge"), http_port=0)) as server:
        yield server.url


@pytest.fixture(scope="module")
def cnn_urls(folder: Path) -> Iterator[dict[str, str]]:
    settings = Settings(bundle=str(folder / "cnn.edge"), http_port=0, grpc_port=0)
    with Background(settings) as server:
        yield {"http": server.url, "grpc": f"grpc://{server.started.grpc}"}


def outputs_of(text: str) -> dict[str, np.ndarray]:
    document = json.loads(text)
    return {o["name"]: np.float32(o["data"]).reshape(o["shape"]) for o in document["outputs"]}


V2 = {
    "inputs": [{"name": "x", "shape": [3, 4], "datatype": "FP32", "data": X.reshape(-1).tolist()}],
    "outputs": [{"name": "y"}],
    "id": "7",
}


@pytest.mark.parametrize("suffix", ["npz", "npy", "named.json", "bare.json", "v2.json"])
@pytest.mark.parametrize("where", ["url", "bundle"])
def test_every_kind_of_file_reaches_servers_and_bundles(
    run: Run, folder: Path, url: str, where: str, suffix: str
) -> None:
    (folder / "x.named.json").write_text(json.dumps({"x": X.tolist()}))
    (folder / "x.bare.json").write_text(json.dumps(X.tolist()))
    (folder / "x.v2.json").write_text(json.dumps(V2))
    target = url if where == "url" else str(folder / "linear.edge")
    code, out, _ = run("infer", target, str(folder / f"x.{suffix}"), "--json")
    assert code == 0
    np.testing.assert_allclose(outputs_of(out)["y"], linear(X), rtol=1e-5)
    document = json.loads(out)
    assert (document["model"], document["device"]) == ("linear", "cpu")


def test_stdin_is_read_and_stdout_written(folder: Path, url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeserve", "infer", url, "-", "-o", "-"],
        input=(folder / "x.npz").read_bytes(), capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    with np.load(io.BytesIO(done.stdout), allow_pickle=False) as saved:
        np.testing.assert_allclose(saved["y"], linear(X), rtol=1e-5)


def test_outputs_are_written_and_named(run: Run, folder: Path, url: str, tmp_path: Path) -> None:
    file = tmp_path / "out.npz"
    code, out, err = run("infer", url, str(folder / "x.npz"), "-o", str(file))
    assert code == 0
    assert out.startswith("y FP32[3,3]  ")
    assert "linear version 1 on cpu, onnxruntime, onnx-fp32: " in err
    assert f"wrote {file}" in err
    with np.load(file, allow_pickle=False) as saved:
        np.testing.assert_allclose(saved["y"], linear(X), rtol=1e-5)


def test_texts_are_written_whole_or_not_at_all(run: Run, tmp_path: Path) -> None:
    bundle, file, saved = str(texts_bundle(tmp_path)), tmp_path / "x.json", tmp_path / "y.npz"
    file.write_text('{"x": [["caf\\u00e9", ""]]}')
    assert run("infer", bundle, str(file), "-o", str(saved))[0] == 0
    with np.load(saved) as arrays:
        assert arrays["y"].tolist() == [["caf\u00e9".encode(), b""]]
    file.write_text('{"x": [["a\\u0000", "b"]]}')
    code, _, err = run("infer", bundle, str(file), "-o", str(saved))
    assert code == 2
    assert "ends in a NUL byte" in err


def test_large_integers_are_whole_numbers(run: Run, tmp_path: Path) -> None:
    bundle, file = str(found_bundle(tmp_path)), tmp_path / "x.json"
    file.write_text('{"x": [[1, 2]], "ids": [9007199254740993]}')
    assert "kinds INT64[1,1]  9007199254740993" in run("infer", bundle, str(file))[1]
    assert "9007199254740993" in run("infer", bundle, str(file), "--top", "1")[1]
    document = json.loads(run("infer", bundle, str(file), "--top", "1", "--json")[1])
    assert document["top"][-1]["score"] == 2**53 + 1
    file.write_text('{"x": [[1, 2]], "ids": [9007199254740993.0]}')
    code, _, err = run("infer", bundle, str(file))
    assert (code, "expected INT64 values" in err) == (2, True)


def test_more_rows_than_a_batch_holds_are_several_requests(
    run: Run, url: str, folder: Path, tmp_path: Path
) -> None:
    x = np.random.default_rng(1).normal(size=(150, 4)).astype(np.float32)
    np.savez(tmp_path / "many.npz", x=x, label=np.zeros(150))
    for target in (url, str(folder / "linear.edge")):
        _, out, _ = run("infer", target, str(tmp_path / "many.npz"), "--json")
        np.testing.assert_allclose(outputs_of(out)["y"], linear(x), rtol=1e-5)


def test_one_sample_may_come_without_its_batch_axis(run: Run, url: str, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", X[0].astype(np.float64))
    _, out, _ = run("infer", url, str(tmp_path / "one.npy"), "--json")
    np.testing.assert_allclose(outputs_of(out)["y"], linear(X[:1]), rtol=1e-5)


@pytest.mark.parametrize("where", ["bundle", "http", "grpc"])
def test_images_go_through_the_stored_preprocessing(
    run: Run, folder: Path, cnn_urls: dict[str, str], where: str
) -> None:
    """A server tells it, and the labels, in the model's configuration."""
    import onnxruntime

    image = folder / "noise.png"
    target = cnn_urls.get(where) or str(folder / "cnn.edge")
    code, out, _ = run("infer", target, str(image), str(image), "--json", "--output", "logits")
    assert code == 0
    tensor = np.stack([load_image(image, HOW)] * 2)
    session = onnxruntime.InferenceSession(small_cnn().SerializeToString())
    (wanted,) = session.run(["logits"], {"image": tensor})
    np.testing.assert_allclose(outputs_of(out)["logits"], wanted, rtol=1e-4, atol=1e-5)
    best = json.loads(out)["top"]
    assert [s["rank"] for s in best] == [1, 2, 3, 4, 5] * 2
    assert best[0]["index"] == int(wanted[0].argmax())
    assert best[0]["label"] == f"class {best[0]['index']}"


def test_a_preprocessing_of_one_s_own_comes_first(
    run: Run, folder: Path, cnn_urls: dict[str, str], tmp_path: Path
) -> None:
    how = tmp_path / "how.toml"
    how.write_text("height = 32\nwidth = 32\nscale = 0.01\n")
    arguments = (str(folder / "noise.png"), "--json", "--output", "logits")
    _, stored, _ = run("infer", cnn_urls["http"], *arguments)
    code, own, _ = run("infer", cnn_urls["http"], *arguments, "--preprocess", str(how))
    assert code == 0
    assert not np.allclose(outputs_of(stored)["logits"], outputs_of(own)["logits"])


def test_the_table_shows_the_best_classes_with_labels(run: Run, folder: Path) -> None:
    _, out, _ = run(
        "infer", str(folder / "cnn.edge"), str(folder / "noise.png"), "--top", "2",
        "--output", "logits",
    )  # fmt: skip
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["logits", "FP32[1,10]"]
    assert lines[1] == ["rank", "score", "class", "label"]
    assert [line[0] for line in lines[3:5]] == ["1", "2"]
    assert lines[3][3] == "class"
    assert len([line for line in lines if line]) == 5


def test_top_shows_indices_where_nothing_names_classes(run: Run, folder: Path, url: str) -> None:
    _, out, _ = run("infer", url, str(folder / "x.npz"), "--top", "1", "--json")
    best = json.loads(out)["top"]
    assert [s["index"] for s in best] == linear(X).argmax(axis=1).tolist()
    assert {s["label"] for s in best} == {None}


@pytest.mark.parametrize(
    ("content", "code", "says"),
    [
        (b'{"x": [[1, 2], [3]]}', 2, "its lists differ in length"),
        (b'{"x": [1, 2]}', 2, "expected shape [batch,4], got [1,2]"),
        (b'{"z": [1, 2]}', 2, "unknown input 'z'"),
        (b"{}", 2, "input 'x' (FP32[batch,4]) is missing"),
        (b'{"x": ["a", "b", "c", "d"]}', 2, "expected FP32 values"),
        (b'{"x": [true, 1.5, 2, 3]}', 2, "expected FP32 values, got a boolean"),
        (b'{"inputs": [{"name": "x"}]}', 2, "is not a v2 request"),
        (b"{", 2, "cannot be read"),
        (b"PK\x03\x04", 2, "cannot be read"),
        (b"\x93NUMPY", 2, "cannot be read"),
        (b"\x89PNG", 2, "the preprocessing of images for this model is not known"),
        (b"", 2, "cannot be read"),
    ],
)
def test_inputs_that_do_not_fit(
    run: Run, url: str, folder: Path, tmp_path: Path, content: bytes, code: int, says: str
) -> None:
    file = tmp_path / "input"
    file.write_bytes(content)
    for target in (url, str(folder / "linear.edge")):
        got, out, err = run("infer", target, str(file))
        assert (got, out) == (code, "")
        assert says in err


def test_pickles_are_not_opened(run: Run, url: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object))
    code, _, err = run("infer", url, str(tmp_path / "evil.npz"))
    assert code == 2
    assert "cannot be read" in err


def test_a_file_that_is_not_there(run: Run, url: str) -> None:
    code, _, err = run("infer", url, "nowhere.npz")
    assert code == 2
    assert "nowhere.npz cannot be read" in err


def test_nobody_listens_is_exit_3(run: Run, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, _, err = run("infer", f"http://127.0.0.1:{port}", str(folder / "x.npz"))
    assert code == 3
    assert "hint: start it: edgeserve run BUNDLE" in err
    code, out, err = run("status", f"http://127.0.0.1:{port}", "--json")
    assert (code, out) == (3, "")
    assert "nothing listens" in err


def test_an_address_without_a_scheme_is_explained(run: Run, folder: Path) -> None:
    code, _, err = run("infer", "localhost:8000", str(folder / "x.npz"))
    assert code == 2
    assert "did you mean http://localhost:8000?" in err


def test_an_unknown_model_and_an_unset_key(run: Run, url: str, folder: Path) -> None:
    code, _, err = run("infer", url, str(folder / "x.npz"), "--model", "nobody")
    assert code == 2
    assert "cause: unknown model 'nobody'; loaded: linear" in err
    code, _, err = run("infer", url, str(folder / "x.npz"), "--key-env", "NOT_SET_HERE")
    assert code == 2
    assert "the variable NOT_SET_HERE holds no key" in err


def test_status_counts_over_both_protocols(
    run: Run, folder: Path, cnn_urls: dict[str, str]
) -> None:
    run("infer", cnn_urls["http"], str(folder / "noise.png"))
    for url in cnn_urls.values():
        code, out, _ = run("status", url, "--json")
        (model,) = json.loads(out)["models"]
        assert (code, model["name"]) == (0, "cnn")
        assert model["statistics"]["succeeded"] >= 1


def test_status_shows_what_serves_where(run: Run, url: str) -> None:
    code, out, _ = run("status", url)
    assert code == 0
    assert out.startswith(f"{url}  edgeserve ")
    assert ", ready\n" in out
    assert "onnxruntime/cpu/onnx-fp32" in out
    code, out, _ = run("status", url, "--json")
    document = json.loads(out)
    assert (code, document["ready"]) == (0, True)
    assert document["models"][0]["name"] == "linear"
    assert document["models"][0]["where"]["device"] == "cpu"


def test_status_has_the_numbers_of_the_page(run: Run, folder: Path) -> None:
    """Also for requests that fail, and for a model that was loaded again meanwhile."""
    settings = Settings(bundle=str(folder / "linear.edge"), http_port=0, model_control=True)
    good = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    with Background(settings) as server:

        def post(path: str, body: object) -> None:
            sent = json.dumps(body).encode()
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(f"{server.url}{path}", sent).close()

        for _ in range(2):
            for body in (good, good, {}, [], good):
                post("/v2/models/linear/infer", body)
            post("/v2/repository/models/linear/load", {})
        _, out, _ = run("status", server.url, "--json")
        request = urllib.request.Request(
            f"{server.url}/status", headers={"Accept": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            page = json.load(answer)
    told = json.loads(out)["models"][0]["statistics"]
    shown = page["models"][0]
    assert (told["succeeded"], told["failed"]) == (6, 4)
    assert (shown["answered"], sum(shown["failed"].values())) == (6, 4)


def test_status_says_why_the_first_candidate_does_not_serve(run: Run, folder: Path) -> None:
    settings = Settings(
        bundle=str(folder / "linear.edge"),
        http_port=0,
        inject=("gpu:stand-in", "gpu:open-failure@load+"),
    )
    with Background(settings) as server:
        code, out, _ = run("status", server.url)
        document = json.loads(run("status", server.url, "--json")[1])
    assert code == 0
    assert out.splitlines()[0].endswith(", degraded")
    words = " ".join(out.split())
    assert (
        "linear: onnxruntime/gpu/onnx-fp32 does not serve: cannot open 'gpu': "
        "injected: gpu:open-failure@load+; it is tried again in "
    ) in words
    instead = document["models"][0]["instead_of"]
    assert instead["candidate"] == "onnxruntime/gpu/onnx-fp32"
    assert instead["retry_s"] > 0


TRITON = {
    "GET /v2": (200, {"name": "triton", "version": "2.51.0", "extensions": ["statistics"]}),
    "GET /v2/health/ready": (400, None),
    "POST /v2/repository/index": (
        200,
        [
            {"name": "good", "version": "3", "state": "READY", "reason": ""},
            {"name": "bad", "version": "1", "state": "UNAVAILABLE", "reason": "no such file"},
        ],
    ),
    "GET /v2/models/stats": (
        200,
        {
            "model_stats": [
                {
                    "name": "good",
                    "version": "3",
                    "execution_count": 5,
                    "inference_stats": {
                        "success": {"count": 10, "ns": 40_000_000},
                        "fail": {"count": 2, "ns": 1},
                        "queue": {"count": 10, "ns": 10_000_000},
                        "compute_infer": {"count": 10, "ns": 25_000_000},
                    },
                }
            ]
        },
    ),
}


@pytest.fixture
def triton() -> Iterator[str]:
    """A server that answers as Triton does when one of its models failed to load."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, document = TRITON.get(f"{self.command} {self.path}", (404, {"error": "?"}))
            body = b"" if document is None else json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_status_of_another_server_that_is_not_ready_is_1(run: Run, triton: str) -> None:
    code, out, _ = run("status", triton)
    assert code == 1
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == f"{triton} triton 2.51.0, not ready"
    assert "good 3 ready 10 2 5 1.000 2.500 4.000" in lines
    assert "bad 1 not ready: no such file" in lines


def test_several_models_want_a_choice(run: Run, folder: Path, triton: str) -> None:
    """Only models that are ready count: here one, which the server then does not describe."""
    code, _, err = run("infer", triton, str(folder / "x.npz"))
    assert code == 2
    assert f"error: {triton} cannot find it" in err
