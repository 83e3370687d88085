"""Hugging Face folder -> ONNX (fp32, opset 20) by optimum's exporter, for models that make one pass over text
or an image: classifiers, taggers, encoders. Nothing is downloaded, and no code in the folder is run.

What was written is run beside the transformers model on several inputs before it is called converted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from edgeserve_converters._verify import open_onnx, run_onnx, sample_array, write_verification

# 18 takes LayerNorm and GELU apart.
_OPSET = 20
# A task, how the classes made for it end, and transformers' class that loads such a model.
_TASKS = {
    "text-classification": ("ForSequenceClassification", "AutoModelForSequenceClassification"),
    "token-classification": ("ForTokenClassification", "AutoModelForTokenClassification"),
    "image-classification": ("ForImageClassification", "AutoModelForImageClassification"),
    "feature-extraction": ("Model", "AutoModel"),
}
_DIMENSIONS = {"batch_size": "batch", "sequence_length": "sequence"}
# (batch, length) of the inputs that are compared; lengths are cut to what the model takes.
_SIZES = ((1, 8), (3, 16), (2, 5), (2, 64))


class HuggingfaceToOnnx:
    name = "huggingface-to-onnx"
    source_format = "huggingface"
    output_format = "onnx"
    environment = "huggingface"
    # optimum-onnx 0.1 needs optimum < 2.2 and transformers < 4.58; this torch is a CPU build.
    requires: tuple[str, ...] = (
        "torch==2.13.0",
        "transformers==4.57.6",
        "optimum==2.1.0",
        "optimum-onnx==0.1.0",
        "huggingface_hub==0.36.2",
        "tokenizers==0.22.2",
        "safetensors==0.8.0",
        "onnx==1.23.2",
        "onnxruntime==1.32.0",
        "numpy==2.4.6",
    )
    imports: tuple[str, ...] = (
        "torch",
        "transformers",
        "optimum.exporters.onnx",
        "safetensors",
        "onnx",
        "onnxruntime",
    )
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """More options: `task` (one of four; else by the class named in config.json), `trust_source`
        (read pickled weights). `input_shapes` of `pixel_values` is needed where neither config.json
        nor preprocessor_config.json says the image's size.

        Batch ("batch") and text length ("sequence") stay dynamic, an image's size is fixed. `labels.txt`
        beside the file has one class name a line, where the model knows names."""
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
        settings = _settings(source)
        task = _task(source, settings, options.get("task"))
        pickled = _pickled(source, trusted=bool(options.get("trust_source")))
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        model = _model(source, settings, task, pickled=pickled)
        recipe = _recipe(model, task)
        image = _image_shape(source, settings, options) if "pixel_values" in recipe.inputs else ()
        destination = out_dir / "model.onnx"
        _export(model, recipe, image, destination)
        _fix_dimensions(destination, image)
        session = open_onnx(destination)
        pairs = []
        for feeds in _samples(model.config, list(recipe.inputs), image):
            with torch.no_grad():
                found = model(**{name: torch.from_numpy(array) for name, array in feeds.items()})
            pairs.append(({n: found[n].numpy() for n in recipe.outputs}, run_onnx(session, feeds)))
        write_verification(out_dir, "transformers", transformers.__version__, pairs)
        _write_labels(model.config, task, out_dir)
        return [destination, *out_dir.glob("model.onnx_data")]


# what the folder says


def _settings(source: Path) -> dict[str, Any]:
    """config.json. Raises RuntimeError for one that is not a transformers model's."""
    try:
        settings = json.loads((source / "config.json").read_text("utf-8"))
    except (ValueError, FileNotFoundError) as error:
        raise RuntimeError(f"config.json cannot be read: {error}") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("model_type"), str):
        raise RuntimeError("config.json has no model_type: it is not a transformers model")  # noqa: TRY004 - the file is wrong, not a type
    if settings.get("is_encoder_decoder"):
        raise RuntimeError(
            f"{settings['model_type']} is an encoder with a decoder, which answers in several passes; "
            f"models for {_listed(_TASKS)} can be converted"
        )
    return settings


