"""The tree of errors.

    MimoGgufError                 exit code 1
    ├── UsageError                2   options that contradict each other, an unknown name
    ├── CheckpointError           1   a Hugging Face checkpoint that is missing, broken or of another model
    ├── HubError                  1   the Hub could not be reached, or has no such repository
    ├── GgufError                 1   a GGUF file that is broken or of another model
    ├── RecipeError               1   a conversion recipe or quantization profile with a mistake in it
    ├── WeightsError              1   weights that no output can hold: Inf, NaN, or changed while they were read
    ├── OutputError               1   the output exists, cannot be written, or the disk is full
    ├── BackendError              1   llama.cpp refused a model or a context
    └── DoesNotFit                3   the plan needs more memory than the machine has free

Every error carries one line saying what and where, and a hint: the next command to type, or what to change.
Libraries raise; only the command line prints and exits.
"""

from __future__ import annotations


class MimoGgufError(Exception):
    """Base of everything this package raises on purpose.

    Args:
        message: one line: what is wrong, and where.
        hint: one line: the next command to type, or what to change.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MimoGgufError, ValueError):
    """Options that contradict each other, or a name that does not exist. Also a ValueError, as scripts expect it."""

    exit_code = 2


class CheckpointError(MimoGgufError):
    """A Hugging Face checkpoint that is missing, broken, or of another model."""


class HubError(MimoGgufError):
    """The Hugging Face Hub could not be reached, or has no such repository."""


class GgufError(MimoGgufError):
    """A GGUF file that is broken, truncated, or of another model."""


class RecipeError(MimoGgufError):
    """A conversion recipe or quantization profile with a mistake in it."""


class WeightsError(MimoGgufError):
    """Weights that no output can hold: Inf, NaN, beyond the type's range, or changed while they were read.

    A run that meets them cannot be resumed.
    """


class OutputError(MimoGgufError):
    """An output that exists already, cannot be written, or does not fit on the disk."""


class BackendError(MimoGgufError):
    """llama.cpp refused a model or a context; the message carries its reason."""


class DoesNotFit(MimoGgufError):
    """A plan that needs more memory than is free."""

    exit_code = 3


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the name of its error if the message is empty."""
    return str(error).strip().split("\n")[0] or type(error).__name__
