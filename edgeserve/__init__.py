"""edgeserve: from a trained model to a served endpoint on a device, with proof at every step.

    import edgeserve

    edgeserve.convert("model.onnx", "model.edge", calibrate="images/")
    with edgeserve.load("model.edge") as model:
        outputs = model.run({"image": array})

Importing this package imports neither an engine nor a converter; the names below load on first use.
"""

from __future__ import annotations

from edgeserve.version import __version__

# As typing has it. Importing that takes longer than all that the command line does until it can end
# quietly when it is interrupted.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from edgeserve.api import Conversion, Model, Preprocess, convert, load
    from edgeserve.errors import EdgeServeError

__all__ = ["Conversion", "EdgeServeError", "Model", "Preprocess", "__version__", "convert", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'edgeserve' has no attribute '{name}'")
    import importlib

    module = "edgeserve.errors" if name == "EdgeServeError" else "edgeserve.api"
    return getattr(importlib.import_module(module), name)
