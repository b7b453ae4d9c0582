"""Every exception of flowrun.

FlowrunError                  what a command reports in one line, with an exit code
├── SettingsError             flowrun.yaml, a flag or a variable is wrong            (exit 2)
├── NotFoundError             there is no such run, event, handler …                 (exit 1)
├── RefusedError              it is not in a state in which that can be done         (exit 1)
├── NotReadyError             what was asked for is still being built                (exit 75)
│   └── GivenUpError          another read model has taken the place of this one
├── StoreError                the store cannot be reached or used                    (exit 69)
│   ├── OwnershipError        a run is not ours any more
│   └── VersionConflictError  the event log has another version of a subject than was expected
└── TransportError            the broker cannot be reached or refuses                (exit 69)
    └── TopologyError         a queue or exchange stands with other arguments        (exit 1)

HandlerError                  what a handler plugin may raise
├── TerminalError             trying again cannot help
└── RetryableError            trying again may help

ExpressionError               an expression could not be evaluated
EnvelopeError                 a message that is no event: it becomes a dead letter
"""

from __future__ import annotations

from typing import Any


class FlowrunError(Exception):
    """A failure that the user can do something about: its text says what, `hint` what next."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SettingsError(FlowrunError):
    """flowrun.yaml, a flag or an environment variable is wrong."""


class NotFoundError(FlowrunError):
    """What was asked for does not exist."""

    exit_code = 1


class RefusedError(FlowrunError):
    """What was asked for cannot be done to a run as it stands."""

    exit_code = 1


class NotReadyError(FlowrunError):
    """It cannot be told yet; it can later."""

    exit_code = 75


class GivenUpError(NotReadyError):
    """The read model was given up: another has taken its place, or nobody declares it any more."""

    @classmethod
    def of(cls, name: str) -> GivenUpError:
        """The error for a read model of that projection."""
        return cls(f"a read model of {name} was given up while it was read", hint="try again")


class StoreError(FlowrunError):
    """The store cannot be reached, read or written."""

    exit_code = 69


class OwnershipError(StoreError):
    """The run is not ours any more: our lease had run out, or a person has taken it."""

    @classmethod
    def of(cls, run_id: str) -> OwnershipError:
        """The error for that run."""
        return cls(f"run {run_id} has been taken over by another runner, or by a person")


class VersionConflictError(StoreError):
    """An event expected its subject at another version than it is at: `actual`, 0 if nothing is known of it."""

    def __init__(self, subject: str, expected: int, actual: int) -> None:
        super().__init__(f"{subject} is at version {actual}, and version {expected} was expected")
        self.subject = subject
        self.expected = expected
        self.actual = actual


class TransportError(FlowrunError):
    """The broker cannot be reached, or refused what was asked."""

    exit_code = 69


class TopologyError(TransportError):
    """A broker object stands with other arguments than the plan's."""

    exit_code = 1


class HandlerError(Exception):
    """Base of the two errors that a handler raises on purpose.

    `type` is a dotted word that `catch` and `retry` match, `details` are JSON values kept with the run.
    """

    retryable = False

    def __init__(self, type: str, message: str = "", **details: Any) -> None:
        super().__init__(message or type)
        self.type = type
        self.message = message or type
        self.details = details


class TerminalError(HandlerError):
    """Trying again cannot help: the step fails at once."""


class RetryableError(HandlerError):
    """Trying again may help: the step's retry policy decides.

    `retry_after_s`, in seconds, is the least delay before the next attempt, e.g. from a Retry-After header.
    """

    retryable = True

    def __init__(self, type: str, message: str = "", retry_after_s: float | None = None, **details: Any) -> None:
        super().__init__(type, message, **details)
        self.retry_after_s = retry_after_s


class ExpressionError(Exception):
    """An expression could not be evaluated with the values that it met."""


class EnvelopeError(Exception):
    """A delivery is no event that this project knows; `reason` is the dead letter's."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
