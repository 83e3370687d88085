"""What a model may be called: one rule, for `convert` and for servers."""

from __future__ import annotations

import re
from typing import Final

# It becomes a part of URLs, of metrics and of paths below a repository folder.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
