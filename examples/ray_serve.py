"""The server on a Ray cluster: two replicas of one model behind one address, with OpenAI's API.

    pip install 'mimo-gguf[ray]' 'ray[serve]'
    MODEL=/models/MiMo-7B-RL-Q4_K_M.gguf serve run examples.ray_serve:app
    curl http://127.0.0.1:8000/v1/chat/completions -d '{"messages": [{"role": "user", "content": "What is 17 + 25?"}]}'

Ray Serve places the replicas, sends each request to one that is free, and starts a new one if one dies.
"""

from __future__ import annotations

import os
from typing import Any

from ray import serve

MODEL = os.environ.get("MODEL", "XiaomiMiMo/MiMo-7B-RL:Q4_K_M")
REPLICAS = int(os.environ.get("REPLICAS", "2"))
CPUS = int(os.environ.get("CPUS", "1"))
GPUS = float(os.environ.get("GPUS", "0"))
PARALLEL = int(os.environ.get("PARALLEL", "4"))


def build() -> Any:
    """The application of one replica: called where it runs."""
    from mimo_gguf.server.asgi import open_app

    return open_app(MODEL, parallel=PARALLEL, threads=CPUS, mem_fraction=1 / REPLICAS)


app = serve.deployment(
    serve.ingress(build)(),
    name="mimo",
    num_replicas=REPLICAS,
    max_ongoing_requests=PARALLEL + 64,  # of one replica: those it answers, and those that wait there
    ray_actor_options={"num_cpus": CPUS, "num_gpus": GPUS},
).bind()
