"""Protobuf messages from a compiled descriptor set, in a pool of their own.

Other packages register messages of the same names in the default pool, where a second registration is an error, and tests
and notebooks load both.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.message import Message


class Loaded:
    """The last file of a set, which the others are imported by: its descriptor, and the classes of its messages by name."""

    def __init__(self, package: str, name: str) -> None:
        """`name` is a file of the package with a serialized FileDescriptorSet."""
        data = files(package).joinpath(name).read_bytes()
        found = descriptor_pb2.FileDescriptorSet.FromString(data)
        self.pool = descriptor_pool.DescriptorPool()
        for file in found.file:
            self.pool.Add(file)
        self.file: FileDescriptor = self.pool.FindFileByName(found.file[-1].name)
        self.classes: dict[str, type[Message]] = {
            name: message_factory.GetMessageClass(descriptor)
            for name, descriptor in self.file.message_types_by_name.items()
        }
        # protobuf itself refers to classes weakly: one that the garbage collector takes apart is still given to
        # the next message of its kind, which then ends the process (protobuf 7.36, PyUpb_Descriptor_GetDef).
        # Generated modules have nested classes as attributes of their parents; here they must be kept.
        self.kept = tuple(c for d in self.file.message_types_by_name.values() for c in _classes(d))


def _classes(descriptor: Descriptor) -> Iterator[type[Message]]:
    """The class of a message, and those of the messages and map entries declared inside of it."""
    yield message_factory.GetMessageClass(descriptor)
    for nested in descriptor.nested_types:
        yield from _classes(nested)
