"""Bars for huggingface_hub's downloads that draw nothing: they report, or are silent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Nowhere:
    """A stream that takes everything and shows nothing."""

    def write(self, text: str) -> None:
        """Drops the text."""

    def flush(self) -> None:
        """Does nothing."""


def reporting_bar(on_progress: Callable[[int], None] | None = None) -> Any:
    """A class for `tqdm_class` whose bars are not drawn. huggingface_hub reads and sets much of a bar, so it is one.

    Args:
        on_progress: called with the bytes that are there; None is silent.
    """
    from tqdm.std import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # huggingface_hub's own bars have names
            super().__init__(*args, **(options | {"file": _Nowhere(), "disable": False}))
            self._report()

        def update(self, n: float | None = 1) -> bool | None:
            """Counts what has come, and reports it."""
            shown: bool | None = super().update(n)
            self._report()
            return shown

        def _report(self) -> None:
            if on_progress is not None:
                on_progress(int(self.n))

    return Bar
