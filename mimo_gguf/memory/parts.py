"""The memory that a run needs on one device, part by part, in bytes.

Each part is a field, so a wrong name of a part is an error. The names that people read, in tables and in JSON, stand
only here, beside the fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class WeightBytes:
    """The model's tensors, each padded to the device's alignment."""

    input_embedding: int = 0
    blocks: int = 0
    mtp: int = 0
    output: int = 0

    @property
    def n_bytes(self) -> int:
        return self.input_embedding + self.blocks + self.mtp + self.output

    def named(self) -> dict[str, int]:
        return {
            "input embedding": self.input_embedding,
            "blocks": self.blocks,
            "MTP": self.mtp,
            "output": self.output,
        }


@dataclass(frozen=True, slots=True)
class ContextBytes:
    """The shares of both contexts: the target's, and that of the context that runs the MTP blocks."""

    target: int = 0
    mtp: int = 0

    @property
    def n_bytes(self) -> int:
        return self.target + self.mtp

    def named(self) -> dict[str, int]:
        return {"target": self.target, "MTP": self.mtp}


NO_CONTEXT: Final = ContextBytes()


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory that a run needs on one device.

    llama.cpp counts the first three parts itself. It also allocates `output_rows` in the host's memory, and does not
    know of the others.

    Attributes:
        output_rows: copies of a batch's logits and hidden states.
        parked: of the host, copies of idle conversations' KV caches.
        shared: of the host, the memory that devices without memory of their own use.
        program: Python, libraries, vocabulary.
        driver: code and handles that a GPU's driver loads at first use.
        margin: left free, so that a small mistake does no harm.
        cache_tensor: no part; the larger of K and V of one block, which llama.cpp allocates in one piece.
    """

    weights: WeightBytes
    kv_cache: ContextBytes
    compute: ContextBytes
    output_rows: ContextBytes = NO_CONTEXT
    parked: int = 0
    shared: int = 0
    program: int = 0
    driver: int = 0
    margin: int = 0
    cache_tensor: int = 0

    @property
    def counted_bytes(self) -> int:
        """The bytes that llama.cpp's own count must equal."""
        return self.weights.n_bytes + self.kv_cache.n_bytes + self.compute.n_bytes

    @property
    def n_bytes(self) -> int:
        beside = self.parked + self.shared + self.program + self.driver + self.margin
        return self.counted_bytes + self.output_rows.n_bytes + beside

    def named(self) -> dict[str, WeightBytes | ContextBytes | int]:
        return {
            "weights": self.weights,
            "KV cache": self.kv_cache,
            "compute buffers": self.compute,
            "output rows": self.output_rows,
            "parked conversations": self.parked,
            "on devices that share this memory": self.shared,
            "program": self.program,
            "driver": self.driver,
            "margin": self.margin,
        }

    def rows(self) -> dict[tuple[str, ...], int]:
        """The bytes by name, also of empty parts, a group before its parts: ("weights",), ("weights", "blocks")."""
        found: dict[tuple[str, ...], int] = {}
        for name, part in self.named().items():
            if isinstance(part, int):
                found[name,] = part
            else:
                found[name,] = part.n_bytes
                found |= {(name, inner): n_bytes for inner, n_bytes in part.named().items()}
        return found

    def as_json(self, name: str) -> dict[str, Any]:
        """The parts as a tree of {"name", "bytes", "parts"}, without empty ones; `name` is the device's."""
        tree: dict[str, Any] = {"name": name, "bytes": self.n_bytes}
        for path, n_bytes in self.rows().items():
            if n_bytes:
                parent = tree if len(path) == 1 else tree["parts"][-1]
                parent.setdefault("parts", []).append({"name": path[-1], "bytes": n_bytes})
        return tree
