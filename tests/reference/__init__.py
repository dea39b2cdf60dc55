"""The torch reference of MiMo and its MTP layers: `mimo` (the arithmetic), `checkpoint_folder`, `drafting`."""

from tests.reference.checkpoint_folder import (
    MIMO_TINY,
    load_checkpoint,
    mimo_config,
    random_checkpoint,
    write_checkpoint,
)
from tests.reference.drafting import draft_hits, generate_greedy, with_swapped_halves
from tests.reference.mimo import Cache, Hidden, Mimo

__all__ = [
    "MIMO_TINY",
    "Cache",
    "Hidden",
    "Mimo",
    "draft_hits",
    "generate_greedy",
    "load_checkpoint",
    "mimo_config",
    "random_checkpoint",
    "with_swapped_halves",
    "write_checkpoint",
]
