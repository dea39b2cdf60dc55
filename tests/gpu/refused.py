"""Starts a run that the plan allows and the driver does not: `python -m tests.gpu.refused MODEL N_CTX`.

Mesa's software GPU refuses one allocation of more than 2 GiB, but llama.cpp splits its own before. So the caller sets
GGML_VK_SUBALLOCATION_BLOCK_SIZE and its like (`WHOLE`), and the plan is told of more free memory.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

from mimo_gguf.core.errors import BackendError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.units import GIB
from mimo_gguf.engine.session import SessionOptions
from mimo_gguf.fit.solver import Wishes
from mimo_gguf.hardware.devices import list_devices
from mimo_gguf.runtime.launch import choose_plan, launch

WHOLE: Final = {
    name: str(64 * GIB)
    for name in (
        "GGML_VK_SUBALLOCATION_BLOCK_SIZE",
        "GGML_VK_FORCE_MAX_ALLOCATION_SIZE",
        "GGML_VK_FORCE_MAX_BUFFER_SIZE",
    )
}


def main(path: Path, n_ctx: int, *, is_fixed: bool) -> None:
    file = read_gguf(path)
    devices = [replace(device, free_bytes=max(device.free_bytes, 8 * GIB)) for device in list_devices()]
    plan = choose_plan(file, Wishes(n_ctx=n_ctx), devices)
    s = plan.settings
    fixed = Wishes(n_ctx=n_ctx, kv_type=s.type_k, mtp=s.mtp, n_ubatch=s.n_ubatch, n_gpu_layers=s.n_gpu_layers)
    wishes = fixed if is_fixed else Wishes()
    answer: dict[str, object] = {"planned": plan.needed_bytes[devices[0].name], "layers": plan.settings.n_gpu_layers}
    try:
        started = launch(file, plan, wishes, SessionOptions())
    except BackendError as error:
        answer |= {"error": error.message, "hint": error.hint}
    else:
        answer |= {"note": started.note, "taken": started.plan.needed_bytes[devices[0].name]}
        started.session.close()
        started.native.close()
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), is_fixed="fixed" in sys.argv)
