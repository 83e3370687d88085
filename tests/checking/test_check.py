"""What a check finds in real models, by the word of the engines that are installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from edgeserve.checking import CheckReport, Finding, check
from edgeserve.errors import SourceError, UsageError
from edgeserve.targets.schema import Target, load_target, parse_target
from tests.bundles import linear_model
from tests.checking.models import (
    inner_unknown,
    local_function,
    matmul,
    one_node,
    saved,
    sequence_output,
)
from tests.networks import small_cnn, with_unknown_op

DATA = Path(__file__).parent.parent / "data"


def target(runtime: str = "onnxruntime", device: str = "cpu", extra: str = "") -> Target:
    text = f"""
name = "mine"
title = "Mine"
arch = ["x86_64", "aarch64"]
[[chain]]
runtime = "{runtime}"
device = "{device}"
precisions = ["int8", "fp32"]
{extra}
"""
    return parse_target(text.encode(), "mine.toml")


def only(report: CheckReport, rule: str) -> list[Finding]:
    return [f for f in report.findings if f.rule == rule]


def states(report: CheckReport) -> list[tuple[str, str]]:
    return [(f"{e.runtime}/{e.device}", e.state) for t in report.targets for e in t.entries]


def test_a_plain_network_runs_fully_where_the_engines_are(tmp_path: Path) -> None:
    report = check(saved(small_cnn(), tmp_path), [load_target("cpu-x86")])
    assert report.ok
    assert states(report) == [("openvino/cpu", "runs"), ("onnxruntime/cpu", "runs")]
    assert not [f for f in report.findings if f.level != "note"]
    conv = next(o for o in report.operators if o.op == "Conv")
    assert conv.support == {"onnxruntime/cpu": "yes", "openvino/cpu": "yes"}
    assert (conv.nodes, report.nodes) == (5, 13)


def test_an_unknown_operator_is_named_with_its_node_for_every_runtime(tmp_path: Path) -> None:
    names = ("cpu-x86", "mobile-cpu")
    report = check(saved(with_unknown_op(), tmp_path), [load_target(n) for n in names])
    assert not report.ok
    assert [t.ok for t in report.targets] == [False, False]
    found = only(report, "unsupported-op")
    assert {(f.runtime, f.op, f.nodes, f.node_count, f.level) for f in found} == {
        (runtime, "acme.Sparkle", ("weird",), 1, "error")
        for runtime in ("onnxruntime", "openvino", "litert")
    }
    assert all("no runtime that was asked can run it" in str(f.hint) for f in found)
    assert all(e.unsupported_nodes == 1 for t in report.targets for e in t.entries)


def test_all_unsupported_operators_are_listed_not_only_the_first(tmp_path: Path) -> None:
    model = with_unknown_op()
    for index in range(7):
        last = f"y{index}"
        node = onnx.helper.make_node("Glow", ["y"], [last], name=f"glow{index}", domain="acme")
        model.graph.node.append(node)
        model.graph.output.append(
            onnx.helper.make_tensor_value_info(last, TensorProto.FLOAT, [1, 4])
        )
    report = check(saved(model, tmp_path), [load_target("cpu-x86")])
    for runtime in ("onnxruntime", "openvino"):
        found = {f.op: f for f in only(report, "unsupported-op") if f.runtime == runtime}
        assert set(found) == {"acme.Sparkle", "acme.Glow"}
        assert found["acme.Glow"].node_count == 7
        assert found["acme.Glow"].nodes == tuple(f"glow{i}" for i in range(5))


def test_the_runtime_that_can_run_an_operator_is_named(tmp_path: Path) -> None:
    """`com.microsoft.Inverse` is onnxruntime's alone: OpenVINO's entry is dropped, the target is fine."""
    file = saved(one_node("Inverse", "com.microsoft", shape=("batch", 4, 4)), tmp_path)
    report = check(file, [load_target("cpu-x86")])
    assert report.ok
    (found,) = only(report, "unsupported-op")
    assert (found.runtime, found.level) == ("openvino", "warning")
    assert (found.op, found.nodes) == ("com.microsoft.Inverse", ("it",))
    assert found.hint == "onnxruntime/cpu can run it"
    assert only(report, "custom-domain")[0].level == "warning"


def test_an_operator_that_only_another_runtime_has_cannot_be_proven(tmp_path: Path) -> None:
    """onnxruntime has no FP64 kernel of Erf on the CPU, and OpenVINO has."""
    file = saved(one_node("Erf", dtype=TensorProto.DOUBLE), tmp_path)
    report = check(file, [load_target("cpu-x86")])
    (found,) = only(report, "unsupported-type")
    assert (found.runtime, found.nodes, found.hint) == (
        "onnxruntime",
        ("it",),
        "openvino/cpu can run it",
    )
    assert only(report, "no-reference")
    assert not report.ok


@pytest.mark.parametrize(
    ("op", "domain", "dtype"),
    [
        ("Relu", "", TensorProto.FLOAT16),  # no kernel of its own: onnxruntime casts
        ("Bernoulli", "", TensorProto.FLOAT),  # a function of other operators
        ("Gelu", "com.microsoft", TensorProto.FLOAT),
        ("Erf", "", TensorProto.FLOAT),
        ("Erf", "", TensorProto.DOUBLE),
        ("Cosh", "", TensorProto.DOUBLE),
        ("Celu", "", TensorProto.DOUBLE),
        ("HardSwish", "", TensorProto.DOUBLE),  # a function with a node that has no kernel
        ("Snpe", "com.microsoft", TensorProto.FLOAT),
        ("Foo", "", TensorProto.FLOAT),
    ],
)
def test_onnxruntimes_tables_agree_with_what_it_opens(
    tmp_path: Path, op: str, domain: str, dtype: int
) -> None:
    file = saved(one_node(op, domain, dtype=dtype), tmp_path)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
        opens = True
    except Exception:
        opens = False
    assert check(file, [target()]).ok == opens


def test_operators_inside_branches_are_found(tmp_path: Path) -> None:
    report = check(saved(inner_unknown(), tmp_path), [load_target("cpu-x86")])
    found = [f for f in only(report, "unsupported-op") if f.runtime == "onnxruntime"]
    assert [(f.op, set(f.nodes)) for f in found] == [("acme.Sparkle", {"then", "else"})]
    assert only(report, "control-flow")[0].nodes == ("choose",)
    assert {e.peak_memory_bytes for e in report.estimates} == {None}


def test_functions_of_the_model_itself_are_no_custom_operators(tmp_path: Path) -> None:
    report = check(saved(local_function(), tmp_path), [load_target("cpu-x86")])
    assert report.ok
    assert not only(report, "custom-domain")
    assert states(report)[1] == ("onnxruntime/cpu", "runs")


def test_an_opset_newer_than_the_engines(tmp_path: Path) -> None:
    newer = onnx.defs.onnx_opset_version() + 1
    report = check(saved(one_node("Relu", opset=newer), tmp_path), [target()])
    assert not report.ok
    (found,) = only(report, "opset-too-new")
    assert found.level == "error"
    assert f"opset {newer} is newer" in found.message
    assert f"onnx knows up to {newer - 1}" in found.message


def test_an_opset_older_than_convert_reads(tmp_path: Path) -> None:
    report = check(saved(one_node("Relu", opset=6), tmp_path), [target()])
    assert not report.ok
    assert only(report, "opset-too-old")[0].hint == "export the model again with opset 17 or newer"


def test_an_operator_newer_than_the_models_opset(tmp_path: Path) -> None:
    report = check(saved(one_node("Gelu", opset=17), tmp_path), [target()])
    (found,) = only(report, "unknown-op")
    assert (found.op, found.nodes) == ("Gelu", ("it",))
    assert found.hint == "export the model with a newer opset"
    assert not report.ok


def test_dynamic_dimensions_for_an_npu_and_the_shape_that_fixes_them(tmp_path: Path) -> None:
    file = saved(one_node("Relu", shape=("batch", 3, "height", "width")), tmp_path)
    npu = load_target("intel-npu")
    report = check(file, [npu])
    assert not report.ok
    (error,) = only(report, "dynamic-shape")  # on the CPU behind it they may vary
    assert (error.level, error.device) == ("error", "npu")
    assert "input 'x' is [batch,3,height,width]: height, width can vary" in error.message
    assert error.hint == "fix them, here and in convert: --shape x=1,3,N,N"
    fixed = check(file, [npu], {"x": (1, 3, 32, 32)})
    assert fixed.ok
    assert not only(fixed, "dynamic-shape")
    assert fixed.estimates[0].peak_memory_bytes == 2 * 4 * 3 * 32 * 32


def test_a_batch_alone_may_vary(tmp_path: Path) -> None:
    report = check(saved(small_cnn(), tmp_path), [load_target("intel-npu")])
    assert report.ok
    assert not only(report, "dynamic-shape")


def test_a_device_that_is_not_here_is_not_said_to_be_fine(tmp_path: Path) -> None:
    import openvino

    if "NPU" in openvino.Core().available_devices:
        pytest.skip("this machine has an NPU")
    report = check(saved(small_cnn(), tmp_path), [load_target("intel-npu")])
    assert states(report)[0] == ("openvino/npu", "unverified")
    (found,) = only(report, "not-verified")
    assert found.level == "note"
    assert "no NPU opens here to check" in found.message


@pytest.mark.parametrize(("memory_mb", "ok", "level"), [(1, False, "error"), (20, True, None)])
def test_a_memory_limit_no_precision_keeps(
    tmp_path: Path, memory_mb: int, ok: bool, level: str | None
) -> None:
    """3000 x 2000 weights: 24 MB in fp32, 6 MB in int8."""
    file = saved(matmul(3000, 2000), tmp_path)
    report = check(file, [target(extra=f"[limits]\nmemory_mb = {memory_mb}")])
    assert report.ok is ok
    (found,) = only(report, "memory-limit")
    assert found.level == (level or "warning")
    assert "fp32 24.0 MB" in found.message
    assert ("--precision int8" in str(found.hint)) is ok


def test_double_precision_weights(tmp_path: Path) -> None:
    report = check(saved(matmul(4, 3, np.float64), tmp_path), [target()])
    (found,) = only(report, "float64")
    assert (found.level, found.nodes) == ("warning", ("w",))


def test_an_output_that_is_no_tensor(tmp_path: Path) -> None:
    report = check(saved(sequence_output(), tmp_path), [target()])
    assert not report.ok
    (found,) = only(report, "interface")
    assert found.message == "'y' is a sequence, not a tensor"


def test_a_quantized_source_is_said_to_be_one(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    source, result = saved(linear_model(), tmp_path), tmp_path / "int8.onnx"
    quantize_dynamic(str(source), str(result))
    assert only(check(result, [target()]), "already-quantized")
    assert not only(check(source, [target()]), "already-quantized")


def test_nodes_that_a_providers_kernels_do_not_cover_fall_back(tmp_path: Path) -> None:
    """The CPU provider's tables stand in for an accelerator's: it has no FP64 kernel of Erf."""
    provider = 'options = { provider = "CPUExecutionProvider" }'
    asked = [target(device="gpu", extra=provider)]
    report = check(saved(one_node("Erf", dtype=TensorProto.DOUBLE), tmp_path), asked)
    assert states(report) == [("onnxruntime/gpu", "partly")]
    (found,) = only(report, "cpu-fallback")
    assert (found.level, found.nodes) == ("warning", ("it",))
    assert found.message == "onnxruntime/gpu leaves Erf to the CPU: no kernel for tensor(double)"
    assert states(check(saved(small_cnn(), tmp_path), asked)) == [("onnxruntime/gpu", "runs")]


def test_a_provider_that_another_build_has_is_not_verified(tmp_path: Path) -> None:
    provider = 'options = { provider = "RknpuExecutionProvider" }'
    report = check(saved(small_cnn(), tmp_path), [target(device="npu", extra=provider)])
    assert report.ok
    assert states(report) == [("onnxruntime/npu", "unverified")]
    assert "has no RknpuExecutionProvider" in only(report, "not-verified")[0].message


def test_a_runtime_that_nobody_here_has(tmp_path: Path) -> None:
    report = check(saved(small_cnn(), tmp_path), [target("tensorrt", "gpu")])
    assert report.ok
    assert "no runtime adapter is called tensorrt" in only(report, "not-verified")[0].message


def test_a_tflite_file_is_tried_by_the_interpreter() -> None:
    report = check(DATA / "small-cnn-fp32.tflite", [target("litert")])
    assert report.ok
    assert states(report) == [("litert/cpu", "runs")]
    assert report.estimates == ()


def test_a_tflite_custom_operator_is_named(tmp_path: Path) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    content = (DATA / "small-cnn-fp32.tflite").read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    code = model.operatorCodes[0]
    code.builtinCode, code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM, 32
    code.customCode = b"Sparkle"
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    file = tmp_path / "custom.tflite"
    file.write_bytes(builder.Output())
    for runtime in ("litert", "openvino"):
        report = check(file, [target(runtime)])
        assert not report.ok
        (found,) = only(report, "unsupported-op")
        assert (found.op, found.level) == ("Sparkle", "error")
        assert found.nodes == ("Sparkle[0]", "Sparkle[1]")
        assert report.targets[0].entries[0].unsupported_nodes == 2


@pytest.mark.parametrize("name", ["digits-fp32.tflite", "small-cnn-int8.tflite"])
def test_openvino_is_asked_about_a_tflite_file(name: str) -> None:
    report = check(DATA / name, [load_target("cpu-x86")])
    assert states(report)[0] == ("openvino/cpu", "runs")
    assert all(o.support["openvino/cpu"] == "yes" for o in report.operators)


@pytest.mark.parametrize(
    ("make", "format_name"),
    [
        (lambda p: (p / "net.pt2").write_bytes(b"PK\x03\x04") and p / "net.pt2", "torch-export"),
        (lambda p: (p / "config.json").write_text("{}") and p, "huggingface"),
    ],
)
def test_a_source_that_no_engine_reads_says_how_it_becomes_one(
    tmp_path: Path, make: Callable[[Path], Path], format_name: str
) -> None:
    with pytest.raises(SourceError, match=f"is {format_name}, and engines are asked") as caught:
        check(make(tmp_path), [target()])
    assert "--precision fp32" in (caught.value.hint or "")


def test_a_format_that_no_converter_reads() -> None:
    report = check(DATA / "small-cnn-fp32.tflite", [target("onnxruntime")])
    assert not report.ok
    assert (
        "no installed converter leads from tflite" in only(report, "no-conversion-path")[0].message
    )


def test_an_openvino_model_is_asked_of_its_plugin(tmp_path: Path) -> None:
    import openvino

    network = openvino.Core().read_model(str(saved(small_cnn(), tmp_path)))
    openvino.save_model(network, tmp_path / "model.xml")
    report = check(tmp_path / "model.xml", [target("openvino")])
    assert report.ok
    assert states(report) == [("openvino/cpu", "runs")]


def test_external_data_are_not_loaded_to_be_measured(tmp_path: Path) -> None:
    whole = check(saved(matmul(), tmp_path), [load_target("cpu-x86")])
    folder = tmp_path / "apart"
    folder.mkdir()
    onnx.save(
        matmul(), folder / "model.onnx", save_as_external_data=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    apart = check(folder / "model.onnx", [load_target("cpu-x86")])
    assert states(apart) == [("openvino/cpu", "runs"), ("onnxruntime/cpu", "runs")]
    assert apart.estimates[0].weight_bytes == whole.estimates[0].weight_bytes == 4 * 256 * 256
    assert apart.estimates[0].peak_memory_bytes == whole.estimates[0].peak_memory_bytes


def _cut(folder: Path) -> Path:
    file = folder / "cut.onnx"
    file.write_bytes(small_cnn().SerializeToString()[:3000])
    return file


def _text(folder: Path) -> Path:
    file = folder / "notes.onnx"
    file.write_text("hello\n")
    return file


def _invalid(folder: Path) -> Path:
    model = linear_model()
    model.graph.node[0].input[0] = "nowhere"
    return saved(model, folder)


def _not_text(folder: Path) -> Path:
    """onnx's checker cannot even say which input nobody writes."""
    before, _, after = linear_model().SerializeToString().rpartition(b"sum")
    file = folder / "damaged.onnx"
    file.write_bytes(before + b"su\xf3" + after)
    return file


