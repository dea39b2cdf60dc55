"""`mimo-gguf quality --write-text`: lets the base answer prompts, as a text to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mimo_gguf.cli import ui
from mimo_gguf.cli.quality_screen import showing
from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.units import counted


def write_text(
    out: Path,
    files: Sequence[Path],
    base: str | None,
    *,
    n_prompts: int,
    temperature: float,
    threads: int | None,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Asks the base, or without one the first file, and shows what was written.

    Raises:
        UsageError: no model was named.
        MimoGgufError: as `ask_model`.
    """
    from mimo_gguf.own_answers import ask_model

    if base is None and not files:
        raise UsageError("--write-text needs a model to ask", hint="name it: --base MiMo-7B-RL-BF16.gguf")
    with showing(quiet=quiet or as_json) as screen:
        written = ask_model(
            base or str(files[0]), out, n_prompts=n_prompts, temperature=temperature, threads=threads, force=force,
            on_progress=lambda done, total: screen.update("answers", done, total, "conversations"),
        )  # fmt: skip
    if as_json:
        ui.print_json(asdict(written) | {"path": str(written.path)})
    else:
        ui.print_line(f"{written.path}: {counted(written.n_conversations, 'conversation')}", style="good")
