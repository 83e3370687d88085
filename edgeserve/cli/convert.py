"""`edgeserve convert`: a model in, a proven bundle out."""

from __future__ import annotations

import json
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from edgeserve.cli.output import progress, stdout_console
from edgeserve.errors import UsageError
from edgeserve.exporting import to_json
from edgeserve.tables import print_line, print_table, size_text

if TYPE_CHECKING:
    from edgeserve.conversion.report import Conversion, VariantRow


_SHOWN_LAYERS = 10
_Number = TypeVar("_Number", int, float)


class PrecisionChoice(StrEnum):
    """What --precision takes."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    int4 = "int4"


def register(app: typer.Typer) -> None:
    app.command(
        "convert",
        short_help="Convert and quantize a model, prove it, write a bundle.",
        help="Convert and quantize a model for a target, prove every variant, write a bundle.\n\n"
        "Example: edgeserve convert model.onnx --calibrate images/ --image-size 224 -o model.edge",
    )(command)


def command(
    source: Annotated[
        Path, typer.Argument(metavar="MODEL", help="The model: a file or folder (docs/sources.md).")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The bundle [MODEL's name + .edge].")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            envvar="EDGESERVE_TARGET",
            help="A target's name or TOML file [auto: this machine]. May be repeated. With several, or with "
            "all, -o is a folder that receives one bundle per target.",
        ),
    ] = None,
    precision: Annotated[
        PrecisionChoice,
        typer.Option(help="Precision to make; auto: try every precision that the target lists."),
    ] = PrecisionChoice.auto,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Try only this recipe for int8 and int4: static, static-percentile, static-entropy, "
            "static-equalized, static-restored, static-16x8, nncf, nncf-onnx, dynamic, weights. "
            "May be repeated.",
        ),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Data for int8: a folder of images, .npz, .npy, .csv, MODULE:FUNCTION, 'command: …', "
            "or the word random (proves nothing).",
        ),
    ] = None,
    calibration_samples: Annotated[
        int, typer.Option(min=1, help="Number of samples to calibrate on.")
    ] = 128,
    evaluate: Annotated[
        str | None,
        typer.Option("--eval", metavar="CSV|NPZ", help="Labelled samples to measure accuracy on."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="File with one class name per line; stored in the bundle."
        ),
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="Accuracy a variant may lose, in percentage points (with --eval).")
    ] = 1.0,
    min_fidelity: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Minimum share of answers that equal the source's answers [0.95]; for embeddings, minimum "
            "cosine similarity [0.99].",
        ),
    ] = None,
    min_sqnr: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DB|OUTPUT=DB",
            help="Minimum signal-to-quantization-noise ratio (SQNR) of each output, in dB [10; 3 for class "
            "scores]. May be repeated.",
        ),
    ] = None,
    output_kind: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OUTPUT=KIND",
            help="What an output holds: scores, probabilities, numbers, embedding or ids. May be repeated.",
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Maximum size of a variant: 5 MB, 800 kB, or bytes."),
    ] = None,
    max_latency: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Maximum time of one call on this machine: 5 ms."),
    ] = None,
    max_time: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds after which convert stops trying to improve rejected int8 variants.",
        ),
    ] = 600.0,
    explain: Annotated[
        bool, typer.Option("--explain", help="Rank layers by the noise that int8 adds.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Size, latency and fidelity as a picture (png, svg)."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=N,N,…", help="Fix an input's dimensions. May be repeated."),
    ] = None,
    simplify: Annotated[
        bool, typer.Option("--simplify", help="Fold constants and drop redundant nodes (onnxslim).")
    ] = False,
    preprocess: Annotated[
        Path | None, typer.Option(metavar="TOML", help="File with the image preprocessing.")
    ] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Images: height and width of the input.")
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            help="Images: crop the centre, letterbox (keep the shape, pad the rest) or stretch [crop]."
        ),
    ] = None,
    crop_ratio: Annotated[
        float | None, typer.Option(help="Images: centre crop after resizing [1.0].")
    ] = None,
    interpolation: Annotated[
        str | None, typer.Option(help="Images: nearest, bilinear, bicubic or lanczos.")
    ] = None,
    channels: Annotated[str | None, typer.Option(help="Images: RGB, BGR or L.")] = None,
    layout: Annotated[str | None, typer.Option(help="Images: NCHW or NHWC.")] = None,
    scale: Annotated[
        float | None, typer.Option(help="Images: (pixel * scale - mean) / std.")
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="Images: one number, or one per channel.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Images: one number, or one per channel.")] = None,
    model_class: Annotated[
        str | None,
        typer.Option(metavar="MODULE:CLASS", help="The class of a PyTorch checkpoint (.pt)."),
    ] = None,
    model_arg: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An argument of that class. May be repeated."),
    ] = None,
    python_path: Annotated[
        list[str] | None,
        typer.Option(metavar="FOLDER", help="Where to import that class from [.]."),
    ] = None,
    input_type: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=TYPE", help="Type of an input other than float32. May be repeated."
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What the model is for: classification, detection, segmentation or embedding [recognised where "
            "the file shows it]; or the task of a Hugging Face model [from its config]."
        ),
    ] = None,
    postprocess: Annotated[
        Path | None,
        typer.Option(
            metavar="TOML",
            help="File that says how outputs become an answer (docs/postprocess.md).",
        ),
    ] = None,
    signature: Annotated[
        str | None, typer.Option(help="Signature of a SavedModel [serving_default].")
    ] = None,
    trust_source: Annotated[
        bool, typer.Option("--trust-source", help="Open pickles, which can run any code.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="The model's name when served.")] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with 1 and write nothing if a runtime's quantized variants were all rejected, the "
            "preferred runtime has no variant, no variant of the requested --precision was chosen, or a "
            "requested --recipe could not be tried.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
    tool_env: Annotated[
        bool,
        typer.Option(
            "--tool-env/--no-tool-env", help="Run heavy converters in environments of their own."
        ),
    ] = True,
    json_output: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> int:
    from edgeserve.cli.convert_many import ALL, convert_for
    from edgeserve.cli.images import postprocess_from, preprocess_from
    from edgeserve.cli.quality import parse_decibels, parse_kinds
    from edgeserve.cli.shapes import parse_shapes
    from edgeserve.conversion.options import Options, SourceOptions, asked_task
    from edgeserve.conversion.pipeline import convert
    from edgeserve.conversion.plot import check_plot
    from edgeserve.conversion.plot import plot as draw

    decibels = parse_decibels(min_sqnr or [])
    flags = {
        "image_size": image_size,
        "crop_ratio": crop_ratio,
        "interpolation": interpolation,
        "resize": resize,
        "channels": channels,
        "layout": layout,
        "scale": scale,
        "mean": mean,
        "std": std,
    }
    options = Options(
        source=SourceOptions(
            model_class=model_class,
            model_args=_arguments(model_arg or []),
            python_path=tuple(python_path or ()),
            input_types=_input_types(input_type or []),
            trust_source=trust_source,
            task=None if asked_task(task) else task,
            signature=signature,
        ),
        target=(target or ["auto"])[0],
        precision=precision.value,
        recipes=tuple(recipe or ()),
        calibrate=calibrate,
        calibration_samples=calibration_samples,
        evaluate=evaluate,
        preprocess=preprocess_from(preprocess, flags),
        labels=labels,
        task=asked_task(task),
        postprocess=postprocess_from(postprocess) if postprocess is not None else {},
        shapes=parse_shapes(shape or []),
        simplify=simplify,
        max_drop=max_drop,
        min_fidelity=min_fidelity,
        min_sqnr=decibels.pop("", None),
        min_sqnr_of=decibels,
        output_kinds=parse_kinds(output_kind or []),
        max_size=_limit("max_size", "--max-size", max_size, int),
        max_latency=_limit("max_latency_p50", "--max-latency", max_latency, float),
        max_time=max_time,
        explain=explain,
        strict=strict,
        force=force,
        name=name,
        tool_env=tool_env,
    )
    if plot is not None:
        check_plot(plot)
    if target is not None and (len(target) > 1 or target == [ALL]):
        if plot is not None:
            raise UsageError("--plot draws one target")
        folder = output or Path(f"{source.resolve().stem}-bundles")
        return convert_for(target, source, folder, options, as_json=json_output)
    with progress() as say:
        report = convert(source, output or Path(f"{source.resolve().stem}.edge"), options, say)
    if plot is not None:
        draw(report, plot)
    if json_output:
        print(to_json(report))
    else:
        render(report)
    return 0


def render(report: Conversion) -> None:
    """The report as a table; the last lines are what was written and what to do next."""
    console = stdout_console()
    print_line(
        console,
        f"{report.bundle}: target {report.target}, proven on {report.proof_samples} samples "
        f"({report.proof_source})\n",
    )
    columns = ("", "variant", "runs on", "size", "latency", "vs source", "int8 ops", "agrees", "SQNR",
               "worst output", "accuracy")  # fmt: skip
    accuracy = report.reference_accuracy
    source = (
        "", "source", report.reference, size_text(report.source_size_bytes),
        f"{report.reference_latency_ms:.3f} ms", "1.00x", "", "", "", "",
        f"{100 * accuracy:.1f} %" if accuracy is not None else "",
    )  # fmt: skip
    tried = [_cells(row) for row in report.rows if row.measured is not None or row.chosen]
    numbers = ("size", "latency", "vs source", "agrees", "SQNR", "accuracy")
    print_table(console, columns, [source, *tried], right=numbers)
    console.print(
        "*: no other variant is at least as good in all three: size, speed and closeness to the source\n"
    )
    for row in report.rows:
        if not row.chosen or row.measured is None:
            where = f"{row.variant} on {row.runtime}/{row.device}"
            print_line(console, f"{'-' if row.chosen else '✗'} {where}: {row.reason}")
    console.print()
    if report.layers:
        _render_layers(report)
    for remark in report.remarks:
        print_line(console, f"note: {remark}")
    chain = " -> ".join(c.label for c in report.chain)
    size = size_text(report.bundle_size_bytes)
    print_line(console, f"wrote {report.bundle} ({size}); chain: {chain}")
    bundle = shlex.quote(report.bundle)
    print_line(console, f"next: edgeserve bench {bundle}, or edgeserve run {bundle}")


def _render_layers(report: Conversion) -> None:
    shown = report.layers[:_SHOWN_LAYERS]
    rows = [(layer.node, layer.op, f"{layer.sqnr_db:.1f} dB") for layer in shown]
    console = stdout_console()
    more = len(report.layers) - len(shown)
    rest = f" (and {more} more: --json lists them)" if more else ""
    print_line(console, f"layers by the noise of static int8 in them{rest}")
    print_table(console, ("layer", "op", "SQNR"), rows, right=("SQNR",))
    console.print()


def _cells(row: VariantRow) -> tuple[str, ...]:
    from edgeserve.cli.quality import agreement_text, worst_text

    m = row.measured
    size = size_text(row.size_bytes) if row.size_bytes is not None else ""
    mark = ("✓" if row.chosen else "✗") + ("*" if row.pareto else "")
    head = (mark, row.variant, f"{row.runtime}/{row.device}", size)
    if m is None:
        return (*head, "", "", "", "", "", "", "")
    accuracy = m.accuracy
    return (
        *head,
        f"{m.latency_ms:.3f} ms",
        f"{m.speedup:.2f}x",
        f"{m.int8_compute_ops} of {m.compute_ops} ({m.inference_precision})",
        agreement_text(m.fidelity),
        f"{m.fidelity.sqnr_db:.1f} dB",
        worst_text(m.fidelity),
        f"{100 * accuracy.top1:.1f} %" if accuracy else "",
    )


def _limit(budget: str, flag: str, text: str | None, kind: type[_Number]) -> _Number | None:
    from edgeserve.gate.limits import BUDGETS, parse_limit

    return None if text is None else kind(parse_limit(BUDGETS[budget], text, flag))


_INPUT_TYPES: Final = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8",
                       "bool")  # fmt: skip


def _input_types(texts: list[str]) -> dict[str, str]:
    """INPUT=TYPE, a type as numpy and PyTorch call it."""
    types: dict[str, str] = {}
    for text in texts:
        name, _, kind = text.rpartition("=")
        if not name or kind not in _INPUT_TYPES:
            raise UsageError(
                f"--input-type {text} is not INPUT=TYPE",
                cause=f"types are {', '.join(_INPUT_TYPES)}",
                hint="--input-type ids=int64",
            )
        types[name] = kind
    return types


def _arguments(texts: list[str]) -> dict[str, object]:
    """NAME=VALUE, where a value is JSON if it can be read as such, else text."""
    arguments: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"--model-arg {text} is not NAME=VALUE", hint="--model-arg classes=10")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments
