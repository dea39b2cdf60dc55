"""A progress bar on the terminal: answered prompts, and tokens per second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from mimo_gguf.runtime.outputs import RequestOutput

Wanted = bool | Callable[..., Any]


class PromptsBar:
    """Counts answered prompts, on stderr if it is a terminal, or with the caller's own tqdm."""

    def __init__(self, n_prompts: int, wanted: Wanted) -> None:
        """Opens the bar. `wanted` is True, False, or the function to call instead of `tqdm.tqdm`."""
        self._bar: Any = None
        self._started = time.perf_counter()
        self._n_read = self._n_said = 0
        if callable(wanted):
            self._bar = self._open(wanted, n_prompts)
        elif wanted and n_prompts and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = self._open(tqdm, n_prompts)

    @staticmethod
    def _open(tqdm: Callable[..., Any], n_prompts: int) -> Any:
        return tqdm(total=n_prompts, desc="Processed prompts", dynamic_ncols=True, postfix="output: 0.00 toks/s")

    def note(self, output: RequestOutput) -> None:
        """Counts a prompt whose answers have all ended."""
        if self._bar is None:
            return
        self._n_read += len(output.prompt_token_ids)
        self._n_said += sum(len(answer.token_ids) for answer in output.outputs)
        seconds = max(time.perf_counter() - self._started, 1e-9)
        self._bar.postfix = f"input: {self._n_read / seconds:.2f} toks/s, output: {self._n_said / seconds:.2f} toks/s"
        self._bar.update(1)

    def close(self) -> None:
        """Closes the bar and leaves its line on the screen."""
        if self._bar is not None:
            self._bar.close()
