"""Passwords that change while the sidecar runs: each connect uses the current one, and nothing is flushed."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from dataclasses import replace

import pytest
from redis.credentials import CredentialProvider, UsernamePasswordCredentialProvider

from invalidator.config.redis_url import parse_redis_url
from invalidator.errors import RefusedError, RetryReason, TargetAway
from invalidator.targets.redis import RedisTarget, credentials
from invalidator.targets.redis.credentials import PasswordCommand, PasswordFile, load_provider
from invalidator.targets.redis.topology import SingleServer
from tests.integration.test_redis_faults import World
from tests.support import eventually
from tests.support.redises import Keeping


@pytest.fixture
def server(servers, program):
    server = Keeping(servers, program)
    server.settings |= {"unixsocket": str(server.folder / "socket"), "unixsocketperm": "777"}
    server.start()
    yield server
    server.stop()


@pytest.fixture
def password(server, tmp_path):
    """Sets the password of the user `app`, and writes it to the file that is returned."""
    file = tmp_path / "password"

    def rotate(text):
        server.client().execute_command("ACL", "SETUSER", "app", "on", "resetpass", f">{text}", "~*", "+@all")
        file.write_text(f"{text}\n")

    rotate.file = file
    rotate("s3cret-1")
    return rotate


class Blocking(CredentialProvider):
    """A provider that has only the blocking method."""

    def __init__(self, file):
        self._file = file

    def get_credentials(self):
        return "app", self._file.read_text().strip()


class Asynchronous(Blocking):
    async def get_credentials_async(self):
        await asyncio.sleep(0)
        return self.get_credentials()


PROVIDERS = {
    "file": lambda file: PasswordFile("app", str(file)),
    "command": lambda file: PasswordCommand("app", ["cat", str(file)]),
    "blocking provider": Blocking,
    "asynchronous provider": Asynchronous,
}


def logging_in(server, provider, url=""):
    return replace(parse_redis_url(url or server.url), credentials=provider)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("by", ["port", "socket"])
async def test_a_rotated_password_costs_no_flush(server, password, name, by):
    provider = PROVIDERS[name](password.file)
    url = server.url if by == "port" else f"unix://{server.folder}/socket"
    world = World(SingleServer(logging_in(server, provider, url)), server.client)
    async with world.running():
        await world.evicts(1)
        for number in (2, 3):
            password(f"s3cret-{number}")
            server.client().execute_command("CLIENT", "KILL", "USER", "app")
            await world.evicts(number)
        await world.settles()
        assert world.flushes() == {"start": 1}


async def test_a_connect_with_an_outdated_password_is_retried(server, password):
    world = World(SingleServer(logging_in(server, PasswordFile("app", str(password.file)))), server.client)
    async with world.running():
        password.file.write_text("s3cret-early")
        server.client().execute_command("CLIENT", "KILL", "USER", "app")
        world.change(1)
        await eventually(lambda: "WRONGPASS" in world.lane.why)
        assert "s3cret" not in world.lane.why
        password("s3cret-early")
        await world.is_right_again()
        assert world.flushes() == {"start": 1}


@pytest.mark.parametrize(
    ("provider", "what", "reason"),
    [
        (PasswordFile("app", "/nowhere/password"), "can't read password_file: no such file", RetryReason.REFUSED),
        (PasswordFile("app", "/dev/null"), "password_file is empty", RetryReason.REFUSED),
        (PasswordCommand("app", ["/nowhere/program"]), "can't run password_command: no such file", RetryReason.REFUSED),
        (PasswordCommand("app", ["true"]), "password_command printed nothing", RetryReason.REFUSED),
        (PasswordCommand("app", ["false"]), "password_command ended with status 1", RetryReason.REFUSED),
        (PasswordCommand("app", ["printf", "\\377"]), "password_command printed no text", RetryReason.REFUSED),
        (CredentialProvider(), "the credential provider failed: NotImplementedError", RetryReason.AWAY),
    ],
)
async def test_without_a_password_the_error_names_the_reason(server, provider, what, reason):
    async with RedisTarget("cache", logging_in(server, provider)) as target:
        with pytest.raises(TargetAway, match=what) as caught:
            await target.heartbeat()
    assert caught.value.reason == reason


async def test_a_command_that_hangs_is_ended(server, monkeypatch):
    monkeypatch.setattr(credentials, "TIMEOUT", 0.1)
    async with RedisTarget("cache", logging_in(server, PasswordCommand("app", ["sleep", "1000"]))) as target:
        with pytest.raises(TargetAway, match=r"no credentials within 0\.1 s"):
            await target.heartbeat()


async def test_a_command_is_ended_with_what_it_started(server, monkeypatch, tmp_path):
    """A child that has the stdout of the command open would keep the connect waiting, for as long as it runs."""
    monkeypatch.setattr(credentials, "TIMEOUT", 0.5)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    command = PasswordCommand("app", ["sh", "-c", f"sleep 1000 3> {fifo}; echo late"])
    async with RedisTarget("cache", logging_in(server, command)) as target:
        with pytest.raises(TargetAway, match="no credentials within"):
            await target.heartbeat()
    assert os.read(held, 1) == b"", "a process still has it open"
    os.close(held)


class Hanging(CredentialProvider):
    def __init__(self):
        self.calls, self.goes_on = 0, threading.Event()

    def get_credentials(self):
        self.calls += 1
        self.goes_on.wait()
        return "app", "s3cret-1"


async def test_a_provider_that_hangs_takes_one_thread_and_none_of_asyncio(server, password, monkeypatch):
    """asyncio resolves host names in its threads, and waits for them when the process ends."""
    monkeypatch.setattr(credentials, "TIMEOUT", 0.01)
    provider = Hanging()
    try:
        async with RedisTarget("cache", logging_in(server, provider)) as target:
            for _ in range(40):
                with pytest.raises(TargetAway, match="no credentials within"):
                    await target.heartbeat()
            assert provider.calls == 1
            assert not [one for one in threading.enumerate() if one.name.startswith("asyncio_")]
            monkeypatch.setattr(credentials, "TIMEOUT", 10)
            provider.goes_on.set()
            await target.heartbeat()
    finally:
        provider.goes_on.set()


@pytest.mark.parametrize("returned", ["s3cret", None, (), ("app", None), ("app", b"s3cret"), ("a", "b", "c")])
async def test_a_provider_that_returns_no_login_is_named(server, returned):
    class Wrong(CredentialProvider):
        def get_credentials(self):
            return returned

    async with RedisTarget("cache", logging_in(server, Wrong())) as target:
        with pytest.raises(TargetAway, match="the credential provider returned no tuple") as caught:
            await target.heartbeat()
    assert "s3cret" not in str(caught.value)


FACTORIES = """
from redis.credentials import UsernamePasswordCredentialProvider

def good(): return UsernamePasswordCredentialProvider("app", "s3cret-1")
def wrong(): return "s3cret-1"
def broken(): raise ValueError("s3cret-1")
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "their_providers.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("their_providers", None)


async def test_a_provider_is_loaded_by_its_name(factories, server, password):
    provider = load_provider("their_providers:good", "targets.cache")
    assert isinstance(provider, UsernamePasswordCredentialProvider)
    async with RedisTarget("cache", logging_in(server, provider)) as target:
        await target.heartbeat()


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("their_providers:wrong", "returned a str, which is no redis.credentials.CredentialProvider"),
        ("their_providers:broken", 'no credential provider from "their_providers:broken": ValueError'),
        ("their_providers:gone", "AttributeError"),
        ("no_such_module:make", "ModuleNotFoundError"),
    ],
)
def test_what_is_no_provider_is_refused(factories, name, what):
    with pytest.raises(RefusedError, match=what) as caught:
        load_provider(name, "targets.cache")
    assert "s3cret" not in str(caught.value)
