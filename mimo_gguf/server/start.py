"""The verb `serve`: from a file and options to a server that answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.freed_memory import give_back_freed_memory
from mimo_gguf.core.units import parse_size

if TYPE_CHECKING:
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.server.models import Models
    from mimo_gguf.server.settings import Settings
    from mimo_gguf.server.sources import FileSource

_LIBRARIES = (
    "starlette", "uvicorn", "httptools", "pydantic", "prometheus_client", "latex2mathml", "pygments",
    "python_multipart",
)  # fmt: skip
_SCORED_ROWS = 64  # tokens of a prompt that one pass scores for `echo`: 37 MiB of MiMo-7B's logits


def serve(
    file: str | Path | None = None, *, model: Mapping[str, str | Path] | None = None, host: str = "127.0.0.1",
    port: int = 8080, alias: str | Sequence[str] = (), ctx: int | None = None, parallel: int = 4,
    mem_fraction: float | None = None, cache_ram: int | str | None = None, max_pause: float = 0.5, queue: int = 64,
    time_limit: float | None = None, mtp: bool | None = None, draft: int = 1, always_draft: bool = False,
    threads: int | None = None, gpu_layers: int | None = None, kv_type: str | None = None, ubatch: int | None = None,
    exact: bool = False, api_key: str | Sequence[str] = (), api_key_file: str | Path | None = None,
    insecure: bool = False, cors_origin: str | Sequence[str] = (), tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None, files_dir: str | Path | None = None, force: bool = False,
    on_plan: Callable[[FitPlan], None] | None = None, on_ready: Callable[[Settings], None] | None = None,
    find: Callable[..., Path] | None = None,
) -> bool:  # fmt: skip
    """Answers over HTTP with OpenAI's API, until SIGTERM or Ctrl-C: then what was taken on is answered first.

    Args:
        file: a GGUF file, which names the model, or what `resolve_model` makes one of; it is loaded at once.
        model: further files by their names, or what `resolve_model` makes files of, loaded at the first request. If the
            memory is not enough for all, the model that was used least recently goes.
        host, port, tls_cert, tls_key: where to listen; port 0 takes a free one, and the PEM files make it HTTPS.
        alias: further names of the first model.
        ctx, parallel: tokens that the conversations with a model share, and how many are answered at a time.
        mem_fraction: share of each GPU's free memory that may be used; without a GPU, of the host's.
        cache_ram: host memory for parking idle conversations, like "4GB"; None is half of what is left, up to 8 GiB.
        max_pause: seconds that reading a prompt may hold up the next token of others; 0 sets no limit.
        queue, time_limit: answers that may wait for a slot, and seconds after which a request is cut off.
        mtp, draft, always_draft: whether drafts are made, how many at a time, and whether even if that is slower.
        threads, gpu_layers, kv_type, ubatch, exact, force: as for `Model.load`.
        api_key, api_key_file, insecure, cors_origin: who may ask; see docs/serve.md.
        files_dir: a folder for `/v1/files` and `/v1/batches`; None refuses them. Unfinished batches go on.
        on_plan, on_ready: called with the plan before `file` is loaded, and with the settings when clients can connect.
        find: finds each file, with the arguments of `resolve_model`, which does so if it is None.

    Returns:
        Whether everything was answered before the end.

    Raises:
        UsageError: an option is out of range, others could ask without a key, or the address or a library is not there.
        OutputError: the folder of files cannot be written, or another server uses it.
        GgufError, DoesNotFit, BackendError: as `Model.load`, of `file`.
    """
    _prepare_process()
    from mimo_gguf.server.files_api import files_folder
    from mimo_gguf.server.run import listen, run
    from mimo_gguf.server.settings import read_settings

    further = _further_files(model or {})
    settings = read_settings(
        host=host, port=port, names=_listed(alias), n_waiting=queue, time_s=time_limit, api_keys=_listed(api_key),
        api_key_file=api_key_file, insecure=insecure, cors_origins=_listed(cors_origin), tls_cert=tls_cert,
        tls_key=tls_key,
    )  # fmt: skip
    source = source_of(
        parallel=parallel, threads=threads, draft=draft, always_draft=always_draft, max_pause=max_pause,
        cache_ram=cache_ram, mem_fraction=mem_fraction, force=force, n_ctx=ctx, kv_type=kv_type, mtp=mtp,
        n_ubatch=ubatch, n_gpu_layers=gpu_layers, exact=exact,
    )  # fmt: skip
    with listen(settings) as listener, files_folder(files_dir) as folder:
        models = open_models(file, further, settings, source, find, on_plan)
        settings = replace(settings, names=models.all[0].names, files_dir=folder, n_batch_rows=parallel)
        return run(models, settings, listener, on_ready)


def open_models(
    file: str | Path | None, further: Mapping[str, Path], settings: Settings, source: Callable[[Path], FileSource],
    find: Callable[..., Path] | None, on_plan: Callable[[FitPlan], None] | None,
) -> Models:  # fmt: skip
    """The models of a server, of which the one in `file` is loaded."""
    from mimo_gguf.server.models import Models, Served

    first = None if file is None else _find(file, source, find)
    found = {name: _find(path, source, find) for name, path in further.items()}
    files = _by_names(first, found, settings.names)
    models = Models([Served(names, source(path)) for names, path in files.items()], settings.limits)
    if first is not None:
        models.put(models.all[0], models.all[0].source.load([], on_plan))
    return models


def _further_files(model: Mapping[str, str | Path]) -> dict[str, Path]:
    """What is loaded later, by name. Raises UsageError if a GGUF file is not there, or a model has no name."""
    for name, path in model.items():
        if not name.strip():
            raise UsageError(f"{path}: has no name", hint="--model NAME=FILE")
        if str(path).lower().endswith(".gguf") and not Path(path).is_file():
            raise UsageError(f"{path}: no such file", hint="--model NAME=FILE")
    return {name: Path(path) for name, path in model.items()}


def _find(
    file: str | Path, source: Callable[[Path], FileSource], find: Callable[..., Path] | None
) -> Path:  # fmt: skip
    """The GGUF of a model, made if it has to be. Raises MimoGgufError as `resolve_model`."""
    from mimo_gguf.runtime.model import wishes_of
    from mimo_gguf.store.resolve import resolve_model

    known = source(Path(file))
    how = {name: value for name, value in known.how.items() if name != "exact"}
    wishes = wishes_of(replace(known.options, exact=known.how["exact"]), **how)
    return (find or resolve_model)(file, wishes, devices=known.room.devices([]), force=known.force)


def _by_names(first: Path | None, further: Mapping[str, Path], aliases: Sequence[str]) -> dict[tuple[str, ...], Path]:
    """The files by the names of their models, the first one first, which also has the aliases.

    Raises:
        UsageError: there is none, or a name is given twice.
    """
    named = ([] if first is None else [(first.stem, first)]) + list(further.items())
    if not named:
        raise UsageError("no model", hint="mimo-gguf serve FILE, or --model NAME=FILE")
    files = {
        tuple(dict.fromkeys((name, *(aliases if not number else ())))): path
        for number, (name, path) in enumerate(named)
    }
    names = [name for each in files for name in each]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or len(files) < len(named):
        raise UsageError(f"two models are called {twice or named[0][0]}", hint="--model NAME=FILE with another name")
    return files


def source_of(
    *, parallel: int, threads: int | None, draft: int, always_draft: bool, max_pause: float,
    cache_ram: int | str | None, mem_fraction: float | None, force: bool, **how: Any,
) -> Callable[[Path], FileSource]:  # fmt: skip
    """What makes the source of a file: its session's options, the memory for all, and how it is loaded."""
    from mimo_gguf.engine.session import SessionOptions
    from mimo_gguf.server.sources import FileSource, Room

    options = SessionOptions(
        n_parallel=parallel, n_threads=threads or 0, n_draft=draft, adaptive=not always_draft,
        n_prompt_rows=_SCORED_ROWS, max_pause_s=max_pause,
    )  # fmt: skip
    parked = None if cache_ram is None else parse_size(str(cache_ram))
    room = Room.of_machine(mem_fraction)
    return partial(FileSource, how=how, options=options, room=room, parked_bytes=parked, force=force)


def _prepare_process() -> None:
    """Refuses to serve without the libraries of the extra. Then this process gives back the memory that it frees."""
    from importlib.util import find_spec

    missing = [name for name in _LIBRARIES if find_spec(name) is None]
    if missing:
        raise UsageError(f"serving needs {', '.join(missing)}", hint="pip install 'mimo-gguf[serve]'")
    give_back_freed_memory()


def _listed(given: str | Sequence[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)
