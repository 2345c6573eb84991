"""Errors as people read them."""

from __future__ import annotations

import errno

import pytest

from ztna.errors import AuthenticationError, ConfigError, describe


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EADDRINUSE, "cannot bind 127.0.0.1:1: in use"), "cannot bind 127.0.0.1:1: in use"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/a/b"), "/a/b: No such file"),
        (OSError("only words"), "only words"),
        (ConfigError("node.id: missing"), "node.id: missing"),
        (AuthenticationError("expired", "yesterday"), "expired: yesterday"),
        (RuntimeError(), "RuntimeError"),
    ],
    ids=["errno", "file", "words", "configuration", "authentication", "speechless"],
)
def test_error_is_described_without_numbers_and_types(error: Exception, words: str) -> None:
    assert describe(error) == words
