"""The verb behind `mimo-gguf quality`, with the defaults of the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from mimo_gguf.core.paths import program_cache
from mimo_gguf.quality.base import OnProgress
from mimo_gguf.quality.certifying import CertifiedFile, certify_files, check_certifiable
from mimo_gguf.quality.judge import run_quality
from mimo_gguf.quality.plan import QualityPlan, parse_options, plan_quality
from mimo_gguf.quality.report import QualityReport
from mimo_gguf.quality.work import forget_old


def measure_quality(
    files: str | Path | Sequence[str | Path],
    *,
    base: str | Path | None = None,
    texts: str | Sequence[str] = (),
    ctx: int = 512,
    tokens: int = 16384,
    arithmetic: str | None = None,
    hidden: str = "pre",
    mtp: bool | None = None,
    all_text: bool = False,
    work: str | Path | None = None,
    threads: int | None = None,
    gpu_layers: int | None = None,
    certify: bool = False,
    on_plan: Callable[[QualityPlan], None] | None = None,
    on_progress: OnProgress | None = None,
    on_certified: Callable[[CertifiedFile], None] | None = None,
) -> QualityReport:
    """Measures GGUF files: perplexity, divergence from a base, acceptance of drafts. A repeated call goes on.

    Args:
        files: GGUF files of one model.
        base: what they were made from: a GGUF, a checkpoint folder or a Hub id; None measures perplexity alone.
        texts: files, folders, JSONL files of conversations, names (docs/quality.md); none: what every machine has.
        ctx: tokens of a window; its second half is judged.
        tokens: tokens to read in all; 0 reads everything.
        arithmetic: "backend" (llama.cpp) or "float32" (the weights alone); None means backend if the files fit.
        hidden: states that the MTP layer reads: "pre" (before the final norm), "post" or "both".
        mtp: False leaves the MTP layer out; True refuses a file without one.
        all_text: also read the documents that are for calibration, and leave texts whole.
        work: a folder that keeps the base's states and the scores; None: one in the user's cache, until the end.
        threads, gpu_layers: None means one per core, and all layers on the GPU if they fit there.
        certify: write the result as a certificate into each file, without moving a tensor, and beside it.
        on_plan: called with the plan before anything is computed.
        on_progress: called with what is being read, the tokens done and the tokens to do.
        on_certified: called with each file that was certified.

    Raises:
        UsageError: no such text, too little of it, another vocabulary than the base's, or no MTP layer.
        MimoGgufError: as `plan_quality` and `run_quality`.
    """
    options = parse_options(
        ctx=ctx, tokens=tokens, arithmetic=arithmetic, hidden=hidden, mtp=mtp, all_text=all_text, threads=threads,
        gpu_layers=gpu_layers,
    )  # fmt: skip
    paths = [Path(files)] if isinstance(files, str | Path) else list(map(Path, files))
    named = [texts] if isinstance(texts, str) else list(texts)
    if certify:
        check_certifiable(paths)
    plan = plan_quality(paths, None if base is None else str(base), named, options)
    if on_plan is not None:
        on_plan(plan)
    folder = _cache() if work is None else Path(work)
    report = run_quality(plan, folder, keep_work=work is not None, on_progress=on_progress)
    for certified in certify_files(plan, report, threads) if certify else ():
        if on_certified is not None:
            on_certified(certified)
    return report


def _cache() -> Path:
    """The folder of runs that are not to be kept, without those that nobody went on with."""
    folder = program_cache() / "quality"
    forget_old(folder)
    return folder
