"""The package's logger, "mimo_gguf": silent until a program gives it, or the root logger, a handler."""

from __future__ import annotations

import logging
from typing import Final

LOGGER: Final = logging.getLogger("mimo_gguf")
LOGGER.addHandler(logging.NullHandler())
