"""How a model is run for a batch: from the user's options to a loaded model, on whatever machine answers rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mimo_gguf.batch.survey import Survey
    from mimo_gguf.core.gguf_file import GgufFile
    from mimo_gguf.engine.session import SessionOptions
    from mimo_gguf.fit.plan import FitPlan
    from mimo_gguf.fit.solver import Wishes
    from mimo_gguf.hardware.devices import Device
    from mimo_gguf.runtime.llm import LLM
    from mimo_gguf.runtime.slots import Slots

_SMALLEST_WINDOW: Final = 256
_SCORED_ROWS: Final = 64  # tokens of a prompt that one pass scores for `echo`


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How a model is run for a batch, as the user gave it. It can be pickled.

    Attributes:
        model: a GGUF file, or what `resolve_model` makes one of.
        alias: further names of the model.
        parallel: rows that are answered at a time; None for as many as the memory holds.
        force: start with a plan that does not seem to fit.
    """

    model: str | Path
    alias: tuple[str, ...] = ()
    ctx: int | None = None
    parallel: int | None = None
    mtp: bool | None = None
    draft: int = 1
    always_draft: bool = False
    threads: int | None = None
    gpu_layers: int | None = None
    kv_type: str | None = None
    ubatch: int | None = None
    exact: bool = False
    force: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What the model is called: as its file, and further names."""
        return tuple(dict.fromkeys((Path(self.model).stem, *self.alias)))

    def found(self, find: Callable[..., Path] | None) -> BatchSettings:
        """The same with the model's file, which is made if it has to be.

        Args:
            find: finds it, with the arguments of `resolve_model`, which does so if it is None.

        Raises:
            MimoGgufError: as `resolve_model`.
        """
        from mimo_gguf.store.resolve import resolve_model

        return replace(self, model=(find or resolve_model)(str(self.model), self.wishes(), force=self.force))

    def fingerprint(self, file: GgufFile) -> str:
        """What decides the answers: the weights, as the file's header and size tell, and how they are computed."""
        parts = " ".join(f"{part.header_digest} {part.path.stat().st_size}" for part in file.parts)
        return f"{parts} exact={self.exact}"

    def options(self, n_parallel: int = 1) -> SessionOptions:
        """The options of the session."""
        from mimo_gguf.engine.session import SessionOptions

        return SessionOptions(
            n_parallel=n_parallel, n_threads=self.threads or 0, n_draft=self.draft, adaptive=not self.always_draft,
            n_prompt_rows=_SCORED_ROWS, exact=self.exact,
        )  # fmt: skip

    def wishes(self) -> Wishes:
        """What is decided about the run."""
        from mimo_gguf.core.kv_cache import parse_kv_type
        from mimo_gguf.fit.solver import Wishes

        return Wishes(
            n_ctx=self.ctx, kv_type=None if self.kv_type is None else parse_kv_type(self.kv_type), mtp=self.mtp,
            n_ubatch=self.ubatch, n_gpu_layers=self.gpu_layers, exact=self.exact,
        )  # fmt: skip

    def slots(
        self, file: GgufFile, *, window: int | None, most: int | None, devices: Sequence[Device] | None = None
    ) -> Slots:
        """How many rows are answered at a time, and with which plan.

        Args:
            window: tokens that the longest row needs; None if nothing is known.
            most: rows that there are; None if nothing is known.
            devices: the devices that may be used, the host last; None for all.

        Raises:
            GgufError, UsageError: as `choose_slots`.
        """
        from mimo_gguf.runtime.slots import choose_slots

        return choose_slots(
            file, self.wishes(), self.options(), window=window, most=most, n_parallel=self.parallel, devices=devices
        )

    def load(
        self, slots: Slots, *, on_plan: Callable[[FitPlan], None] | None = None, devices: Sequence[Device] | None = None
    ) -> LLM:
        """The model, loaded. Raises MimoGgufError as `Model.load`."""
        from mimo_gguf.runtime.llm import LLM
        from mimo_gguf.runtime.model import Model

        model = Model.load(
            self.model, n_ctx=slots.n_ctx, kv_type=self.kv_type, mtp=self.mtp, n_ubatch=self.ubatch,
            n_gpu_layers=self.gpu_layers, options=self.options(slots.n_parallel), exact=self.exact, force=self.force,
            on_plan=on_plan, devices=devices,
        )  # fmt: skip
        return LLM.of_model(model)


def window_of(survey: Survey | None) -> int | None:
    """The tokens that the longest row needs; None if nothing is known.

    An answer without a limit has 8192 together with its prompt, or more.
    """
    from mimo_gguf.fit.solver import GOOD_CONTEXT

    if survey is None:
        return None
    if survey.longest is None:
        return max(GOOD_CONTEXT, survey.longest_prompt + GOOD_CONTEXT // 2)
    return max(survey.longest, _SMALLEST_WINDOW)