def _task(source: Path, settings: Mapping[str, Any], wanted: object) -> str:
    """The task asked for, or that of the class which the folder was saved from. Raises RuntimeError."""
    if wanted is not None and wanted not in _TASKS:
        raise RuntimeError(f"there is no task '{wanted}': {_listed(_TASKS)} can be converted")
    classes = [str(name) for name in settings.get("architectures") or ()]
    named = ", ".join(classes) or "no class"
    trained = None
    for task, (ending, _) in _TASKS.items():
        if any(name.endswith(ending) for name in classes):
            trained = task
            break
    if wanted is None and (source / "modules.json").is_file():  # sentence-transformers: an encoder
        return "feature-extraction"
    if wanted is None and trained is None:
        raise RuntimeError(
            f"config.json names {named}, which does not name a task that can be converted: choose with --task "
            f"one of {_listed(_TASKS)}"
        )
    # Other tasks' heads may fit, since they have the same names, and compute something else.
    if wanted not in (None, trained, "feature-extraction") and trained is not None:
        raise RuntimeError(f"config.json names {named}, a model for {trained}, not for {wanted}")
    return str(wanted or trained)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _pickled(source: Path, *, trusted: bool) -> bool:
    """Whether the weights are pickled ones, which are read only when that is allowed. Raises RuntimeError."""
    weights = [f for f in sorted(source.glob("*.safetensors")) if f.is_file()]
    for file in weights:
        with file.open("rb") as content:
            if content.read(24).startswith(b"version https://git-lfs"):
                raise RuntimeError(f"{file.name} is a Git LFS pointer: fetch it with git lfs pull")
    if weights:
        return False
    pickles = sorted(f.name for f in source.glob("pytorch_model*.bin"))
    if pickles and trusted:
        return True
    if pickles:
        raise RuntimeError(
            f"its weights are pickled ({pickles[0]}), and a pickle can execute code: save it again with "
            "model.save_pretrained(folder, safe_serialization=True), or give --trust-source for a folder you trust"
        )
    found = sorted(f.name for f in source.iterdir() if f.suffix in (".h5", ".msgpack", ".onnx"))
    more = f"; {found[0]} is of another framework" if found else ""
    raise RuntimeError(f"the folder has no weights: no *.safetensors beside config.json{more}")


def _image_shape(
    source: Path, settings: Mapping[str, Any], options: Mapping[str, object]
) -> tuple[int, int, int]:
    """Channels, height, width: as asked for, else as the model, else as its preprocessor has them."""
    shapes = options.get("input_shapes") or {}
    assert isinstance(shapes, Mapping)
    if asked := shapes.get("pixel_values"):
        if len(asked) != 4:
            raise RuntimeError(f"pixel_values has 4 dimensions (NCHW), not {len(asked)}")
        return int(asked[1]), int(asked[2]), int(asked[3])
    channels = int(settings.get("num_channels", 3))
    file = source / "preprocessor_config.json"
    preprocessing = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    crop = preprocessing.get("crop_size") if preprocessing.get("do_center_crop", True) else None
    for size in (settings.get("image_size"), crop, preprocessing.get("size")):
        if isinstance(size, Mapping):
            size = (
                [size.get("height"), size.get("width")]
                if "height" in size
                else size.get("shortest_edge")
            )
        height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
        if isinstance(height, int) and isinstance(width, int):
            return channels, height, width
    raise RuntimeError(
        f"neither config.json nor preprocessor_config.json says the image's size: give --shape pixel_values=1,{channels},H,W"
    )


def _write_labels(config: Any, task: str, out_dir: Path) -> None:
    """transformers makes up LABEL_0, LABEL_1, … where nobody named the classes."""
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    if task == "feature-extraction" or sorted(names) != list(range(len(names))):
        return
    if not names or all(re.fullmatch(r"LABEL_\d+", name) for name in names.values()):
        return
    lines = [" ".join(names[index].split()) for index in range(len(names))]
    (out_dir / "labels.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")


# the model


def _model(source: Path, settings: Mapping[str, Any], task: str, *, pickled: bool) -> Any:
    """The model in fp32, all its weights from the folder. Raises RuntimeError saying what is wrong."""
    import torch
    import transformers

    kind = settings["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        raise RuntimeError(
            f"transformers {transformers.__version__} has no architecture '{kind}', and code in the folder is "
            f"not run; known ones for {_listed(_TASKS)} can be converted"
        )
    loader = getattr(transformers, _TASKS[task][1])
    model, info = _loaded(
        lambda: loader.from_pretrained(
            str(source),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=not pickled,
            dtype=torch.float32,
            # Others look at the mask's values while they are traced, and leave it out where all are ones.
            attn_implementation="eager",
            output_loading_info=True,
        ),
        f"it cannot be loaded for {task}",
    )
    # An encoder's pooler is made anew where the folder has none; last_hidden_state doesn't need it.
    missing = [
        name
        for name in sorted(info["missing_keys"])
        if task != "feature-extraction" or "pooler" not in name
    ]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise RuntimeError(
            f"the weights lack {missing[0]}{more}, so this model does not fit the task {task}: "
            f"config.json names {', '.join(settings.get('architectures') or ['no class'])}"
        )
    return model.eval()


