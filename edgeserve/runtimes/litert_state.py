"""What a TFLite file keeps from one call to the next, and how an interpreter forgets it.

A session starts every call from the file's initial state: its callers are clients that know nothing of each
other.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final

_RESOURCES: Final = {"VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}
# Operators with inputs that they write to.
_RECURRENT: Final = {"SVDF", "RNN", "LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "UNIDIRECTIONAL_SEQUENCE_LSTM",
                     "BIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM"}  # fmt: skip
# The interpreter tells the operators of the first graph only.
_CONTROL: Final = {"WHILE", "IF", "CALL", "STABLEHLO_WHILE", "STABLEHLO_CASE"}


class Kept(Enum):
    """`TENSORS` are set to zero by `reset_all_variables`; `RESOURCES` only another interpreter forgets."""

    NOTHING = "nothing"
    TENSORS = "tensors"
    RESOURCES = "resources"


def kept_by(interpreter: Any, content: Callable[[], bytes]) -> Kept:
    """What the file of an interpreter keeps between calls; `content` gives what is in it."""
    names = {str(d["op_name"]) for d in interpreter._get_ops_details()}
    if names & _CONTROL:
        names |= _in_file(content)
    if names & _RESOURCES:
        return Kept.RESOURCES
    return Kept.TENSORS if names & _RECURRENT else Kept.NOTHING


def _in_file(content: Callable[[], bytes]) -> set[str]:
    """The operators of all graphs; where nothing can read them, whatever may keep a state."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError:
        return _RESOURCES
    model = schema.Model.GetRootAs(content(), 0)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
    return {names.get(max(c.BuiltinCode(), c.DeprecatedBuiltinCode()), "") for c in codes}
