"""The end of a connection, as libfuse and pyfuse3 tell it."""

from __future__ import annotations

import errno

import pyfuse3
import pytest

from aoefs.fuse.mount import serve


async def end(error: OSError) -> None:
    """As ``pyfuse3.main`` does when a worker fails."""
    raise ExceptionGroup("workers", [ExceptionGroup("session", [error])])


async def test_a_connection_that_is_aborted_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "main", lambda **_: end(OSError(errno.ECONNABORTED, "fuse_session_receive_buf")))
    await serve(300)


async def test_any_other_error_of_a_connection_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "main", lambda **_: end(OSError(errno.EIO, "fuse_session_receive_buf")))
    with pytest.raises(ExceptionGroup):
        await serve(300)
