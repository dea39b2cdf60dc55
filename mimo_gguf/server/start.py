"""The verb `serve`: from a file and options to a server that answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_gguf.core.errors import UsageError

if TYPE_CHECKING:
    from mimo_gguf.engine.session import SessionOptions
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.hardware.devices import Device
    from mimo_gguf.server.settings import Settings

_LIBRARIES = ("starlette", "uvicorn", "pydantic", "prometheus_client", "latex2mathml", "pygments")
_SCORED_ROWS = 64  # tokens of a prompt that one pass scores for `echo`: 37 MiB of MiMo-7B's logits


def serve(
    file: str | Path, *, host: str = "127.0.0.1", port: int = 8080, alias: str | Sequence[str] = (),
    ctx: int | None = None, parallel: int = 4, mem_fraction: float | None = None, queue: int = 64,
    time_limit: float | None = None, mtp: bool | None = None, draft: int = 1, always_draft: bool = False,
    threads: int | None = None, gpu_layers: int | None = None, kv_type: str | None = None, ubatch: int | None = None,
    exact: bool = False, api_key: str | Sequence[str] = (), api_key_file: str | Path | None = None,
    insecure: bool = False, cors_origin: str | Sequence[str] = (), tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None, force: bool = False, on_plan: Callable[[FitPlan], None] | None = None,
    on_ready: Callable[[Settings], None] | None = None, find: Callable[..., Path] | None = None,
) -> bool:  # fmt: skip
    """Answers over HTTP with OpenAI's API, until SIGTERM or Ctrl-C: then what was taken on is answered first.

    Args:
        file: a GGUF file, from which the model also has its name; or what `resolve_model` makes one of.
        host, port, tls_cert, tls_key: where to listen; port 0 takes a free one, and the PEM files make it HTTPS.
        alias: further names of the model.
        ctx, parallel: tokens that the conversations share, and how many are answered at a time.
        mem_fraction: share of each GPU's memory that may be used; without a GPU, of the host's.
        queue, time_limit: answers that may wait for a slot, and seconds after which a request is cut off.
        mtp, draft, always_draft: whether drafts are made, how many at a time, and whether even if that is slower.
        threads, gpu_layers, kv_type, ubatch, exact, force: as for `Model.load`.
        api_key, api_key_file, insecure, cors_origin: who may ask; see docs/serve.md.
        on_plan: called with the plan before anything is loaded.
        on_ready: called with the settings, whose port is the real one, when clients can connect.
        find: finds the file, with the arguments of `resolve_model`, which does so if it is None.

    Returns:
        Whether everything was answered before the end.

    Raises:
        UsageError: an option is out of range, others could ask without a key, the address is taken, or a library that
            serving needs is missing.
        GgufError, DoesNotFit, BackendError: as `Model.load`.
    """
    _check_libraries()
    from mimo_gguf.runtime.llm import LLM
    from mimo_gguf.runtime.model import Model, wishes_of
    from mimo_gguf.server.engine import Engine
    from mimo_gguf.server.run import listen, run
    from mimo_gguf.server.settings import read_settings
    from mimo_gguf.store.resolve import resolve_model

    settings = read_settings(
        host=host, port=port, names=(Path(file).stem, *_listed(alias)), n_waiting=queue, time_s=time_limit,
        api_keys=_listed(api_key), api_key_file=api_key_file, insecure=insecure, cors_origins=_listed(cors_origin),
        tls_cert=tls_cert, tls_key=tls_key,
    )  # fmt: skip
    options, devices = _options(parallel, threads, draft, always_draft=always_draft), _devices(mem_fraction)
    how: dict[str, Any] = {"n_ctx": ctx, "kv_type": kv_type, "mtp": mtp, "n_ubatch": ubatch, "n_gpu_layers": gpu_layers}
    with listen(settings) as listener:
        wishes = wishes_of(replace(options, exact=exact), **how)
        path = (find or resolve_model)(file, wishes, devices=devices, force=force)
        settings = replace(settings, names=(path.stem, *_listed(alias)))
        model = Model.load(path, **how, options=options, devices=devices, exact=exact, force=force, on_plan=on_plan)
        return run(Engine(LLM.of_model(model), settings.limits), settings, listener, on_ready)


def _check_libraries() -> None:
    """Refuses to serve without the libraries of the extra."""
    from importlib.util import find_spec

    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise UsageError(f"serving needs {', '.join(missing)}", hint="pip install 'mimo-gguf[serve]'")


def _options(parallel: int, threads: int | None, draft: int, *, always_draft: bool) -> SessionOptions:
    from mimo_gguf.engine.session import SessionOptions

    return SessionOptions(
        n_parallel=parallel, n_threads=threads or 0, n_draft=draft, adaptive=not always_draft,
        n_prompt_rows=_SCORED_ROWS,
    )  # fmt: skip


def _devices(share: float | None) -> tuple[Device, ...] | None:
    """The devices with what may be used of them; None if everything free may be used."""
    from mimo_gguf.core.numbers import is_number
    from mimo_gguf.runtime.engine_args import chosen_devices

    if share is None:
        return None
    if not is_number(share) or not 0 < share <= 1:
        raise UsageError(f"a share of {share} of the memory", hint="choose a number up to 1: --mem-fraction 0.5")
    return chosen_devices(None, None, share)


def _listed(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
