"""Sessions whose engine's exceptions are edgeserve's errors, whatever the adapter lets through.

An adapter may be anybody's, and engines raise what they like: a proof, a benchmark or a report has a row for
that, and goes on.
"""

from __future__ import annotations

import logging

from edgeserve.bundle import VariantFiles
from edgeserve.errors import DeviceLost, EdgeServeError, InferenceFailed, UnsupportedModel
from edgeserve.runtimes.base import LoadOptions, Placement, Runtime, Session
from edgeserve.tensors import Tensors, TensorSpec

log = logging.getLogger(__name__)


def load_guarded(
    adapter: Runtime, files: VariantFiles, device: str, options: LoadOptions
) -> Session:
    """A guarded session. Raises as `load_known`."""
    return Guarded(load_known(adapter, files, device, options))


def load_known(adapter: Runtime, files: VariantFiles, device: str, options: LoadOptions) -> Session:
    """What the adapter's `load` returns. Raises what `load` raises; UnsupportedModel in place of an
    exception that is not edgeserve's. ImportError passes: the engine is not installed."""
    try:
        return adapter.load(files, device, options)
    except (EdgeServeError, ImportError):
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"{adapter.name} cannot open '{files.id}' on '{device}'", cause=in_words(error)
        ) from error


def asked_placement(session: Session) -> Placement:
    """The session's placement; an unknown one where the engine does not tell. Raises DeviceLost alone.

    The engine may have to run the model once more, on inputs that nobody chose: that it fails there says
    nothing about the model.
    """
    try:
        return session.placement()
    except DeviceLost:
        raise
    except Exception as error:
        log.debug("placement on %s: %s", session.device, in_words(error))
        return Placement({}, "unknown", 0, 0)


def in_words(error: Exception) -> str:
    """An exception on one line; its type's name where it has no text of its own."""
    if isinstance(error, EdgeServeError):
        return str(error)
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else repr(error)


class Guarded:
    """A session that raises InferenceFailed for every failure of a call, and nothing when it is closed."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.device = session.device
        self.inputs: tuple[TensorSpec, ...] = session.inputs
        self.outputs: tuple[TensorSpec, ...] = session.outputs
        self.concurrency = session.concurrency

    def run(self, inputs: Tensors) -> Tensors:
        try:
            return self._session.run(inputs)
        except InferenceFailed:
            raise
        except Exception as error:
            raise InferenceFailed(
                f"the engine failed on {self._session.device}", cause=in_words(error)
            ) from error

    def placement(self) -> Placement:
        return asked_placement(self._session)

    def close(self) -> None:
        try:
            self._session.close()
        except Exception as error:
            log.debug("closing on %s: %s", self._session.device, in_words(error))
