"""The Python API: `convert` a model and `load` a bundle. Documented in docs/python-api.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from edgeserve.bundle import Bundle, Candidate, Postprocess, Preprocess
from edgeserve.chain import Chain, ChainOptions
from edgeserve.chain.planning import planned
from edgeserve.devices import usable_cores
from edgeserve.errors import DataError, InvalidInput
from edgeserve.postprocess import Answer, AnswerOptions, Postprocessor
from edgeserve.preprocess import Frame, ImageReader, ReadImage
from edgeserve.tensors import Array, Interface, Tensors, as_bytes
from edgeserve.values import Misfit, array_of

if TYPE_CHECKING:
    from edgeserve.conversion.report import Conversion

__all__ = ["Conversion", "Model", "Preprocess", "convert", "load"]


def convert(
    source: str | Path,
    output: str | Path,
    *,
    target: str = "auto",
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8", "int4"] = "auto",
    recipes: Sequence[str] = (),
    calibrate: str | Path | Callable[[], Iterable[Any]] | None = None,
    calibration_samples: int = 128,
    evaluate: str | Path | None = None,
    preprocess: Preprocess | None = None,
    labels: str | Path | None = None,
    postprocess: Postprocess | Mapping[str, object] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    simplify: bool = False,
    max_drop: float = 1.0,
    min_fidelity: float | None = None,
    min_sqnr: float | Mapping[str, float] | None = None,
    output_kinds: Mapping[str, str] | None = None,
    max_size: int | None = None,
    max_latency: float | None = None,
    max_time: float = 600.0,
    explain: bool = False,
    strict: bool = False,
    force: bool = False,
    name: str | None = None,
    model_class: str | None = None,
    model_args: Mapping[str, object] | None = None,
    python_path: Sequence[str] = (),
    input_types: Mapping[str, str] | None = None,
    task: str | None = None,
    signature: str | None = None,
    trust_source: bool = False,
    tool_env: bool = True,
    progress: Callable[[str, float | None], None] | None = None,
) -> Conversion:
    """Convert a model into a bundle; the parameters are `edgeserve convert`'s flags.

    `min_sqnr` is in dB, for all outputs or by name; `output_kinds` says by name what outputs hold; `postprocess` how they become an answer, as a struct or some of its fields. `max_size` is in bytes, `max_latency` in ms, `max_time` in seconds. `progress(what, share)` is called with what is being done and, where known, the share done (0-1).
    Returns the report that the command prints. Raises EdgeServeError; on any error `output` is as
    it was before.
    """
    from edgeserve.conversion.options import Options, SourceOptions, asked_task
    from edgeserve.conversion.pipeline import convert as run

    options = Options(
        source=SourceOptions(
            model_class=model_class,
            model_args=dict(model_args or {}),
            python_path=tuple(python_path),
            input_types=dict(input_types or {}),
            trust_source=trust_source,
            task=None if asked_task(task) else task,
            signature=signature,
        ),
        target=target,
        precision=precision,
        recipes=tuple(recipes),
        calibrate=calibrate if callable(calibrate) else _text(calibrate),
        calibration_samples=calibration_samples,
        evaluate=_text(evaluate),
        preprocess=preprocess,
        labels=_text(labels),
        task=asked_task(task),
        postprocess=_fields(postprocess),
        shapes=dict(shapes or {}),
        simplify=simplify,
        max_drop=max_drop,
        min_fidelity=min_fidelity,
        min_sqnr=min_sqnr if isinstance(min_sqnr, int | float) else None,
        min_sqnr_of=min_sqnr if isinstance(min_sqnr, Mapping) else {},
        output_kinds=dict(output_kinds or {}),
        max_size=max_size,
        max_latency=max_latency,
        max_time=max_time,
        explain=explain,
        strict=strict,
        force=force,
        name=name,
        tool_env=tool_env,
    )
    return run(Path(source), Path(output), options, progress)


def _fields(how: Postprocess | Mapping[str, object] | None) -> Mapping[str, object]:
    if how is None:
        return {}
    if isinstance(how, Mapping):
        return how
    fields = {name: getattr(how, name) for name in how.__struct_fields__}
    return fields | {"kind": how.__struct_config__.tag}


def load(
    bundle: str | Path,
    *,
    device: str | None = None,
    fallback: bool = True,
    threads: int = 0,
    instances: int = 0,
) -> Model:
    """Open a bundle on the first candidate of its chain that works here.

    `device` (`cpu`, `gpu`, `npu`) keeps only candidates on it; with `fallback=False` the first
    candidate must open. `instances` is the maximum of concurrent calls, `threads` the threads of one
    call; 0 chooses by cores and model, as `edgeserve run` does. Raises BundleError, DeviceUnavailable.
    """
    opened = Bundle.open(bundle)
    options = ChainOptions(device=device, fallback=fallback, threads=threads, instances=instances)
    return Model(Chain(opened, planned(opened, options, usable_cores())))


class Model:
    """A loaded bundle. `run` may be called from several threads; close it, or use it with `with`."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        bundle = chain.bundle
        self._images = ImageReader.of(bundle.manifest.task.preprocess, chain.interface)
        names = {output: own.names for output, own in bundle.output_labels().items()}
        self._postprocessor = Postprocessor(
            bundle.manifest.task, chain.interface, names, bundle.labels() or ()
        )

    @property
    def interface(self) -> Interface:
        """Inputs and outputs: names, element types, shapes."""
        return self._chain.interface

    @property
    def candidate(self) -> Candidate:
        """What answers now: variant, runtime and device."""
        return self._chain.candidate

    @property
    def device(self) -> str:
        return self.candidate.device

    @property
    def labels(self) -> list[str] | None:
        """The class names, if the bundle has them."""
        return self._chain.bundle.labels()

    def run(self, inputs: Mapping[str, npt.ArrayLike]) -> Tensors:
        """Run one request: arrays by input name, with the interface's types and shapes.

        Types must match, since a silent cast hides mistakes; Python numbers and lists take the
        input's own type. Raises InvalidInput naming the input, what was expected and what came;
        InferenceFailed when every candidate failed.
        """
        tensors = self._inputs(inputs)
        self.interface.check(tensors)
        return self._chain.run(tensors)[0]

    def predict(
        self, what: Any, *, top_k: int | None = None, threshold: float | None = None
    ) -> Any:
        """What is on an image, or what a row of inputs is: classes, boxes, a class map, or a vector, as the bundle's
        postprocess says; outputs as lists, if it says nothing.

        `what` is an image: a path, its encoded bytes, a PIL image, or UINT8 pixels `[height, width, 3]`; or inputs by name,
        as for `run`. A list of images gives a list of answers. `top_k` and `threshold` override the bundle's. It is the
        answer of a server's `POST /v2/models/NAME/predict`. Raises InvalidInput, DataError, InferenceFailed.
        """
        options = AnswerOptions(top_k, threshold)
        if isinstance(what, Mapping):
            return _one_or_all(self._answers(self._inputs(what), (), options))
        if not isinstance(what, list | tuple):
            return self._of_images([what], options)[0]
        step = self.interface.max_batch or 1
        starts = range(0, len(what), step)
        return [a for start in starts for a in self._of_images(what[start : start + step], options)]

    def _of_images(self, images: Sequence[Any], options: AnswerOptions) -> list[Answer]:
        reader = self._images
        if reader is None:
            needed = ", ".join(f"'{s.name}' {s.describe()}" for s in self.interface.inputs)
            raise InvalidInput(
                f"this bundle does not say how an image becomes its input: give {needed} by name",
                hint="convert --image-size and --preprocess store it",
            )
        found = [_read(reader, image) for image in images]
        tensor = np.concatenate([f.tensor for f in found]) if len(found) > 1 else found[0].tensor
        return self._answers({reader.spec.name: tensor}, [f.frame for f in found], options)

    def _answers(
        self, inputs: Tensors, frames: Sequence[Frame], options: AnswerOptions
    ) -> list[Answer]:
        rows = self.interface.check(inputs)
        outputs = self._chain.run(inputs)[0]
        needed = {name: outputs[name] for name in self._postprocessor.outputs}
        return self._postprocessor.answers(needed, rows, frames, options)

    def _inputs(self, inputs: Mapping[str, npt.ArrayLike]) -> Tensors:
        return {name: self._array(name, value) for name, value in inputs.items()}

    def _array(self, name: str, value: npt.ArrayLike) -> Array:
        spec = self.interface.input(name)
        if isinstance(value, np.ndarray):
            is_text = spec.dtype == "BYTES" and value.dtype.kind in "US"
            return as_bytes(value) if is_text else value
        if not isinstance(value, _PLAIN):
            return np.asarray(value)  # a tensor of another package, which has a type of its own
        try:
            return array_of(_plain(value), spec.dtype)
        except Misfit as error:
            raise InvalidInput(f"input '{name}': {error}") from None

    def close(self) -> None:
        self._chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _one_or_all(answers: list[Answer]) -> Any:
    return answers[0] if len(answers) == 1 else answers


