"""The result of a measurement: figures of each file, for each kind of text and in all, and what they are figures of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from mimo_gguf.core.version import LLAMA_CPP_COMMIT, __version__
from mimo_gguf.engine.drafting import HiddenState
from mimo_gguf.quality.divergence import Figure, Summary

ALL: Final = "all"  # the kind that stands for all texts together
Arithmetic = Literal["backend", "float32"]
BaseWay = Literal["in step", "states", "block by block"]


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """The base that files are compared with.

    Attributes:
        label: what the user called it.
        fingerprint: digest of its headers and of what decides its weights.
        way: how its predictions came: read beside the file ("in step"); through llama.cpp, its final states kept
            ("states"); or in float32 from its weights, one block at a time ("block by block").
    """

    label: str
    fingerprint: str
    way: BaseWay


@dataclass(frozen=True, slots=True)
class KindInfo:
    """What was read of one kind of text: documents to choose from, windows, tokens read and tokens judged."""

    n_documents: int
    n_windows: int
    n_tokens: int
    n_judged: int


@dataclass(frozen=True, slots=True)
class TextInfo:
    """The texts of a measurement.

    Attributes:
        names: as given with `-f`.
        digest: SHA-256 of the documents that were chosen from.
        windows_digest: SHA-256 of the tokens that were read.
        kinds: kind of text -> what was read of it.
        n_left_out: documents that were left out because they are for calibration.
    """

    names: tuple[str, ...]
    digest: str
    windows_digest: str
    kinds: dict[str, KindInfo]
    n_left_out: int


@dataclass(frozen=True, slots=True)
class FileQuality:
    """The figures of one file.

    Attributes:
        path: the file; size_bytes and file_type are its own.
        fingerprint: digest of its header and of what decides its weights.
        by_kind: kind of text -> figures; `ALL` is the last.
        acceptance: states that the MTP block was given -> kind of text -> share of its drafts that the trunk accepts.
        seconds, n_read: time of this run without loading, and the tokens that it read in that time. In float32 a
            token counts in part if an earlier run had passed it through some of the blocks.
    """

    path: Path
    size_bytes: int
    file_type: str
    fingerprint: str
    by_kind: dict[str, Summary]
    acceptance: dict[HiddenState, dict[str, Figure]]
    seconds: float
    n_read: int

    @property
    def tokens_per_s(self) -> float:
        """Tokens that were read in a second; 0 if an earlier run had read them all."""
        return self.n_read / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class QualityReport:
    """A finished measurement.

    Attributes:
        arithmetic: "backend" judges what the user gets from llama.cpp, which rounds activations; "float32" judges the
            weights alone.
        backend: the devices and threads that computed.
        n_ctx: tokens of a window, of which the second half is judged.
    """

    arithmetic: Arithmetic
    backend: str
    n_ctx: int
    base: BaseInfo | None
    texts: TextInfo
    files: tuple[FileQuality, ...]

    def as_json(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return {
            "version": __version__,
            "llama_cpp": LLAMA_CPP_COMMIT,
            **{name: getattr(self, name) for name in ("arithmetic", "backend", "n_ctx")},
            "base": None if self.base is None else asdict(self.base),
            "texts": asdict(self.texts),
            "files": [_file_json(file) for file in self.files],
        }


def _file_json(file: FileQuality) -> dict[str, Any]:
    return {
        "file": str(file.path),
        "size_bytes": file.size_bytes,
        "type": file.file_type,
        "fingerprint": file.fingerprint,
        "kinds": {kind: asdict(summary) for kind, summary in file.by_kind.items()},
        "acceptance": {
            hidden: {kind: asdict(figure) for kind, figure in kinds.items()}
            for hidden, kinds in file.acceptance.items()
        },
        "seconds": file.seconds,
        "tokens_per_s": file.tokens_per_s,
    }
