"""Batches and the passes made of them: memory that lives as long as it is pointed to, and limits that are kept to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mimo_gguf.core.errors import UsageError
from mimo_gguf.llama.api import ContextOptions, LlamaModel, open_context
from mimo_gguf.llama.batch import Batch

LONG = ContextOptions(n_ctx=1024, n_batch=640, n_ubatch=512, n_outputs_max=4, n_threads=1)
IN_A_CHILD = """
import gc, sys
from mimo_gguf.llama.api import ContextOptions, load_model, open_context
from mimo_gguf.llama.batch import Batch

options = ContextOptions(n_ctx=1024, n_batch=640, n_ubatch=512, n_outputs_max=4, n_threads=1)
with load_model(sys.argv[1]) as model, open_context(model, options) as context:
    for n_rows in (200, 480, 640):
        native = Batch(n_rows).fill([7] * n_rows, 0, n_outputs=4)
        gc.collect()
        others = [Batch(n_rows).fill([9] * n_rows, 50, n_outputs=1) for _ in range(50)]
        assert context.decode(native) == 0 and context.last_position() == n_rows - 1
        context.forget(0)
"""


def test_a_batch_outlives_its_python_object(tiny_path: Path) -> None:
    """The struct alone was kept, as in `decode(Batch(480).fill(...))`: the decode read freed memory and died."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_CHILD, str(tiny_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("n_rows", "n_outputs"), [(641, 1), (10, 5), (640, 640)])
def test_more_than_the_context_was_made_for_is_refused(tiny: LlamaModel, n_rows: int, n_outputs: int) -> None:
    """llama.cpp would end the process."""
    with open_context(tiny, LONG) as context:
        with pytest.raises(UsageError, match="640 and 4"):
            context.decode(Batch(n_rows).fill([7] * n_rows, 0, n_outputs=n_outputs))
        assert context.last_position() == -1
        assert context.decode(Batch(4).fill([7] * 4, 0, n_outputs=4)) == 0


def test_every_sequence_may_ask_for_a_row(tiny: LlamaModel) -> None:
    """With fewer rows of logits than sequences llama.cpp aborts at the first pass."""
    options = ContextOptions(n_ctx=2048, n_seq_max=8, n_outputs_max=1, kv_unified=True, n_threads=1)
    with open_context(tiny, options) as context:
        batch = Batch(8)
        for seq_id in range(8):
            batch.add([7], 0, n_outputs=1, seq_id=seq_id)
        assert context.decode(batch.native) == 0
