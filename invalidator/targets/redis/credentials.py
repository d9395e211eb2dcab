"""Passwords that change while the sidecar runs: from a file, a command, or a credential provider of the application.

Each is redis-py's `CredentialProvider`, and is called before each connect. A server closes no connection when a
password changes. A connection that was closed is opened again with the current password; the server is the same, so no
flush is needed.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from redis.credentials import CredentialProvider

from invalidator.core.protocol.redis_endpoint import Credentials, Endpoint
from invalidator.errors import RefusedError, RetryReason, TargetAway

TIMEOUT: Final = 10.0
"""Seconds that a password command or a credential provider may take."""

_KILL_TIMEOUT: Final = 1.0
_calls: Final[dict[int, Future[Any]]] = {}  # by the id of the provider, which its thread keeps alive


class NoCredentialsError(Exception):
    """No password can be read; the text says why, and never quotes a password."""


class PasswordFile(CredentialProvider):
    """The password is the content of a file, without the line end."""

    def __init__(self, user: str, path: str) -> None:
        self._user, self._path = user, Path(path)

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        try:
            password = self._path.read_text("utf-8")
        except OSError as error:
            raise NoCredentialsError(f"can't read password_file: {(error.strerror or str(error)).lower()}") from error
        except UnicodeDecodeError:
            raise NoCredentialsError("password_file is not text in UTF-8") from None
        return _login(self._user, password, "password_file is empty")


class PasswordCommand(CredentialProvider):
    """The password is the output of a program, without the line end. The program shares the sidecar's stderr."""

    def __init__(self, user: str, command: Sequence[str]) -> None:
        self._user, self._command = user, command

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise NoCredentialsError(f"can't run password_command: {(error.strerror or str(error)).lower()}") from error
        try:
            printed, _ = await process.communicate()
        except BaseException:
            await _kill(process)
            raise
        if process.returncode:
            raise NoCredentialsError(f"password_command ended with status {process.returncode}")
        try:
            return _login(self._user, printed.decode(), "password_command printed nothing")
        except UnicodeDecodeError:
            raise NoCredentialsError("password_command printed no text in UTF-8") from None


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kill the command and the processes that it started: asyncio waits until none of them has its stdout open."""
    with suppress(OSError):  # it has ended, or belongs to another user
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(_KILL_TIMEOUT):
            await process.wait()


def _login(user: str, text: str, empty: str) -> tuple[str] | tuple[str, str]:
    password = text.rstrip("\r\n")
    if not password:
        raise NoCredentialsError(empty)
    return (user, password) if user else (password,)


def load_provider(dotted: str, where: str) -> Credentials:
    """Call `package.module:factory`, which returns a credential provider; RefusedError where there is none."""
    module, _, factory = dotted.partition(":")
    try:
        provider = getattr(importlib.import_module(module), factory)()
    except Exception as error:  # third-party code may raise anything
        raise RefusedError(
            f'no credential provider from "{dotted}": {type(error).__name__}',
            where=where,
            todo="install its package beside invalidator, and correct package.module:factory",
        ) from error
    if not isinstance(provider, CredentialProvider):
        what = f'"{dotted}" returned a {type(provider).__name__}, which is no redis.credentials.CredentialProvider'
        raise RefusedError(what, where=where, todo="return one from the factory")
    return provider


async def read_credentials(endpoint: Endpoint) -> Sequence[str]:
    """The current login: nothing, a password, or a user and a password; TargetAway where it can't be read."""
    provider = endpoint.credentials
    if provider is None:
        if not (endpoint.user or endpoint.password):
            return ()
        return (endpoint.user, endpoint.password) if endpoint.user else (endpoint.password,)
    try:
        async with asyncio.timeout(TIMEOUT):
            if _is_asynchronous(provider):
                login = await provider.get_credentials_async()
            else:
                login = await asyncio.wrap_future(_call_in_thread(provider))
        if not _is_login(login):
            raise NoCredentialsError(
                "the credential provider returned no tuple of a password, or a user and a password"
            )
        return login
    except TimeoutError as error:
        what = f"no credentials within {TIMEOUT:g} s"
        raise TargetAway(what, where=str(endpoint)) from error
    except NoCredentialsError as error:
        raise TargetAway(
            str(error), where=str(endpoint), todo="correct it in the configuration", reason=RetryReason.REFUSED
        ) from error
    except Exception as error:  # raised by a provider; its text may hold a secret
        what = f"the credential provider failed: {type(error).__name__}"
        raise TargetAway(what, where=str(endpoint)) from error


def _call_in_thread(provider: Credentials) -> Future[Any]:
    """The call that is under way, or a new one.

    The thread is not one of asyncio's: calls that hang would occupy all of those threads, which also resolve host
    names, and would delay the end of the process.
    """
    if (call := _calls.get(id(provider))) is not None:
        return call
    call = _calls[id(provider)] = Future()
    call.set_running_or_notify_cancel()  # a connect that gives up does not cancel it for others

    def run() -> None:
        try:
            result = provider.get_credentials()
        except BaseException as error:
            _calls.pop(id(provider), None)
            call.set_exception(error)
        else:
            _calls.pop(id(provider), None)
            call.set_result(result)

    threading.Thread(target=run, name="credentials", daemon=True).start()
    return call


def _is_login(login: object) -> bool:
    return isinstance(login, tuple | list) and 1 <= len(login) <= 2 and all(isinstance(one, str) for one in login)


def _is_asynchronous(provider: Credentials) -> bool:
    """Whether the provider has an asynchronous method of its own; the inherited one calls the blocking method."""
    return type(provider).get_credentials_async is not CredentialProvider.get_credentials_async
