"""`--shape INPUT=N,N,…`."""

from __future__ import annotations

from edgeserve.errors import UsageError


def parse_shapes(texts: list[str]) -> dict[str, tuple[int, ...]]:
    """Dimensions by input name. Raises UsageError."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, dims = text.rpartition("=")
        try:
            shapes[name] = tuple(int(d) for d in dims.replace("x", ",").split(","))
        except ValueError:
            shapes.pop(name, None)
        if not name or name not in shapes or min(shapes[name]) < 1:
            raise UsageError(f"--shape {text} is not INPUT=N,N,…", hint="--shape image=1,3,224,224")
    return shapes
