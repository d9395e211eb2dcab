"""The errors of the product, each class by the action that follows.

    InvalidatorError
    +-- ConfigError          the operator corrects the file: a list of mistakes, each with its place
    +-- UsageError           the operator corrects the command
    +-- RefusedError         the operator changes the environment; waiting does not help
    +-- AwayError            the sidecar retries: a dependency can't be reached or can't serve now
    |   +-- SourceLost       the feed ended; changes that it did not deliver are a gap
    |   +-- TargetAway       the target did not confirm a call; the lane sends the evictions again
    |       +-- TargetChanged    the target is another server than before; the lane flushes it
    +-- PayloadError         a notification can't be read; the source reports a gap or a table-wide change

A constructor takes the parts of the message, and `str()` joins them: `where: what; what to do`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class InvalidatorError(Exception):
    """The base of all errors; `exit_code` is the exit code of a command that fails with it."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.todo = todo

    def __str__(self) -> str:
        return sentence(self.where, self.what, self.todo)


class Problem(NamedTuple):
    """What is wrong, and how to correct it."""

    what: str
    todo: str = ""

    def __str__(self) -> str:
        return sentence("", self.what, self.todo)


class InvalidValueError(ValueError):
    """A text that can't be parsed. The caller knows where the text comes from."""

    def __init__(self, what: str, todo: str = "") -> None:
        super().__init__(sentence("", what, todo))
        self.problem = Problem(what, todo)


class Mistake(NamedTuple):
    """One mistake in a configuration file; line and column count from 1 and are 0 where there is none."""

    line: int
    column: int
    path: str
    what: str
    todo: str = ""

    def at(self, file: str) -> str:
        position = f"{file}:{self.line}:{self.column}" if self.line else file
        return sentence(f"{position}: {self.path}" if self.path else position, self.what, self.todo)


class ConfigError(InvalidatorError):
    """The configuration is wrong; `mistakes` has every mistake that was found."""

    exit_code = 2

    def __init__(self, file: str, mistakes: Sequence[Mistake]) -> None:
        super().__init__(f"{len(mistakes)} mistakes", where=file)
        self.file, self.mistakes = file, tuple(mistakes)

    def __str__(self) -> str:
        return "\n".join(mistake.at(self.file) for mistake in self.mistakes)


class UsageError(InvalidatorError):
    """The command line is wrong."""

    exit_code = 2


class RefusedError(InvalidatorError):
    """The sidecar stops, or the command fails, because waiting would not help."""


class AwayError(InvalidatorError):
    """A dependency can't be reached, or can't serve, now."""

    exit_code = 4


class LossReason(StrEnum):
    """Why a source's feed ended: a label of `source_reconnects_total`."""

    CONNECTION = "connection"
    CANARY = "canary"
    CONNECT = "connect"
    INTERNAL = "internal"


class RetryReason(StrEnum):
    """Why a call to a target is made again: a label of `target_retries_total`.

    AWAY: the target did not respond, or can't serve now. MOVED: another server has to be found.
    REFUSED: an operator has to change something at the target. CHANGED: the target is another server than before.
    """

    AWAY = "away"
    MOVED = "moved"
    REFUSED = "refused"
    CHANGED = "changed"


class SourceLost(AwayError):
    """The source's feed ended, or could not be opened; the time until the next one opens is a gap."""

    def __init__(
        self, what: str, *, where: str = "", todo: str = "", reason: LossReason = LossReason.CONNECTION
    ) -> None:
        super().__init__(what, where=where, todo=todo)
        self.reason = reason


class TargetAway(AwayError):
    """A target did not confirm a call; nothing of that call may be taken as evicted."""

    def __init__(self, what: str, *, where: str = "", todo: str = "", reason: RetryReason = RetryReason.AWAY) -> None:
        super().__init__(what, where=where, todo=todo)
        self.reason = reason


class TargetChanged(TargetAway):
    """The target is another server than before, or the same one that restarted from saved data: it needs a flush."""

    def __init__(self, what: str, *, where: str = "") -> None:
        super().__init__(what, where=where, reason=RetryReason.CHANGED)


class PayloadError(InvalidatorError):
    """A notification on the sidecar's own channel can't be read."""


def leaf(error: BaseException) -> BaseException:
    """The first error in nested exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def sentence(where: str, what: str, todo: str = "") -> str:
    """Join the parts of a message that are not empty."""
    text = f"{where}: {what}" if where else what
    return f"{text}; {todo}" if todo else text
