"""The messages: what is committed is what inference.proto says, and what Triton's clients say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor

from edgeserve.wire import messages

HERE = Path(messages.__file__).parent
THEIRS = (triton.service_pb2.DESCRIPTOR, triton.model_config_pb2.DESCRIPTOR)


def every_message(found: Descriptor) -> list[Descriptor]:
    return [found, *(inner for nested in found.nested_types for inner in every_message(nested))]


OURS = [m for top in messages.DESCRIPTOR.message_types_by_name.values() for m in every_message(top)]


def their_message(full_name: str) -> Descriptor:
    for file in THEIRS:
        try:
            return file.pool.FindMessageTypeByName(full_name)
        except KeyError:
            continue
    raise AssertionError(f"Triton's client knows no {full_name}")


def enum_values(found: EnumDescriptor) -> dict[str, int]:
    return {v.name: v.number for v in found.values}


# In a process of its own: a descriptor that a test holds keeps its class.
LIVE = """
import gc
from google.protobuf.message import Message
from edgeserve.wire import messages
gc.collect()
found = [c for c in gc.get_objects() if isinstance(c, type) and issubclass(c, Message)]
print(*(c.DESCRIPTOR.full_name for c in found if c.DESCRIPTOR))
"""


def test_classes_outlive_the_garbage_collector() -> None:
    """protobuf alone lets go of nested ones, and crashes when one is asked for at that moment."""
    done = subprocess.run([sys.executable, "-c", LIVE], capture_output=True, text=True, check=True)
    assert {m.full_name for m in OURS} <= set(done.stdout.split())


@pytest.mark.parametrize("ours", OURS, ids=lambda m: m.full_name)
def test_fields_are_those_of_tritons_client(ours: Descriptor) -> None:
    theirs = their_message(ours.full_name)
    assert theirs is not ours
    for field in ours.fields:
        other = theirs.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (
            other.number,
            other.type,
            other.is_repeated,
        )
        for name in ("message_type", "enum_type", "containing_oneof"):
            mine, his = getattr(field, name), getattr(other, name)
            assert (mine and mine.full_name) == (his and his.full_name)
        if field.enum_type is not None:
            assert enum_values(field.enum_type) == enum_values(other.enum_type)
    if not ours.full_name.startswith("inference.Model") or "Infer" in ours.full_name:
        assert {f.name for f in ours.fields} == {f.name for f in theirs.fields}


def test_the_service_has_tritons_methods() -> None:
    ours = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    theirs = triton.service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert ours.full_name == theirs.full_name
    described = [
        {
            m.name: (
                m.input_type.full_name,
                m.output_type.full_name,
                m.client_streaming,
                m.server_streaming,
            )
            for m in service.methods
        }
        for service in (ours, theirs)
    ]
    assert described[0] == described[1]
    assert len(described[0]) == 20


def test_what_is_committed_is_generated_from_the_proto(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{HERE}", f"--pyi_out={tmp_path}"]
    command += [f"--descriptor_set_out={tmp_path / 'messages.binpb'}", "inference.proto"]
    subprocess.run(command, check=True)
    fresh, committed = (
        descriptor_pb2.FileDescriptorSet.FromString((folder / "messages.binpb").read_bytes())
        for folder in (tmp_path, HERE)
    )
    assert fresh == committed
    declared = [
        {line.split("(")[0] for line in file.read_text().splitlines() if "class " in line}
        for file in (tmp_path / "inference_pb2.pyi", HERE / "messages.pyi")
    ]
    assert declared[0] == declared[1]


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
def test_ours_and_tritons_load_in_one_process(order: str) -> None:
    imports = ["import edgeserve.wire.messages", "import tritonclient.grpc"]
    if order == "theirs first":
        imports.reverse()
    subprocess.run([sys.executable, "-c", "\n".join(imports)], check=True)


def test_wire_forms_are_the_same() -> None:
    ours, theirs = messages.ModelInferRequest(), triton.service_pb2.ModelInferRequest()
    for message in (ours, theirs):
        message.model_name, message.id = "m", "1"
        message.parameters["timeout"].int64_param = 5
        given = message.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        given.contents.fp32_contents.extend([1.5, -2.0])
        message.outputs.add(name="y").parameters["classification"].int64_param = 2
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(
        deterministic=True
    )
