"""The messages of `inference.proto`, as classes; `messages.pyi` beside this file declares them.

They live in a descriptor pool of their own: Triton's client registers messages of the same names in
the default pool, where a second registration is an error, and tests and notebooks load both.
"""

from collections.abc import Iterator
from importlib.resources import files

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

POOL = descriptor_pool.DescriptorPool()
_SET = descriptor_pb2.FileDescriptorSet.FromString(
    files("edgeserve.wire").joinpath("messages.binpb").read_bytes()
)
POOL.Add(_SET.file[0])
DESCRIPTOR = POOL.FindFileByName(_SET.file[0].name)


def _classes(descriptor: Descriptor) -> Iterator[type[Message]]:
    """The class of a message, and those of the messages and map entries declared inside of it."""
    yield message_factory.GetMessageClass(descriptor)
    for nested in descriptor.nested_types:
        yield from _classes(nested)


for _name, _descriptor in DESCRIPTOR.message_types_by_name.items():
    globals()[_name] = message_factory.GetMessageClass(_descriptor)
# protobuf itself refers to classes weakly: one that the garbage collector takes apart is still given to
# the next message of its kind, which then ends the process (protobuf 7.36, PyUpb_Descriptor_GetDef).
# Generated modules have nested classes as attributes of their parents; here they must be kept.
KEPT = tuple(c for d in DESCRIPTOR.message_types_by_name.values() for c in _classes(d))
