"""The description of a GGUF file, from its header alone: layout, MTP, types, and sizes by part of the model."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mimo_gguf.core.certificate_room import CERTIFICATE_KEY
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.geometry import LAYOUTS, STEP35, Geometry, read_geometry, tensor_group
from mimo_gguf.core.ggml_types import ftype_name
from mimo_gguf.core.gguf_file import GgufFile
from mimo_gguf.core.model_source import TensorInfo
from mimo_gguf.core.runnable import find_fault
from mimo_gguf.core.stored_certificate import read_certificate
from mimo_gguf.core.tensor_table import digest_table_of
from mimo_gguf.core.units import counted

GROUPS: Final = ("embedding", "trunk", "mtp", "output")


@dataclass(frozen=True, slots=True)
class GroupSize:
    """The tensors of one part of the model: how many, how large, and how many of each type."""

    group: str
    n_tensors: int
    n_parameters: int
    n_bytes: int
    types: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A file's description.

    Attributes:
        geometry: None if the architecture is not MiMo's, or if its numbers make no sense.
        fault: why llama.cpp cannot run a file of MiMo's layouts; None if nothing is known against it.
        certificate: the document that says how good the file is; None if there is none about these tensors.
        file: the header it was made from: metadata and tensor table.
    """

    paths: tuple[str, ...]
    file_bytes: int
    architecture: str
    ftype: str
    name: str
    geometry: Geometry | None
    groups: tuple[GroupSize, ...]
    file: GgufFile = field(repr=False)
    fault: str | None = None
    certificate: dict[str, Any] | None = None

    @property
    def n_parameters(self) -> int:
        return sum(group.n_parameters for group in self.groups)

    @property
    def tensor_bytes(self) -> int:
        return sum(group.n_bytes for group in self.groups)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.tensor_bytes / max(self.n_parameters, 1)

    @property
    def mtp(self) -> GroupSize | None:
        """The tensors of the MTP layers; None if there are none."""
        return next((group for group in self.groups if group.group == "mtp"), None)


def inspect_gguf(model: GgufFile) -> Inspection:
    """Describes a GGUF file of any architecture from its header, even if llama.cpp cannot run it."""
    infos = model.infos()
    architecture = model.architecture
    geometry, fault = None, None
    if architecture in LAYOUTS:
        fault = find_fault(model)
        with contextlib.suppress(GgufError):
            geometry = read_geometry(model.metadata, infos, where=str(model.path))
    n_trunk = geometry.n_trunk if geometry else 1 << 30
    stored = read_certificate(model)
    return Inspection(
        paths=tuple(str(part.path) for part in model.parts),
        file_bytes=sum(part.path.stat().st_size for part in model.parts),
        architecture=architecture,
        ftype=ftype_name(model.value("general.file_type", -1)),
        name=str(model.value("general.name", model.path.stem)),
        geometry=geometry,
        groups=tuple(size for group in GROUPS if (size := _group_size(group, infos, n_trunk)) is not None),
        file=model,
        fault=fault,
        certificate=stored.document if stored.has_table(digest_table_of(model)) else None,
    )


def _group_size(group: str, infos: Sequence[TensorInfo], n_trunk: int) -> GroupSize | None:
    members = [info for info in infos if tensor_group(info.name, n_trunk) == group]
    if not members:
        return None
    types = Counter(info.ggml_type.name for info in members)
    return GroupSize(
        group=group,
        n_tensors=len(members),
        n_parameters=sum(info.n_elements for info in members),
        n_bytes=sum(info.n_bytes for info in members),
        types=tuple(types.most_common()),
    )


def layout_line(inspection: Inspection) -> str:
    """One line that says which llama.cpp runs the file, and whether it has MTP layers."""
    if inspection.fault is not None:
        return f"{inspection.architecture}: llama.cpp cannot run it: {inspection.fault}"
    if inspection.geometry is None:
        return f"{inspection.architecture}: not a layout of MiMo"
    if inspection.architecture == STEP35:
        n_mtp = inspection.geometry.n_mtp
        return f"step35: trunk and {counted(n_mtp, 'MTP layer')}; drafts in llama.cpp of mid-2026 or later"
    return "qwen2: trunk only, no MTP; runs in any llama.cpp of the last two years"


def as_json(inspection: Inspection, *, tensors: bool = False) -> dict[str, Any]:
    """The inspection as a JSON document. Of a long list it has the length and the first items.

    Args:
        tensors: whether to list every tensor.
    """
    geometry = inspection.geometry
    document: dict[str, Any] = {
        "paths": list(inspection.paths),
        "file_bytes": inspection.file_bytes,
        "name": inspection.name,
        "architecture": inspection.architecture,
        "fault": inspection.fault,
        "ftype": inspection.ftype,
        "n_parameters": inspection.n_parameters,
        "tensor_bytes": inspection.tensor_bytes,
        "bits_per_weight": round(inspection.bits_per_weight, 4),
        "n_mtp": geometry.n_mtp if geometry else 0,
        "mtp_types": dict(inspection.mtp.types) if inspection.mtp else {},
        "groups": [
            {
                "group": size.group,
                "n_tensors": size.n_tensors,
                "n_parameters": size.n_parameters,
                "n_bytes": size.n_bytes,
                "types": dict(size.types),
            }
            for size in inspection.groups
        ],
        "certificate": inspection.certificate,
        "metadata": {
            key: _plain(entry.value) for key, entry in inspection.file.metadata.items() if key != CERTIFICATE_KEY
        },
    }
    if tensors:
        document["tensors"] = [
            {"name": info.name, "shape": list(info.shape), "type": info.ggml_type.name, "n_bytes": info.n_bytes}
            for info in inspection.file.infos()
        ]
    return document


def _plain(value: Any) -> Any:
    if isinstance(value, list) and len(value) > 64:
        return {"n_items": len(value), "first": value[:4]}
    return value
