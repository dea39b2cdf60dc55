"""The server as an ASGI application of one loaded model, for whoever brings the HTTP: Ray Serve, or another server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.applications import Starlette


def open_app(
    model: str | Path, *, parallel: int = 4, threads: int | None = None, mem_fraction: float | None = None, **how: Any
) -> Starlette:  # fmt: skip
    """Loads a model, and gives the application that answers with it as `serve` does, without keys.

    Args:
        model: a GGUF file, or what `resolve_model` makes one of.
        parallel: answers at a time.
        threads: CPU threads; None for one per core.
        mem_fraction: share of the free memory that may be used, if other processes load models, too.
        how: further arguments of `Model.load`, like `n_ctx`.

    Raises:
        UsageError: an argument is out of range.
        GgufError, DoesNotFit, BackendError: as `Model.load`.
        MimoGgufError: as `resolve_model`.
    """
    from mimo_gguf.server.app import make_app
    from mimo_gguf.server.settings import Settings
    from mimo_gguf.server.start import open_models, source_of

    how = {"n_ctx": None, "kv_type": None, "mtp": None, "n_ubatch": None, "n_gpu_layers": None, "exact": False} | how
    source = source_of(
        parallel=parallel, threads=threads, draft=1, always_draft=False, max_pause=0.5, cache_ram=None,
        mem_fraction=mem_fraction, force=False, **how,
    )  # fmt: skip
    settings = Settings(names=())
    models = open_models(model, {}, settings, source, None, None)
    return make_app(models, replace(settings, names=models.all[0].names))
