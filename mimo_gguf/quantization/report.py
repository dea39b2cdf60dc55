"""Reports what a run did: files, sizes, time, throughput, and which kernel wrote which type."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class FileReport:
    """The report on one output.

    Attributes:
        resumed_bytes: bytes that an earlier run had left.
        was_complete: whether an earlier run had left it complete.
        n_copied: tensors whose bytes are the source's.
        notes: lines for the user, as in its plan.
    """

    profile: str
    paths: tuple[Path, ...]
    n_bytes: int
    bits_per_weight: float
    resumed_bytes: int
    was_complete: bool
    n_copied: int
    n_tensors: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """A finished run.

    Attributes:
        read_bytes, written_bytes: bytes of tensor data that this run read and wrote.
        kernels: type name ("Q4_K", or "Q4_K by importance") -> the name of the kernel that wrote it, for people.
        source_digest: the hex digest of the weights that were read.
    """

    source: str
    source_digest: str
    outputs: tuple[FileReport, ...]
    seconds: float
    n_threads: int
    read_bytes: int
    written_bytes: int
    kernels: dict[str, str]

    @property
    def read_gb_s(self) -> float:
        """The reading speed in 1e9 bytes per second."""
        return self.read_bytes / 1e9 / max(self.seconds, 1e-9)

    @property
    def written_gb_s(self) -> float:
        """The writing speed in 1e9 bytes per second."""
        return self.written_bytes / 1e9 / max(self.seconds, 1e-9)

    @property
    def exactness(self) -> str:
        """A line that says which tensors are identical to what."""
        copied, tensors = sum(o.n_copied for o in self.outputs), sum(o.n_tensors for o in self.outputs)
        text = f"{copied} of {tensors} tensors bit for bit the source's"
        return text if copied == tensors else f"{text}, the others byte for byte llama.cpp's"

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return {
            "source": self.source,
            "source_digest": self.source_digest,
            "outputs": [
                {
                    "profile": output.profile,
                    "paths": [str(path) for path in output.paths],
                    "n_bytes": output.n_bytes,
                    "bits_per_weight": round(output.bits_per_weight, 4),
                    "resumed_bytes": output.resumed_bytes,
                    "was_complete": output.was_complete,
                    "n_tensors": output.n_tensors,
                    "n_copied": output.n_copied,
                    "notes": list(output.notes),
                }
                for output in self.outputs
            ],
            "seconds": round(self.seconds, 3),
            "n_threads": self.n_threads,
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "read_gb_s": round(self.read_gb_s, 3),
            "written_gb_s": round(self.written_gb_s, 3),
            "kernels": self.kernels,
            "exactness": self.exactness,
        }
