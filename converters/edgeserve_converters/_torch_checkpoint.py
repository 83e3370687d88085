"""PyTorch checkpoints: a state_dict, the class it belongs to, and tracing the two as an ExportedProgram.

Standard library only at module level.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeserve_converters._verify import sample_array

# Names under which training scripts keep the state_dict in a checkpoint.
_NESTED = ("state_dict", "model_state_dict", "model_state", "model", "module", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def state_dict(source: Path) -> dict[str, Any]:
    import torch

    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RuntimeError(_why_not_loaded(str(error))) from error
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, not a state_dict")
    for nested in _NESTED:
        if isinstance(content.get(nested), dict):
            content = content[nested]
            break
    weights = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)}
    if not weights:
        raise RuntimeError(f"it holds no weights, only {sorted(map(str, content))[:8]}")
    return weights


def _why_not_loaded(text: str) -> str:
    pickled = re.search(r"Unsupported (?:global|class|operand)\W+(?:GLOBAL )?([\w.]+)", text)
    if "TorchScript" in text:
        return (
            "it is TorchScript, which is not read: export the model as .pt2 with torch.export.save"
        )
    if pickled or "weights_only" in text.lower() or "Weights only" in text:
        what = f" ({pickled[1]})" if pickled else ""
        return (
            f"it holds pickled Python objects{what}, and unpickling them would execute code: save the weights "
            "alone with torch.save(model.state_dict(), …), or export the model as .pt2 with torch.export.save"
        )
    return f"it is not a complete PyTorch file: {text}"


def made_model(options: Mapping[str, object]) -> Any:
    """The class the options name, made with its arguments."""
    import torch

    named = str(options.get("model_class") or "")
    module, colon, attribute = named.partition(":")
    if not (module and colon and attribute):
        raise ValueError(
            "a state_dict holds weights alone: name the model's class with --model-class module:Class"
            + (f", not '{named}'" if named else "")
        )
    folders = options.get("python_path") or ()
    arguments = options.get("model_args") or {}
    assert isinstance(folders, list | tuple)
    assert isinstance(arguments, Mapping)
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
        model = found(**arguments)
    except ImportError as error:
        # Not an ImportError any longer: it is not the tool environment that is broken.
        raise RuntimeError(
            f"{named} cannot be imported: {error}; only torch and the folders of --python-path can be "
            "imported: export the model as .pt2 where it was trained"
        ) from None
    except AttributeError as error:
        raise RuntimeError(f"{named} cannot be made: {error}") from error
    except TypeError as error:
        raise RuntimeError(f"{named} needs other arguments (--model-arg): {error}") from error
    finally:
        sys.path[:] = before
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{named} is a {type(model).__name__}, not a torch.nn.Module")
    return model


def load_weights(model: Any, weights: dict[str, Any], named: str) -> None:
    """Load weights, without prefixes that wrappers (DataParallel, compile, Lightning) put before names."""
    wanted = set(model.state_dict())
    for prefix in _PREFIXES:
        if not wanted & set(weights) and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise RuntimeError(f"the weights are not those of {named}: {error}") from None


def example_inputs(model: Any, options: Mapping[str, object]) -> dict[str, Any]:
    """An example for each input of `forward`, two rows where the first dimension is the batch."""
    import numpy as np
    import torch

    parameters = inspect.signature(model.forward).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    shapes = options.get("input_shapes") or {}
    types = options.get("input_types") or {}
    assert isinstance(shapes, Mapping)
    assert isinstance(types, Mapping)
    missing = [name for name in needed if name not in shapes]
    unknown = [name for name in shapes if name not in parameters and not free]
    if missing or unknown or not shapes:
        wrong = f"forward has no '{unknown[0]}'; " if unknown else ""
        raise ValueError(
            f"{wrong}the shapes of its inputs are needed to trace the model: "
            + " ".join(f"--shape {name}=N,N,…" for name in needed or ["INPUT"])
        )
    rng = np.random.default_rng(0)
    return {
        name: torch.from_numpy(sample_array(shape, np.dtype(types.get(name, "float32")), rng))
        for name, shape in shapes.items()
    }


def traced(model: Any, inputs: dict[str, Any], *, dynamic: bool) -> Any:
    """The exported program; of fixed batch size when the model does not work with any other."""
    import torch

    if dynamic and all(value.dim() for value in inputs.values()):
        # torch would take a size of 1 for a constant.
        two = {
            name: torch.cat([value[:1], value[:1].flip(-1)])
            if value.dim() > 1
            else value[:1].repeat(2)
            for name, value in inputs.items()
        }
        batch = torch.export.Dim("batch")
        try:
            return torch.export.export(
                model, (), two, dynamic_shapes={name: {0: batch} for name in inputs}
            )
        except Exception:  # noqa: BLE001, S110 - a fixed batch is next, and tells what is wrong
            pass
    try:
        return torch.export.export(model, (), inputs)
    except Exception as error:
        raise RuntimeError(
            f"torch.export cannot trace it with the inputs "
            f"{ {n: (list(v.shape), str(v.dtype)) for n, v in inputs.items()} }: "
            f"{str(error).strip() or type(error).__name__}"
        ) from error
