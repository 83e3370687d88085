"""What each runtime can run: asked of the engines that are installed, not of a list kept here."""

from __future__ import annotations

from pathlib import Path

from edgeserve.checking.model import OnnxModel
from edgeserve.checking.report import Verdict
from edgeserve.checking.support import litert, onnxruntime, openvino
from edgeserve.conversion.tools.registry import shortest_path
from edgeserve.errors import UnsupportedModel
from edgeserve.inspecting import ModelReport
from edgeserve.runtimes import runtime, runtime_names
from edgeserve.targets.schema import ChainEntry

__all__ = ["Judge", "versions"]


class Judge:
    """Asks engines about one model, each (runtime, device, provider) once."""

    def __init__(self, report: ModelReport, model: OnnxModel | None) -> None:
        self._report = report
        self._model = model
        self._verdicts: dict[tuple[str, str, str], Verdict] = {}

    def verdict(self, entry: ChainEntry) -> Verdict:
        """What this entry's runtime says of the model on its device."""
        provider = str(entry.options.get("provider", ""))
        key = (entry.runtime, entry.device, provider)
        if key not in self._verdicts:
            self._verdicts[key] = self._ask(entry, provider or None)
        return self._verdicts[key]

    def reference(self) -> Verdict | None:
        """onnxruntime's CPU provider on an ONNX source: variants are proven against it."""
        if self._model is None:
            return None
        return self.verdict(ChainEntry("onnxruntime", "cpu", ("fp32",)))

    @property
    def verdicts(self) -> list[Verdict]:
        return list(self._verdicts.values())

    def _ask(self, entry: ChainEntry, provider: str | None) -> Verdict:
        name, device, source = entry.runtime, entry.device, self._report.format
        if name not in runtime_names():
            return Verdict(name, device, "unverified", f"no runtime adapter is called {name} here")
        formats = runtime(name).formats
        if source not in formats:
            try:
                shortest_path(source, formats[0])
            except UnsupportedModel as error:
                return Verdict(name, device, "no-path", f"{name} reads {formats[0]}: {error}")
        if self._model is not None:
            return self._of_onnx(self._model, name, device, provider)
        return self._of_file(Path(self._report.path), formats, name, device)

    def _of_onnx(self, model: OnnxModel, name: str, device: str, provider: str | None) -> Verdict:
        if name == "onnxruntime":
            return onnxruntime.judge(model, device, provider)
        if name == "openvino":
            return openvino.judge_onnx(model, device)
        if name == "litert":
            return litert.judge_onnx(model, device)
        return _unknown(name, device)

    def _of_file(self, path: Path, formats: tuple[str, ...], name: str, device: str) -> Verdict:
        source = self._report.format
        if source in formats and name == "litert":
            return litert.judge_tflite(path, device, self._report.operators)
        if name == "openvino" and source in ("openvino-ir", "tflite"):
            return openvino.judge_file(path, device, self._report.operators)
        if source in formats:
            return _unknown(name, device)
        why = f"a {source} source is judged when it is converted"
        return Verdict(name, device, "unverified", why)


def _unknown(name: str, device: str) -> Verdict:
    return Verdict(name, device, "unverified", f"check cannot ask the runtime {name}")


def versions() -> dict[str, str | None]:
    """The engines whose word counts here, with their versions; None where one is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    packages = {
        "onnx": "onnx", "onnxruntime": "onnxruntime", "openvino": "openvino",
        "litert": "ai-edge-litert",
    }  # fmt: skip
    for name, package in packages.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = None
    return found
