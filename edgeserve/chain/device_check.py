"""Whether a device is at fault. Its golden samples decide, not what became of one request."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from edgeserve.bundle import Bundle
from edgeserve.chain.golden import check_golden
from edgeserve.errors import EdgeServeError, InferenceFailed
from edgeserve.runtimes import Session

log = logging.getLogger(__name__)

# Golden checks that failing requests cause take at most one part in so many of a device's time.
_SHARE: Final = 10.0


class Trial:
    """What is known of one opened candidate's device. May be used from any thread; one check runs at a time.

    `answered` says that a call has succeeded since the last check began, `doubt` is the first failure of a
    request that the next check will judge.
    """

    def __init__(self, bundle: Bundle, session: Session, variant: str, trust_s: float) -> None:
        self._bundle = bundle
        self._session = session
        self._variant = variant
        self._trust_s = trust_s
        self._checking = threading.Lock()
        self._began = self._passed = float("-inf")
        self._took = 0.0
        self.answered = False
        self.doubt: InferenceFailed | None = None

    @property
    def stands(self) -> bool:
        """Whether the last check still speaks for the device when a request fails on it.

        It does for `trust_s`, or ten times what the check took, unless nothing has succeeded since: a
        device on which every request fails is checked at once.
        """
        trusted = max(self._trust_s, _SHARE * self._took)
        return self.answered and _now() < self._passed + trusted

    @property
    def next_check(self) -> float:
        """When the next check may begin (time.monotonic seconds)."""
        return self._passed + _SHARE * self._took

    def check(self) -> EdgeServeError | None:
        """Run the golden samples; None if the device reproduces them, else what speaks against it.

        A check that began after this was called counts as this one.
        """
        asked = _now()
        with self._checking:
            if self._began >= asked:
                return None
            began = _now()
            self.answered = False
            if self._readable():
                try:
                    check_golden(self._bundle, self._session, self._variant)
                except EdgeServeError as error:
                    return error
                except Exception as error:  # noqa: BLE001 - an engine's own
                    return InferenceFailed(
                        "the engine failed", cause=f"{type(error).__name__}: {error}"
                    )
            self._began, self._passed = began, _now()
            self._took = self._passed - began
            return None

    def _readable(self) -> bool:
        """Samples that can no longer be read are not evidence against the device."""
        try:
            self._bundle.golden()
        except Exception:
            log.exception("the golden samples of '%s' cannot be read", self._bundle.name)
            return False
        return True


def _now() -> float:
    return time.monotonic()
