"""Writes certificates of measured files, into and beside them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mimo_gguf.conversion.open_model import open_model
from mimo_gguf.core.errors import GgufError, OutputError
from mimo_gguf.core.gguf_file import read_gguf
from mimo_gguf.core.output_file import check_folder
from mimo_gguf.core.paths import command_word
from mimo_gguf.core.stored_certificate import certificate_path
from mimo_gguf.quality.certificate import Certificate, certify
from mimo_gguf.quality.plan import QualityPlan
from mimo_gguf.quality.report import QualityReport
from mimo_gguf.quantization.certificates import store_certificate
from mimo_gguf.quantization.source_digest import digest_source
from mimo_gguf.quantization.verification import identify_tensors, verify_gguf


@dataclass(frozen=True, slots=True)
class CertifiedFile:
    """A file with its new certificate.

    Attributes:
        beside: the file beside it that holds the certificate.
        notes: lines for the user.
    """

    path: Path
    beside: Path
    certificate: Certificate
    notes: tuple[str, ...]


def check_certifiable(paths: Iterable[Path]) -> None:
    """Refuses files that no certificate could be written to, before anything is measured.

    Raises:
        GgufError: no such file, or not a GGUF file.
        OutputError: a file or its folder is read-only.
    """
    for path in paths:
        model = read_gguf(path)
        check_folder(model.path.parent)
        if model.parts[0].room is not None and not os.access(model.path, os.W_OK):
            raise OutputError(
                f"{model.path}: is read-only, so no certificate can be written into it",
                hint=f"chmod u+w {command_word(model.path)}",
            )


def certify_files(plan: QualityPlan, report: QualityReport, n_threads: int | None = None) -> tuple[CertifiedFile, ...]:
    """Writes a certificate into and beside each file of a finished measurement.

    All tensors of the file and of the base are read once more, for the digests that the certificate ties together.

    Raises:
        GgufError: a file is damaged.
        CheckpointError, HubError: the base cannot be read any more.
        OutputError: a certificate cannot be written.
    """
    certified, of_base = [], _BaseDigests("" if report.base is None else report.base.label, n_threads)
    for file in report.files:
        model = read_gguf(file.path)
        found = verify_gguf(file.path, n_threads=n_threads)
        if found.problems:
            raise GgufError(found.problems[0], hint=f"mimo-gguf verify {command_word(file.path)}")
        identity = identify_tensors(model, found)
        certificate = certify(plan, report, file, of_base.get(identity.chunk_weights))
        notes = store_certificate(model, identity, certificate.as_json())
        certified.append(CertifiedFile(model.path, certificate_path(model.path), certificate, notes))
    return tuple(certified)


class _BaseDigests:
    """The digest of the base's weights, computed once for each size of chunk that files use."""

    def __init__(self, label: str, n_threads: int | None) -> None:
        self._label = label
        self._n_threads = n_threads
        self._known: dict[int, str] = {}

    def get(self, chunk_weights: int) -> str:
        if not self._label:
            return ""
        if chunk_weights not in self._known:
            with open_model(self._label) as source:
                self._known[chunk_weights] = digest_source(source, chunk_weights, self._n_threads)
        return self._known[chunk_weights]
