"""Every error of ours, ordered by who has to act next.

    InvalidatorError
    +-- ConfigError          the operator edits the file: a list of mistakes, each with its place
    +-- UsageError           the operator types another command
    +-- RefusedError         the operator changes the world: waiting can't mend it
    +-- AwayError            we retry: a dependency can't be reached now
    |   +-- SourceLost       the feed is gone; what it did not deliver is a gap
    |   +-- TargetAway       the target has not answered; what it was given is still owed
    |       +-- TargetChanged    it is another server than before; it is owed a flush
    +-- PayloadError         nobody can: a notification that is not readable as one of ours

A constructor takes facts; `str()` is one sentence: `where: what; what to do`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class InvalidatorError(Exception):
    """What all errors of ours are; `exit_code` is what a command that dies of it exits with."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.todo = what, where, todo

    def __str__(self) -> str:
        return sentence(self.where, self.what, self.todo)


class Problem(NamedTuple):
    """What is wrong, and how to correct it."""

    what: str
    todo: str = ""

    def __str__(self) -> str:
        return sentence("", self.what, self.todo)


class InvalidValueError(ValueError):
    """A text that cannot be read as what it should be. Its place is known to the caller."""

    def __init__(self, what: str, todo: str = "") -> None:
        super().__init__(sentence("", what, todo))
        self.problem = Problem(what, todo)


class Mistake(NamedTuple):
    """One mistake in a configuration file; line and column count from 1, 0 when there is none."""

    line: int
    column: int
    path: str
    what: str
    todo: str = ""

    def at(self, file: str) -> str:
        place = f"{file}:{self.line}:{self.column}" if self.line else file
        return sentence(f"{place}: {self.path}" if self.path else place, self.what, self.todo)


class ConfigError(InvalidatorError):
    """The configuration is wrong; `mistakes` holds every one that was found."""

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
    """We don't go on, because no waiting would mend it."""


class AwayError(InvalidatorError):
    """A dependency can't be reached, or can't serve us, now."""

    exit_code = 4


class LossReason(StrEnum):
    """Why a source's feed ended: a label of `source_reconnects_total`."""

    CONNECTION = "connection"
    CANARY = "canary"
    CONNECT = "connect"
    INTERNAL = "internal"


class RetryReason(StrEnum):
    """Why a call to a target is made again: a label of `target_retries_total`.

    MOVED: another server serves this now. REFUSED: the operator has to change something there.
    CHANGED: the server is not the one that took the earlier evictions.
    """

    AWAY = "away"
    MOVED = "moved"
    REFUSED = "refused"
    CHANGED = "changed"


class SourceLost(AwayError):
    """The source's feed ended, or could not be opened; what happens until the next one opens is a gap."""

    def __init__(
        self, what: str, *, where: str = "", todo: str = "", reason: LossReason = LossReason.CONNECTION
    ) -> None:
        super().__init__(what, where=where, todo=todo)
        self.reason = reason


class TargetAway(AwayError):
    """A target did not answer for what it was given; nothing of it may be taken as evicted."""

    def __init__(self, what: str, *, where: str = "", todo: str = "", reason: RetryReason = RetryReason.AWAY) -> None:
        super().__init__(what, where=where, todo=todo)
        self.reason = reason


class TargetChanged(TargetAway):
    """It is another server than before, or the same one come back with what it had saved: it is owed a flush."""

    def __init__(self, what: str, *, where: str = "") -> None:
        super().__init__(what, where=where, reason=RetryReason.CHANGED)


class PayloadError(InvalidatorError):
    """A notification on our channel can't be read."""


def leaf(error: BaseException) -> BaseException:
    """The first of the errors that groups within groups hold."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def sentence(where: str, what: str, todo: str = "") -> str:
    """Join the three parts of a message that are there."""
    text = f"{where}: {what}" if where else what
    return f"{text}; {todo}" if todo else text
