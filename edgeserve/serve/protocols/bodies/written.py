"""Outputs of a request as JSON rows ("predictions") or columns ("outputs")."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import orjson

from edgeserve.errors import InvalidInput
from edgeserve.tensors import Array, Interface, Tensors, dtype_name
from edgeserve.wire.written import NotFinite, nested_json


class ValueWriter:
    """Writes the outputs of one model as JSON values. May be used from several threads."""

    def __init__(
        self,
        interface: Interface,
        not_finite: NotFinite,
        as_b64: Callable[[str], bool] = lambda name: False,
        most: int | None = None,
    ) -> None:
        """`as_b64` says by an output's name whether its strings are written as base64 even if they are text; `most` is
        the largest text of one output in bytes."""
        self._types = {spec.name: spec.dtype for spec in interface.outputs}
        self._batched = interface.max_batch > 0
        self._not_finite = not_finite
        self._as_b64 = as_b64
        self._most = most

    def value(self, name: str, array: Array) -> bytes:
        """One output, whole. Raises InvalidInput for what cannot be written."""
        declared = self._types.get(name, "")
        datatype = declared if declared == "BF16" else dtype_name(array.dtype)
        return nested_json(
            name, array, datatype, self._not_finite, as_b64=self._as_b64(name), most=self._most
        )

    def columns(self, names: tuple[str, ...], outputs: Tensors) -> bytes:
        """The value of the only output, or an object by name."""
        if len(names) == 1:
            return self.value(names[0], outputs[names[0]])
        return self.object({name: outputs[name] for name in names})

    def object(self, outputs: Tensors) -> bytes:
        """An object of values by output."""
        entries = [
            b"%s:%s" % (orjson.dumps(name), self.value(name, array))
            for name, array in outputs.items()
        ]
        return b"{%s}" % b",".join(entries)

    def rows(self, names: tuple[str, ...], outputs: Tensors, rows: int) -> bytes:
        """A list with one value a row, or with one object of values by name.

        Without an axis for rows, the outputs are the one row. Raises InvalidInput for an output that has another
        number of rows.
        """
        self._check_rows(names, outputs, rows)
        if not self._batched:
            return b"[%s]" % self.columns(names, outputs)
        if len(names) == 1:
            return self.value(names[0], outputs[names[0]])
        return b"[%s]" % b",".join(self._each(names, outputs, rows))

    def lines(self, names: tuple[str, ...], outputs: Tensors, rows: int) -> bytes:
        """As `rows`, each on a line of its own."""
        self._check_rows(names, outputs, rows)
        if not self._batched:
            return self.columns(names, outputs) + b"\n"
        return b"".join(line + b"\n" for line in self._each(names, outputs, rows))

    def _each(self, names: tuple[str, ...], outputs: Tensors, rows: int) -> Iterator[bytes]:
        for row in range(rows):
            yield self.columns(names, {name: outputs[name][row, ...] for name in names})

    def _check_rows(self, names: tuple[str, ...], outputs: Tensors, rows: int) -> None:
        """Raises InvalidInput."""
        if not self._batched:
            return
        for name in names:
            array = outputs[name]
            if not array.ndim or len(array) != rows:
                raise InvalidInput(
                    f"output '{name}' has the shape {list(array.shape)}, not a row for each of the {rows} "
                    "instances: ask with inputs, not instances"
                )

    def readable(self, name: str, array: Array) -> Array:
        """An output in a type that numpy has."""
        if self._types.get(name) == "BF16" and array.dtype == np.uint16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


def listed(values: list[object]) -> bytes:
    """Records as a JSON list."""
    return msgspec.json.encode(values)
