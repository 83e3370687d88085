"""The messages of `inference.proto`, as classes; `messages.pyi` beside this file declares them.

They live in a descriptor pool of their own: Triton's client registers messages of the same names in
the default pool, where a second registration is an error, and tests and notebooks load both.
"""

from importlib.resources import files

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

POOL = descriptor_pool.DescriptorPool()
_SET = descriptor_pb2.FileDescriptorSet.FromString(
    files("edgeserve.serve.grpc").joinpath("messages.binpb").read_bytes()
)
POOL.Add(_SET.file[0])
DESCRIPTOR = POOL.FindFileByName(_SET.file[0].name)
for _name, _descriptor in DESCRIPTOR.message_types_by_name.items():
    globals()[_name] = message_factory.GetMessageClass(_descriptor)
