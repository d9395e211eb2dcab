"""The life of `run`: one sidecar after another, until a signal stops the process.

SIGTERM and SIGINT stop it. SIGHUP reads the configuration again: a valid one that differs replaces the running sidecar
by one of its own. The HTTP listeners stay open meanwhile, unless their addresses change.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from invalidator.config.models import Config, Listen
from invalidator.errors import ConfigError, RefusedError, UsageError
from invalidator.http.server import Server
from invalidator.internal_errors import InternalErrors
from invalidator.logs import Log
from invalidator.service.limits import allow_many_files
from invalidator.service.observe import Observation
from invalidator.service.sidecar import DRAIN, Sidecar
from invalidator.service.systemd import Systemd

RESTART_AFTER = 1.0
"""Seconds between a configuration that ended by an internal error and the next attempt."""

_RELOAD_DRAIN: Final = 2.0
_log: Final = Log()


ReadConfig = Callable[[], Config]
"""Reads the configuration from its file."""

Report = Callable[[list[str]], None]
"""Prints the lines of an observation."""


@dataclass(frozen=True, slots=True)
class Stop:
    """The process ends."""


@dataclass(frozen=True, slots=True)
class Reload:
    """The process goes on with this configuration."""

    config: Config


Outcome = Stop | Reload
"""Why a sidecar ended."""


class Signals:
    """The signals that have arrived. `reload` is cleared when one is acted on."""

    def __init__(self) -> None:
        self.stop, self.reload = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload.set)


class _Listeners:
    """The HTTP server of the process, opened again only when a configuration names other addresses."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack
        self._server: Server | None = None
        self._listen: Listen | None = None

    async def show(self, sidecar: Sidecar) -> None:
        """Answer requests about this sidecar."""
        listen = sidecar.config.listen
        if self._server is None or listen != self._listen:
            self._server = None
            await self._stack.aclose()
            self._server = await self._stack.enter_async_context(Server(listen))
            self._listen = listen
        self._server.show(sidecar)


async def run(config: Config, read_config: ReadConfig, report: Report | None = None) -> None:
    """Keep the configured caches right until SIGTERM or SIGINT; SIGHUP reads the configuration again.

    With `report`, nothing is evicted: the sidecar counts what it would evict, and reports it when a configuration ends.
    A configuration that is refused, or that ends by an internal error before it has received anything, is replaced by
    `last_good`; without one, the error ends the process.
    """
    allow_many_files()
    signals = Signals()
    last_good: Config | None = None
    async with AsyncExitStack() as stack:
        listeners = _Listeners(stack)
        while not signals.stop.is_set():
            sidecar: Sidecar | None = None
            try:
                observation = Observation(config) if report else None
                sidecar = Sidecar(config, observation)
                await listeners.show(sidecar)
                asyncio.get_running_loop().set_exception_handler(sidecar.on_loop_exception)
                with reported(observation, report):
                    outcome = await _run_sidecar(sidecar, signals, read_config)
            except RefusedError as error:
                if last_good is None:
                    raise
                _log.error(
                    "reload_refused",
                    "the new configuration was refused; the previous one stays in use",
                    error=str(error),
                )
                config, last_good = last_good, None
            except Exception as error:  # each part handles its own errors; this catches the rest
                (sidecar.errors if sidecar else InternalErrors()).report("other", error)
                if sidecar is not None and sidecar.has_received:
                    last_good = config
                elif last_good is None:
                    raise
                config = last_good
                await asyncio.sleep(RESTART_AFTER)
            else:
                if isinstance(outcome, Reload):
                    last_good, config = config, outcome.config
    _log.info("sidecar_stopped", "stopped")


@contextmanager
def reported(observation: Observation | None, report: Report | None) -> Iterator[None]:
    """Report the counts of an observation, however it ends; one that was refused at its start has counted nothing."""
    refused = False
    try:
        yield
    except RefusedError:
        refused = True
        raise
    finally:
        if observation is not None and report is not None and not refused:
            report(observation.lines())


async def _run_sidecar(sidecar: Sidecar, signals: Signals, read_config: ReadConfig) -> Outcome:
    """Run one sidecar until a signal ends it. A stop that arrives while it drains for a reload wins."""
    systemd = Systemd()
    async with (
        _background(_wait_for_stop(signals, systemd)) as stop,
        _background(_wait_for_reload(sidecar, signals, read_config, systemd)) as reload,
        _background(systemd.run(sidecar.started)),
    ):
        ending = asyncio.Event()
        for task in (stop, reload):
            task.add_done_callback(lambda _: ending.set())
        await sidecar.run(ending, lambda: _RELOAD_DRAIN if reload.done() else DRAIN)
        return Stop() if signals.stop.is_set() else Reload(reload.result())


async def _wait_for_stop(signals: Signals, systemd: Systemd) -> None:
    await signals.stop.wait()
    systemd.stopping()


async def _wait_for_reload(sidecar: Sidecar, signals: Signals, read_config: ReadConfig, systemd: Systemd) -> Config:
    """The first valid and new configuration that SIGHUP brings; its own sidecar reports ready to systemd."""
    while True:
        await signals.reload.wait()
        signals.reload.clear()
        systemd.reloading()
        config = read_new_config(sidecar, read_config)
        if config is not None:
            return config
        systemd.ready()


def read_new_config(sidecar: Sidecar, read_config: ReadConfig) -> Config | None:
    """The configuration in the file, or None when it is wrong or the running one: then this sidecar goes on."""
    sidecar.check_triggers()
    try:
        config = read_config()
    except (ConfigError, UsageError) as error:
        sidecar.is_reloaded = False
        _log.error(
            "reload_refused", "the new configuration is invalid; the previous one stays in use", error=str(error)
        )
        return None
    except Exception as error:
        sidecar.is_reloaded = False
        sidecar.errors.report("reload", error)
        return None
    sidecar.is_reloaded = True
    if config == sidecar.config:
        _log.info("configuration_unchanged", "the configuration is the same as before")
        return None
    _log.info("configuration_reloaded", "the new configuration takes over")
    return config


@asynccontextmanager
async def _background(call: Coroutine[Any, Any, Any]) -> AsyncIterator[asyncio.Task[Any]]:
    """Run a coroutine beside the block, which cancels it at its end and ignores how it ended."""
    task = asyncio.ensure_future(call)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
