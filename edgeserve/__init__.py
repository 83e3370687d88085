"""edgeserve: from a trained model to a served endpoint on a device, with proof at every step.

    import edgeserve

    edgeserve.convert("model.onnx", "model.edge", calibrate="images/")
    model = edgeserve.load("model.edge")
    outputs = model.run({"image": array})

Importing this package imports neither an engine nor a converter.
"""

from __future__ import annotations

__version__ = "0.1.0"
