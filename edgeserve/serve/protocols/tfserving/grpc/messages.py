"""The messages of `serving.proto`, as classes; `messages.pyi` beside this file declares them."""

from edgeserve.wire.descriptors import Loaded

_LOADED = Loaded("edgeserve.serve.protocols.tfserving.grpc", "messages.binpb")
POOL = _LOADED.pool
DESCRIPTOR = _LOADED.file
KEPT = _LOADED.kept
globals().update(_LOADED.classes)
