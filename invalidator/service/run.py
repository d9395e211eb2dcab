"""The life of `run`: signals, reloads, and what listens while it lasts."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Final

from invalidator.config.models import Config, Listen
from invalidator.errors import ConfigError, RefusedError, UsageError
from invalidator.http.server import Server
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.service.limits import allow_many_files
from invalidator.service.observe import Observation
from invalidator.service.sidecar import DRAIN, Sidecar
from invalidator.service.systemd import Systemd

_RELOAD_DRAIN: Final = 2.0
_PAUSE: Final = 1.0
_log: Final = Log()


Report = Callable[[list[str]], None]
"""Takes the lines of what was counted."""


async def run(config: Config, read_again: Callable[[], Config], report: Report | None = None) -> None:
    """Keep the configured caches right until SIGTERM or SIGINT; SIGHUP reads the configuration again.

    With `report`, nothing is evicted: what would have been is counted, and reported when a configuration ends.
    """
    allow_many_files()
    loop, stop, reload = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    async with AsyncExitStack() as stack:
        last_good: Config | None = None
        listening: Listen | None = None
        while not stop.is_set():
            sidecar: Sidecar | None = None
            try:
                observation = Observation(config) if report else None
                sidecar = Sidecar(config, observation)
                if config.listen != listening:
                    listening = None
                    await stack.aclose()
                    server, listening = await stack.enter_async_context(Server(config.listen)), config.listen
                server.show(sidecar)
                loop.set_exception_handler(sidecar.on_loop_exception)
                with reported(observation, report):
                    following = await _generation(sidecar, stop, reload, read_again)
            except RefusedError as error:
                if last_good is None:
                    raise
                _log.error(
                    "reload_refused", "the new configuration can't be served; the old one is kept", why=str(error)
                )
                config, last_good = last_good, None
                continue
            except Exception as error:  # the last resort: each part deals with its own
                (sidecar.errors if sidecar else InternalErrors()).report("other", error)
                if sidecar is not None and sidecar.has_received:
                    last_good = config
                elif last_good is None:
                    raise
                config = last_good
                await asyncio.sleep(_PAUSE)
                continue
            last_good, config = config, following or config
    _log.info("stopped", "stopped")


@contextmanager
def reported(observation: Observation | None, report: Report | None) -> Iterator[None]:
    """Report what was counted, however it ends; what was refused at its start has counted nothing."""
    refused = False
    try:
        yield
    except RefusedError:
        refused = True
        raise
    finally:
        if observation is not None and report is not None and not refused:
            report(observation.lines())


async def _generation(
    sidecar: Sidecar, stop: asyncio.Event, reload: asyncio.Event, read_again: Callable[[], Config]
) -> Config | None:
    """Run one configuration until it ends; the one to go on with, None to end."""
    following: list[Config] = []
    ending = asyncio.Event()
    systemd = Systemd()

    async def await_stop() -> None:
        await stop.wait()
        systemd.stopping()
        ending.set()

    async def await_reload() -> None:
        while not following:
            await reload.wait()
            reload.clear()
            systemd.reloading()
            read = _read_again(sidecar, read_again)
            if read is None:
                systemd.ready()
            else:
                following.append(read)  # which says that it is ready when it is
        ending.set()

    tasks = (await_stop(), await_reload(), systemd.run(sidecar.started))
    waiting = [asyncio.ensure_future(task) for task in tasks]
    try:
        await sidecar.run(ending, lambda: _RELOAD_DRAIN if following else DRAIN)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return following[0] if following and not stop.is_set() else None


def _read_again(sidecar: Sidecar, read_again: Callable[[], Config]) -> Config | None:
    """The configuration when it is another and right; else what is there goes on."""
    sidecar.look()
    try:
        config = read_again()
    except (ConfigError, UsageError) as error:
        sidecar.reloaded = False
        _log.error("reload_refused", "the new configuration is wrong; the old one is kept", why=str(error))
        return None
    except Exception as error:
        sidecar.reloaded = False
        sidecar.errors.report("reload", error)
        return None
    sidecar.reloaded = True
    if config == sidecar.config:
        _log.info("reload_unchanged", "the configuration is the same as before")
        return None
    _log.info("reloading", "taking over the new configuration")
    return config


async def serve(config: Config) -> None:
    """Keep the configured caches right until cancelled; nothing listens."""
    await Sidecar(config).run(asyncio.Event())
