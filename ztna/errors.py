"""The error taxonomy: who is at fault decides the type, and the type decides the reaction."""

from __future__ import annotations


class ZtnaError(Exception):
    """Base of every error that this package raises on purpose."""


def describe(error: BaseException) -> str:
    """An error in words for people: without errno and type, with the file if one is at fault."""
    if not isinstance(error, OSError) or not error.strerror:
        return str(error) or type(error).__name__
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


class RemoteProtocolError(ZtnaError):
    """The peer broke the protocol: drop, count, perhaps close.

    Bytes from the network raise nothing else out of a core.

    Attributes:
        reason: a short snake_case word, fit to be a metric label.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class LocalProtocolError(ZtnaError):
    """We drove a core wrongly: a bug of ours, left to crash to the supervisor."""


class ConfigError(ZtnaError):
    """The configuration is wrong; reported before anything starts (exit code 2)."""


class AuthenticationError(ZtnaError):
    """A certificate, signature or identity is not acceptable (exit code 3 at start-up).

    Attributes:
        reason: one of `expired`, `not_yet_valid`, `foreign_ca`, `wrong_role`, `wrong_name`, `wrong_key`,
            `revoked`, `missing`, `malformed`, `bad_signature`; fit to be a metric label.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class AccessDenied(ZtnaError):  # noqa: N818 - the name is the verdict, not a failure
    """Policy, grant or ownership says no: answer the peer, log at info, do not retry.

    Attributes:
        reason: a short snake_case word, fit to be a metric label.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
