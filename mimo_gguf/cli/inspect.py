"""`mimo-gguf inspect`: describes a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mimo_gguf.cli import ui
from mimo_gguf.cli.options import Json
from mimo_gguf.core.errors import GgufError
from mimo_gguf.core.units import format_count, format_size

if TYPE_CHECKING:
    from mimo_gguf.core.gguf_file import GgufFile
    from mimo_gguf.core.inspection import Inspection


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file, or any part of a split one.")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    metadata: Annotated[bool, typer.Option("--metadata", help="List all metadata.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a GGUF file is: layout, variant, MTP, types, sizes.

    Only the header is read, so it is instant at any size.
    """
    from mimo_gguf.core.inspection import as_json as describe
    from mimo_gguf.core.inspection import layout_line
    from mimo_gguf.verbs import inspect

    found = inspect(file)
    if as_json:
        ui.print_json(describe(found, tensors=tensors))
        return
    _print_summary(found, layout_line(found))
    _print_certificate(found)
    _print_groups(found)
    if metadata:
        _print_metadata(found.file)
    if tensors:
        _print_tensors(found.file)


def _print_summary(found: Inspection, layout_line: str) -> None:
    model = found.file
    parts = f" in {len(found.paths)} parts" if len(found.paths) > 1 else ""
    rows = [
        ("model", found.name),
        ("file", f"{found.paths[0]}{parts}, {format_size(found.file_bytes)}"),
        ("type", f"{found.ftype}, {found.bits_per_weight:.2f} bits per weight"),
        ("layout", layout_line),
        ("parameters", format_count(found.n_parameters)),
    ]
    if found.geometry is not None:
        g = found.geometry
        rows.append(("context", f"{g.context_length} tokens"))
        rows.append(
            (
                "geometry",
                f"{g.n_trunk} + {g.n_mtp} blocks, width {g.embedding_length}, feed-forward {g.feed_forward_length}, "
                f"{g.head_count} heads / {g.head_count_kv} KV, vocabulary {g.vocab_size}",
            )
        )
    for label, key in (("licence", "general.license"), ("base model", "general.base_model.0.name")):
        if (value := model.value(key)) is not None:
            rows.append((label, str(value)))
    if (url := model.value("general.source.url", model.value("general.source.repo_url"))) is not None:
        rows.append(("source", str(url)))
    for label, text in rows:
        ui.print_field(label, text)


def _print_certificate(found: Inspection) -> None:
    from mimo_gguf.cli.quality_certificates import certificate_fields

    if found.certificate is None:
        return
    try:
        rows = certificate_fields(found.certificate, found.file.path.name)
    except GgufError as error:
        rows = [("quality", error.message)]
    for label, text in rows:
        ui.print_field(label, text)


def _print_groups(found: Inspection) -> None:
    ui.print_line()
    ui.print_table(
        ("part", "tensors", "parameters", "size", "types"),
        [
            (
                size.group,
                str(size.n_tensors),
                format_count(size.n_parameters),
                format_size(size.n_bytes),
                ", ".join(f"{name} x{count}" for name, count in size.types),
            )
            for size in found.groups
        ],
    )
    if found.mtp is None and found.geometry is not None:
        ui.print_line("mtp        none in this file")


def _print_metadata(model: GgufFile) -> None:
    from mimo_gguf.core.certificate_room import CERTIFICATE_KEY

    ui.print_line()
    for key, entry in model.metadata.items():
        value = entry.value
        if key == CERTIFICATE_KEY:
            value = f"({len(str(value).rstrip())} of {len(str(value))} characters)"
        elif isinstance(value, list):
            shown = ", ".join(map(repr, value[:4])) + (f", ... {len(value)} in all" if len(value) > 4 else "")
            value = f"[{shown}]"
        text = str(value)
        ui.print_line(f"{key} = {text[:160]}{'...' if len(text) > 160 else ''}")


def _print_tensors(model: GgufFile) -> None:
    ui.print_line()
    ui.print_table(
        ("tensor", "type", "size", "shape"),
        [
            (info.name, info.ggml_type.name, format_size(info.n_bytes), " x ".join(map(str, info.shape)))
            for info in model.infos()
        ],
    )
