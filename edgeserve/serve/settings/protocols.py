"""The names of the protocols that a server can speak, and which of them it speaks."""

from __future__ import annotations

from typing import Final

from edgeserve.errors import UsageError, did_you_mean

# In the order in which their routes are looked for. v2 is always served.
PROTOCOLS: Final = ("v2", "tfserving", "torchserve", "sagemaker", "vertex", "azureml")
# Their paths are nobody else's.
DEFAULT: Final = ("v2", "tfserving")
_ALL: Final = "all"


def protocols_of(given: str | tuple[str, ...]) -> tuple[str, ...]:
    """The protocols that a setting names, v2 first: names in a list, in a text with commas, or `all`.

    The order counts: where two protocols have the same route, the one that was named first has it. Raises UsageError.
    """
    texts = (given,) if isinstance(given, str) else given
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    for name in names:
        if name != _ALL and name not in PROTOCOLS:
            raise UsageError(
                f"'{name}' is not a protocol",
                hint=did_you_mean(name, (*PROTOCOLS, _ALL), None)
                or f"expected {', '.join(PROTOCOLS)} or all",
            )
    chosen = [*names, *PROTOCOLS] if _ALL in names else names
    return tuple(dict.fromkeys(name for name in ("v2", *chosen) if name != _ALL))
