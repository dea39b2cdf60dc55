"""The options that several commands share, each declared once: one name, one letter, one meaning everywhere.

A command declares the option with its default, which is mostly None for "not given": `threads: Threads = None`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.near_matches import name_hint

# ---- where and how it runs

Threads = Annotated[
    int | None,
    typer.Option(
        "-t", "--threads", min=1, metavar="N", help="CPU threads [default: one per core].", show_default=False
    ),
]
GpuLayers = Annotated[
    int | None,
    typer.Option(
        "-ngl", "--gpu-layers", min=-1, metavar="N",
        help="Layers on the GPU, -1 all [default: what fits].",
    ),
]  # fmt: skip
Mtp = Annotated[
    bool | None, typer.Option("--mtp/--no-mtp", help="With the MTP layer, or without it [default: with it, if it can].")
]
Ctx = Annotated[
    int | None,
    typer.Option(
        "-c", "--ctx", min=0, metavar="N", show_default=False,
        help="Context window in tokens, 0 the model's own [default: what fits; fit, gpus, advise: 8192].",
    ),
]  # fmt: skip
KvType = Annotated[
    str | None, typer.Option("--kv-type", metavar="TYPE", help="KV cache: f16, q8_0 or q4_0 [default: f16 if it fits].")
]
Ubatch = Annotated[
    int | None,
    typer.Option("--ubatch", min=1, metavar="N", help="Prompt tokens computed at a time [default: 512 if it fits]."),
]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="Compute every row alone: the same text in any batch, with any drafts; slower."),
]
Rpc = Annotated[
    list[str] | None, typer.Option("--rpc", metavar="HOST:PORT", help="Also use this worker; repeat it for several.")
]
Parallel = Annotated[int, typer.Option("--parallel", metavar="N", help="Conversations at once, sharing --ctx.")]
Draft = Annotated[int, typer.Option("--draft", metavar="N", help="Tokens drafted at a time.")]
AlwaysDraft = Annotated[bool, typer.Option("--always-draft", help="Draft even if that is slower than not drafting.")]
Alias = Annotated[
    list[str] | None,
    typer.Option("--alias", metavar="NAME", help="A further name of the model (the first one); may be repeated."),
]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; strangers must not reach it.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port to listen on.")]
Auto = Annotated[
    bool, typer.Option("--auto", show_default=False, help="Choose for the free memory whatever is not given.")
]

# ---- on which machines

Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="HOST:PORT", help="Spread rows over this Ray cluster; auto is this machine's."),
]
RayWorkers = Annotated[
    int | None,
    typer.Option("--workers", min=1, metavar="N", help="Engines on the Ray cluster [default: what it has room for]."),
]
RayCpus = Annotated[
    int | None,
    typer.Option(
        "--cpus-per-worker", min=1, metavar="N", help="CPUs of each engine [default: those of the smallest machine]."
    ),
]
RayGpus = Annotated[
    int | None,
    typer.Option("--gpus-per-worker", min=0, metavar="N", help="GPUs of each engine [default: 1 if there are any]."),
]

# ---- what is read

Texts = Annotated[
    list[str] | None,
    typer.Option(
        "-f", "--text", metavar="TEXT", show_default=False,
        help="A text, folder, JSONL of conversations, or a name; repeatable [default: what every machine has].",
    ),
]  # fmt: skip
WindowTokens = Annotated[int, typer.Option("-c", "--ctx", min=2, metavar="N", help="Tokens of a window.")]
TEXT_TOKENS: Final = typer.Option(
    "-n", "--tokens", min=0, metavar="N", show_default=False,
    help="Tokens of text, at most [default: quality 16384, quantize 32768, imatrix 50000].",
)  # fmt: skip
Work = Annotated[
    Path | None,
    typer.Option("--work", metavar="DIR", help="Keep there what is measured, for further files and to go on."),
]
AllText = Annotated[
    bool,
    typer.Option(
        "--all-text", help="Read all documents, those for calibration and for judging, and leave texts whole."
    ),
]

# ---- which model

_MODEL_HELP: Final = "A GGUF, a checkpoint folder, or a Hub id: org/name, org/name:Q6_K, org/name@revision."
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=_MODEL_HELP)]
ModelOption = Annotated[str, typer.Option("--model", metavar="MODEL", help=_MODEL_HELP)]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
ModelsDir = Annotated[
    Path | None,
    typer.Option(
        "--models-dir", metavar="DIR", show_default=False,
        help="Folder of the models that are made [default: ~/.local/share/mimo-gguf/models].",
    ),
]  # fmt: skip

# ---- what may be bought

Budget = Annotated[
    float | None, typer.Option("--budget", metavar="USD", help="Only what has a known price, up to this.")
]
MinTps = Annotated[
    float | None,
    typer.Option("--min-tps", metavar="N", help="Only what reaches so many tokens per second for each user."),
]
CatalogueFile = Annotated[
    str | None, typer.Option("--file", metavar="SRC", help="This file or checkpoint, not the published MiMo-7B.")
]

# ---- what is made

OneType = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="File type, like Q4_K_M.")]
Types = Annotated[
    list[str] | None, typer.Option("--type", metavar="TYPE", help="File type, like Q4_K_M; repeat it for several.")
]
MtpType = Annotated[
    str | None, typer.Option("--mtp-type", metavar="TYPE", help="Type of the MTP layer: same (as the file), Q8_0, ...")
]
Out = Annotated[
    str | None,
    typer.Option("-o", "--out", metavar="OUT", help="NAME.gguf, or a folder [default: beside a GGUF, else here]."),
]
LAYOUT: Final = typer.Option(
    metavar="LAYOUT", show_default=False,
    help="step35: trunk and MTP. qwen2: trunk alone [default: step35 if there is MTP; relabel: qwen2].",
)  # fmt: skip
SplitMaxSize = Annotated[
    str | None,
    typer.Option(
        "--split-max-size", metavar="SIZE", help="Largest file, like 4GB; more becomes llama.cpp's split files."
    ),
]
KeepCheckpoint = Annotated[
    bool,
    typer.Option("--keep-checkpoint", help="Keep a downloaded checkpoint in the Hub's cache; else there is no copy."),
]
ReadAhead = Annotated[
    str | None,
    typer.Option(
        "--read-ahead", metavar="SIZE", help="Memory for what is downloaded and not yet read [default: 128MiB]."
    ),
]
Connections = Annotated[
    int | None, typer.Option("--connections", metavar="N", help="Downloads at a time [default: 4].")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be written; read headers only.")]
Force = Annotated[
    bool, typer.Option("--force", help="Do it even so: replace what exists, start what does not seem to fit.")
]

RetryErrors = Annotated[
    bool, typer.Option("--retry-errors", help="Answer the rows again that failed in an earlier run.")
]

# ---- what is shown

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, nothing else there.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's log on stderr.")]
LogFile = Annotated[Path | None, typer.Option("--log-file", metavar="FILE", help="Write llama.cpp's log here.")]


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Raises UsageError if an option's value is not one of its choices."""
    if value not in choices:
        raise UsageError(f"{option}: {value!r} is not one of its values", hint=name_hint(value, choices))