def _read(reader: ImageReader, image: Any) -> ReadImage:
    """A path, bytes, pixels or PIL image. Raises DataError, InvalidInput."""
    if isinstance(image, str | Path):
        try:
            return reader.read(Path(image).read_bytes(), str(image))
        except OSError as error:
            raise DataError(f"{image} cannot be read", cause=error.strerror) from None
    if isinstance(image, bytes | bytearray | memoryview):
        return reader.read(bytes(image))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise InvalidInput(
                f"pixels are UINT8 [height, width, 3], got {image.dtype} {list(image.shape)}"
            )
        from PIL import Image

        image = Image.fromarray(image)
    if not hasattr(image, "resize"):
        raise InvalidInput(
            f"expected a path, bytes, a PIL image or pixels, got {type(image).__name__}"
        )
    return reader.of_pixels(image)


_PLAIN: Final = (list, tuple, bool, int, float, str, bytes, np.generic)


def _plain(value: Any) -> Any:
    """Lists and Python values, where lists hold arrays or numpy's scalars."""
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _text(value: str | Path | None) -> str | None:
    return None if value is None else str(value)


def __getattr__(name: str) -> object:
    if name == "Conversion":  # build side: absent from what a device needs to import
        from edgeserve.conversion.report import Conversion

        return Conversion
    raise AttributeError(f"module 'edgeserve.api' has no attribute '{name}'")
