"""The arguments that several verbs share, read as the command line reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mimo_gguf.conversion.open_model import Reading
    from mimo_gguf.quantization.plan import QuantizeOptions
    from mimo_gguf.quantization.profiles import MtpRule, Profile
    from mimo_gguf.quantization.type_choice import TypeOptions

Names = str | Path | Sequence[str | Path]
MOST_CONNECTIONS: Final = 16


def quantize_options(
    types: TypeOptions,
    imatrix: str | Path | None,
    allow_requantize: bool,
    threads: int | None,
    split_max_size: str | int | None,
    force: bool,
    search: str = "llama.cpp",
) -> QuantizeOptions:
    """The options of a quantization; the importance matrix is read.

    Raises:
        GgufError, UsageError: an importance matrix or a size that cannot be read, or an unknown search.
    """
    from mimo_gguf.core.errors import UsageError
    from mimo_gguf.quantization.importance import read_importance
    from mimo_gguf.quantization.kernel_loading import SEARCHES
    from mimo_gguf.quantization.plan import QuantizeOptions

    if search not in SEARCHES:
        raise UsageError(f"there is no search {search!r}", hint=f"choose one of {', '.join(SEARCHES)}")
    return QuantizeOptions(
        types=types,
        importance=None if imatrix is None else read_importance(Path(imatrix)),
        n_threads=threads,
        split_max_bytes=part_bytes(split_max_size),
        force=force,
        allow_requantize=allow_requantize,
        search=search,
    )


def type_options(
    mtp_type: str | None, tensor_types: str | Sequence[str], output_type: str | None, token_embedding_type: str | None
) -> TypeOptions:
    """The user's rules about types.

    Raises:
        UsageError: no such type, or not PATTERN=TYPE.
    """
    from mimo_gguf.quantization.profiles import parse_weight_type
    from mimo_gguf.quantization.type_choice import TypeOptions, parse_tensor_type

    patterns = [tensor_types] if isinstance(tensor_types, str) else tensor_types
    return TypeOptions(
        mtp=None if mtp_type is None else _mtp_rule(mtp_type),
        tensor_types=tuple(parse_tensor_type(text) for text in patterns),
        output_type=None if output_type is None else parse_weight_type(output_type),
        token_embedding_type=None if token_embedding_type is None else parse_weight_type(token_embedding_type),
    )


def _mtp_rule(text: str) -> MtpRule:
    from mimo_gguf.quantization.profiles import SAME, MtpRule, parse_weight_type

    return MtpRule(None if text.lower() == SAME else parse_weight_type(text))


def profiles_of(types: Names) -> tuple[Profile, ...]:
    """The profiles of file types or TOML files.

    Raises:
        UsageError, RecipeError: no such profile, or one with a mistake in it.
    """
    from mimo_gguf.quantization.profiles import load_profile

    return tuple(map(load_profile, [types] if isinstance(types, str | Path) else types))


def destination_of(out: str | Path | None) -> Any:
    """The file or folder that `out` names, or None.

    Raises:
        UsageError: it might be either.
    """
    from mimo_gguf.core.output_file import parse_destination

    return None if out is None else parse_destination(str(out))


def part_bytes(size: str | int | None) -> int | None:
    """The bytes of the largest part of a split file, or None.

    Raises:
        UsageError: not a size, or too small.
    """
    from mimo_gguf.core.output_file import parse_part_size

    return None if size is None else parse_part_size(str(size))


def reading_of(keep_checkpoint: bool, read_ahead: str | int | None, connections: int | None) -> Reading:
    """How a model on a hub is read.

    Raises:
        UsageError: not a size, too small, or connections of which a hub would not take so many.
    """
    from dataclasses import replace

    from mimo_gguf.conversion.open_model import COPY, STREAM
    from mimo_gguf.core.errors import UsageError
    from mimo_gguf.core.units import format_size, parse_size

    if keep_checkpoint:
        if read_ahead is not None or connections is not None:
            raise UsageError(
                "--read-ahead and --connections are about reading while downloading; --keep-checkpoint downloads first",
                hint="drop one of the two",
            )
        return COPY
    fetching = STREAM.fetching
    if read_ahead is not None:
        least = 2 * fetching.block_bytes
        fetching = replace(fetching, window_bytes=parse_size(str(read_ahead)))
        if fetching.window_bytes < least:
            raise UsageError(f"--read-ahead {read_ahead} is too little", hint=f"at least {format_size(least)}")
    if connections is not None:
        if not 1 <= connections <= MOST_CONNECTIONS:
            raise UsageError(f"{connections} connections", hint=f"between 1 and {MOST_CONNECTIONS}")
        fetching = replace(fetching, connections=connections)
    return replace(STREAM, fetching=fetching)


def make_output_folder(out: str | Path | None, first_output: Path) -> None:
    """Makes the folder of the outputs if it is missing and `out` names a folder.

    Raises:
        OutputError: that is impossible.
    """
    from mimo_gguf.core.output_file import make_folder

    destination = destination_of(out)
    if destination is None or not destination.is_file:
        make_folder(first_output.parent)
