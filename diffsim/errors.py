"""The errors a user can cause. Each message says what was wrong, with the value, and what to do."""

from __future__ import annotations


class DiffsimError(Exception):
    """Base of every error that is the caller's to mend; the command line prints it as one line."""


class ConfigError(DiffsimError, ValueError):
    """A setting that does not exist or has an impossible value."""


class RunFileError(DiffsimError, OSError):
    """A run file that is missing, damaged, foreign or in use."""


class TrustError(DiffsimError, PermissionError):
    """A run names code of somebody else, and nobody has agreed to run it."""


class DivergenceError(DiffsimError, ArithmeticError):
    """Training produced non-finite numbers and cannot go on soundly."""


class OutOfMemoryError(DiffsimError, MemoryError):
    """A run that needs more memory than there is, of the machine or of its GPU."""


class ProcessError(DiffsimError, RuntimeError):
    """Another process of the same training has ended, does not answer, or computes other numbers."""


class EvaluationError(DiffsimError, ValueError):
    """A policy and an environment that do not fit together, or no environment at all."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop (Ctrl-C, SIGTERM); a checkpoint has been written.

    Like every KeyboardInterrupt it passes ``except Exception``, so a sweep stops with the run it is in.
    ``signal`` is the number of the signal that asked.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory; torch has no class of its own for that of the machine."""
    said = str(error)
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said