def _loaded(load: Callable[[], Any], what: str) -> Any:
    """transformers' errors are OSErrors and ImportErrors at times; those would look like others' faults."""
    try:
        return load()
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kind = type(error).__name__
        raise RuntimeError(f"{what}: {kind}: {' '.join(lines[:4])}") from error


def _recipe(model: Any, task: str) -> Any:
    """optimum's export configuration: the names and dynamic dimensions of inputs and outputs."""
    import optimum.exporters.onnx.model_configs  # noqa: F401 - registers the architectures
    from optimum.exporters.tasks import TasksManager

    kind = model.config.model_type
    try:
        known = TasksManager.get_supported_tasks_for_model_type(
            kind, "onnx", library_name="transformers"
        )
    except KeyError:
        known = {}
    if task not in known:
        possible = [name for name in _TASKS if name in known]
        hint = f"; it has for {_listed(possible)}: --task" if possible else ""
        raise RuntimeError(f"optimum has no ONNX export of '{kind}' for {task}{hint}")
    make = TasksManager.get_exporter_config_constructor(
        exporter="onnx", model=model, task=task, library_name="transformers"
    )
    recipe = make(model.config)
    if {"input_ids", "pixel_values"} <= set(recipe.inputs):
        raise RuntimeError(
            f"'{kind}' takes text and images: only models that take one of them can be converted"
        )
    strange = sorted(set(recipe.inputs) - {*_TEXT_INPUTS, "pixel_values"})
    if strange:
        raise RuntimeError(
            f"'{kind}' takes {', '.join(strange)}: models of text or an image can be converted"
        )
    return recipe


_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def _export(model: Any, recipe: Any, image: tuple[int, ...], destination: Path) -> None:
    from optimum.exporters.onnx.convert import export

    sizes = dict(zip(("num_channels", "height", "width"), image, strict=True)) if image else {}
    _loaded(
        lambda: export(
            model,
            recipe,
            destination,
            opset=max(_OPSET, recipe.DEFAULT_ONNX_OPSET),
            input_shapes=sizes,
        ),
        "torch cannot write it as ONNX",
    )


def _fix_dimensions(file: Path, image: tuple[int, ...]) -> None:
    """Our names for dynamic dimensions; images of the size that was traced, for others need not work."""
    import onnx

    model = onnx.load_model(str(file), load_external_data=False)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.name == "pixel_values":
            for dim, size in zip(dims[1:], image, strict=True):
                dim.dim_value = size
        for dim in dims:
            if dim.HasField("dim_param"):
                dim.dim_param = _DIMENSIONS.get(dim.dim_param, dim.dim_param)
    onnx.save_model(model, str(file))


def _samples(config: Any, inputs: list[str], image: tuple[int, ...]) -> Iterable[dict[str, Any]]:
    """Inputs of several sizes: tokens of the model's vocabulary, the last text padded; normal pixels."""
    import numpy as np

    rng = np.random.default_rng(0)
    vocabulary, pad = getattr(config, "vocab_size", 0), getattr(config, "pad_token_id", None) or 0
    # RoBERTa counts positions from its padding's number on.
    longest = (getattr(config, "max_position_embeddings", None) or 1 << 30) - pad - 1
    for batch, length in _SIZES:
        shape = (batch, min(length, max(longest, 1)))
        mask = np.ones(shape, np.int64)
        if batch > 1:
            mask[-1, shape[1] - shape[1] // 3 :] = 0
        made = {}
        for name in inputs:
            if name == "pixel_values":
                made[name] = sample_array((batch, *image), np.float32, rng)
            elif name == "input_ids":
                ids = rng.integers(0, vocabulary, shape)
                ids[ids == pad] = (pad + 1) % vocabulary
                made[name] = np.where(mask == 1, ids, pad)
            elif name == "attention_mask":
                made[name] = mask
            elif name == "position_ids":
                made[name] = np.tile(np.arange(shape[1]), (batch, 1))
            else:
                made[name] = rng.integers(0, max(config.type_vocab_size, 1), shape)
        yield made


CONVERTER = HuggingfaceToOnnx()