@pytest.mark.parametrize(
    "make", [_cut, _text, _invalid, _not_text, lambda f: f, lambda f: f / "absent.onnx"]
)
def test_what_is_no_model_is_an_error(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(SourceError):
        check(make(tmp_path), [target()])


@pytest.mark.parametrize("size", [1, 100, 1000, 3000, 5000, 7000, 7447])
def test_a_truncated_model_never_passes(tmp_path: Path, size: int) -> None:
    whole = small_cnn().SerializeToString()
    file = tmp_path / "cut.onnx"
    file.write_bytes(whole[:size])
    assert size < len(whole)
    with pytest.raises(SourceError):
        check(file, [target()])


def test_a_node_name_that_is_not_utf8_is_shown_as_it_can_be(tmp_path: Path) -> None:
    content = with_unknown_op().SerializeToString()
    file = tmp_path / "model.onnx"
    file.write_bytes(content.replace(b"weird", b"weir\xf3"))
    report = check(file, [target()])
    assert only(report, "unsupported-op")[0].nodes == ("weir\ufffd",)


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    file = saved(small_cnn(), tmp_path)
    with pytest.raises(UsageError, match="names no input"):
        check(file, [target()], {"picture": (1, 3, 32, 32)})
    with pytest.raises(UsageError, match="--shape fixes dimensions of ONNX"):
        check(DATA / "small-cnn-fp32.tflite", [target("litert")], {"image": (1,)})


def test_nothing_is_written(tmp_path: Path) -> None:
    file = saved(small_cnn(), tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    check(file, [load_target("cpu-x86"), load_target("mobile-cpu")])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    assert list(before) == [file]
