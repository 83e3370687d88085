"""Which versions of a model serve: "latest:2", "all", "1,3"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import msgspec


class Latest(msgspec.Struct, frozen=True):
    """The newest versions serve."""

    num_versions: int = 1


class All(msgspec.Struct, frozen=True):
    """Every version serves."""


class Specific(msgspec.Struct, frozen=True):
    """The versions named serve."""

    versions: tuple[int, ...]


class VersionPolicy(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which versions of a model serve. One of the three is set, as in Triton's model_config.proto."""

    latest: Latest | None = None
    all: All | None = None
    specific: Specific | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """The policy that a setting names: `latest`, `latest:N`, `all`, or numbers such as `1,3`."""
        if text == "all":
            return cls(all=All())
        if text.startswith("latest"):
            return cls(latest=Latest(int(text.partition(":")[2] or 1)))
        return cls(specific=Specific(tuple(int(v) for v in text.split(","))))

    def chosen(self, there: Iterable[str]) -> list[str]:
        """The versions that serve, oldest first; specific ones whether they are there or not."""
        ordered = sorted(there, key=int)
        if self.specific is not None:
            return [str(v) for v in sorted(set(self.specific.versions))]
        if self.all is not None:
            return ordered
        return ordered[-(self.latest or Latest()).num_versions :]
