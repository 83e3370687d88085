"""The page's templates, if Jinja2 is installed. Whatever they show is escaped: names and messages come from bundles
and drivers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeserve.serve.status.status import ServerStatus
from edgeserve.serve.status.words import STATES, clock, iso, model_word, size, span, word_of

if TYPE_CHECKING:
    from jinja2 import Environment


class Templates:
    """Renders the page."""

    def __init__(self, environment: Environment) -> None:
        self._page = environment.get_template("page.html")
        self._live = environment.get_template("live.html")
        self._frame = self._page.render(server=None).encode()

    def page(self, status: ServerStatus | None) -> bytes:
        """The whole page; without a status, its frame alone."""
        if status is None:
            return self._frame
        return self._page.render(server=status).encode("utf-8", "replace")

    def live(self, status: ServerStatus) -> bytes:
        """What changes."""
        return self._live.render(server=status).encode("utf-8", "replace")


def open_templates() -> Templates | None:
    """None if Jinja2 is not installed."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        return None
    environment = Environment(
        loader=PackageLoader("edgeserve.serve.status", "html"),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clock": clock,
        "iso": iso,
        "span": span,
        "size": size,
        "word": word_of,
        "model_word": model_word,
    }
    environment.globals["STATES"] = STATES
    return Templates(environment)
