"""Loading a PyTorch ExportedProgram (`.pt2`) without running code that may be hidden in it.

torch.export.load itself unpickles, loads compiled libraries and evaluates the text of dimensions. Standard
library only at module level.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Where an archive keeps what cannot be loaded without running it.
_CODE = ("data/aotinductor/", "data/constants/custom_obj_", "data/constants/opaque_obj_")
# What the text of a dimension is made of: symbols and numbers (quoted or not), arithmetic, and these words.
_QUOTED = re.compile(r"'([a-z]{1,3}\d+|[-+\d.e]+)'")
_WORDS = re.compile(
    r"[a-z]{1,3}\d+|Symbol|Integer|Rational|Float|Add|Mul|Pow|Min|Max|Abs|Mod|PythonMod|ModularIndexing|FloorDiv"
    r"|CeilDiv|CleanDiv|IntTrueDiv|FloatTrueDiv|PowByNatural|FloatPow|Where|Identity|ToFloat|TruncToInt|CeilToInt"
    r"|FloorToInt|RoundToInt|OpaqueUnaryFn_sqrt|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|LessThan|GreaterThan"
    r"|StrictLessThan|StrictGreaterThan|And|Or|Not|Piecewise|ExprCondPair|True|False|true|false|oo|int_oo|floor"
    r"|ceiling|sqrt|e\d+|positive|nonnegative|integer|real|precision|evaluate"
)
_WORD = re.compile(r"[^\W\d]\w*")
_ARITHMETIC = re.compile(r"[\s\d+\-*/%(),.<>=!&|~]*")


def load_program(source: Path) -> Any:
    """The ExportedProgram in a file. Raises RuntimeError: no such file, hidden code, another version."""
    import torch

    _refuse_code(source)
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # torch.export.load has no such argument
    try:
        with source.open("rb") as stream:  # a path must end in .pt2
            return torch.export.load(stream)
    except Exception as error:
        raise RuntimeError(
            f"torch {torch.__version__} cannot load the program ({type(error).__name__}: {error}); "
            "write it again with torch.export.save(torch.export.export(model, …), 'model.pt2')"
        ) from error
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _refuse_code(source: Path) -> None:
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile:
        raise RuntimeError(
            "this is not an ExportedProgram, or it is truncated: write it with torch.export.save"
        ) from None
    with archive:
        names = archive.namelist()
        for name in names:
            if any(code in name for code in _CODE):
                raise RuntimeError(
                    f"it holds compiled code or Python objects ({name}), which are not loaded: "
                    "export the model with torch.export.save, tensors only"
                )
        programs = [n for n in names if n.endswith(".json")]
        if not any(
            "models/" in n or n.endswith("serialized_exported_program.json") for n in programs
        ):
            raise RuntimeError(
                "this is not an ExportedProgram: .pt2 files are written with torch.export.save "
                "(a state_dict has the suffix .pt)"
            )
        for name in programs:
            for text in _expressions(_json(archive.read(name), name)):
                plain = _QUOTED.sub(r"\1", text)
                odd = [w for w in _WORD.findall(plain) if not _WORDS.fullmatch(w)]
                if odd or not _ARITHMETIC.fullmatch(_WORD.sub("", plain)):
                    raise RuntimeError(f"a dimension in {name} is not arithmetic: {text[:80]!r}")


def _json(content: bytes, name: str) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        raise RuntimeError(f"{name} in the file is damaged: write it again") from None


def _expressions(value: Any) -> Iterator[str]:
    """The texts of dimensions anywhere in a serialized program."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "expr_str" and isinstance(inner, str):
                yield inner
            else:
                yield from _expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _expressions(inner)
