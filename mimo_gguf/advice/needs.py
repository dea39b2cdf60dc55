"""What a user wants of a machine, checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

from mimo_gguf.core.errors import UsageError
from mimo_gguf.core.kv_cache import MOST_SEQUENCES
from mimo_gguf.core.model_sizes import ModelSizes

USUAL_CTX: Final = 8192


@dataclass(frozen=True, slots=True)
class Needs:
    """What a machine shall do, and what it may cost.

    Attributes:
        users: conversations at a time.
        ctx: tokens of context of each of them; 0 means those the model was trained for.
        min_tps: tokens per second for each of them; None accepts any speed.
        budget_usd: what may be spent; None is no limit.
        kwh_price: the price of a kWh, in any currency; None gives no cost of energy.
    """

    users: int = 1
    ctx: int = USUAL_CTX
    min_tps: float | None = None
    budget_usd: float | None = None
    kwh_price: float | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for what no machine could do, and for amounts that are not numbers."""
        if not 1 <= self.users <= MOST_SEQUENCES:
            hint = f"from 1 to {MOST_SEQUENCES}, which llama.cpp can hold at a time"
            raise UsageError(f"--users {self.users}: not a number of conversations", hint=hint)
        if self.ctx < 0:
            raise UsageError(f"--ctx {self.ctx}: not a number of tokens", hint=f"for example --ctx {USUAL_CTX}")
        if self.budget_usd is not None and not 0 < self.budget_usd < float("inf"):
            hint = "for example --budget 900; without --budget: what this machine can do"
            raise UsageError(f"a budget of {self.budget_usd:g} USD buys nothing", hint=hint)
        for option, amount in (("--min-tps", self.min_tps), ("--kwh-price", self.kwh_price)):
            if amount is not None and not 0 <= amount < float("inf"):  # also refuses NaN
                hint = "for example --min-tps 30 --kwh-price 0.30"
                raise UsageError(f"{option} {amount:g}: not a number from 0 up", hint=hint)

    def of_model(self, model: ModelSizes) -> Needs:
        """The same for a model: with its own context for 0.

        Raises:
            UsageError: the context is beyond the model's.
        """
        trained = model.geometry.context_length
        if self.ctx > trained:
            raise UsageError(
                f"a context of {self.ctx} tokens is more than the {trained} the model was trained for",
                hint=f"--ctx {trained} or less",
            )
        return replace(self, ctx=self.ctx or trained)

    @property
    def n_ctx(self) -> int:
        """The tokens of context of all conversations together."""
        return self.users * self.ctx

    def are_met_at(self, tps_each: float | None) -> bool:
        """Whether a machine is fast enough; an unknown speed is not, unless any speed is accepted."""
        return not self.min_tps or (tps_each is not None and tps_each >= self.min_tps)

    def as_json(self) -> dict[str, Any]:
        """The needs as a JSON document."""
        return {
            "users": self.users,
            "ctx": self.ctx,
            "min_tps": self.min_tps,
            "budget_usd": self.budget_usd,
            "kwh_price": self.kwh_price,
        }
