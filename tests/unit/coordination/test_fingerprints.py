"""The fingerprint of what a sidecar receives: when there is one, what it depends on, and that waiting polls nothing."""

from __future__ import annotations

import asyncio

import pytest

from invalidator import clock
from invalidator.coordination import fingerprint
from invalidator.coordination.fingerprint import Fingerprints, Reception
from invalidator.core.coordination.coverage import Fingerprint
from tests.support.clock import run_jumping

KNOWN = Reception(triggers="t", is_trigger_check_pending=False, channels=["c"], is_degraded=False)
PENDING = KNOWN._replace(triggers=None, is_trigger_check_pending=True)


class Store:
    def __init__(self, server):
        self.server = server

    def fingerprint(self, received):
        return f"{self.server} {received}"


class Target:
    def __init__(self, name, peer_store=None):
        self.name, self.peer_store = name, peer_store


def made(reception=KNOWN, *, server="server", settings=None):
    targets = [Target("cache", Store("cache server")), Target("near", Store(server)), Target("local")]
    return Fingerprints(
        targets,
        reception=lambda: reception,
        settings=settings or dict.fromkeys(("cache", "near", "local"), "settings"),
        follows={"cache": ["near"], "near": [], "local": ["cache"]},
    )


@pytest.mark.parametrize(
    ("reception", "expected"),
    [
        (None, Fingerprint()),
        (PENDING, Fingerprint(is_pending=True)),
        (PENDING._replace(is_trigger_check_pending=False), Fingerprint()),
        (KNOWN._replace(channels=None), Fingerprint()),
        (KNOWN._replace(is_degraded=True), Fingerprint()),
    ],
    ids=["nothing is received", "the check is pending", "the check fails", "channels are unknown", "degraded"],
)
def test_there_is_none_while_a_change_may_be_missed(reception, expected):
    assert made(reception).of("cache") == expected


def test_two_that_receive_the_same_have_the_same():
    assert made().of("cache") == made().of("cache") != Fingerprint()


@pytest.mark.parametrize(
    "other",
    [
        made(KNOWN._replace(triggers="u")),
        made(KNOWN._replace(channels=["d"])),
        made(server="another server"),
        made(settings={"cache": "other", "near": "settings", "local": "settings"}),
    ],
    ids=["triggers", "channels", "the server of a target that it follows", "settings"],
)
def test_it_depends_on_each_of_its_parts(other):
    assert other.of("cache") != made().of("cache")


def test_a_target_that_no_peer_shares_makes_the_one_behind_it_differ_from_any_peers():
    def behind_local():
        return Fingerprints(
            [Target("local"), Target("cache", Store("server"))],
            reception=lambda: KNOWN,
            settings={"cache": "settings"},
            follows={"cache": ["local"]},
        )

    assert behind_local().of("cache") != behind_local().of("cache")


def test_waiting_for_it_ends_when_it_is_known_and_looks_only_when_it_is_told_to():
    async def main():
        looks, reception = [], PENDING

        def look():
            looks.append(clock.now())
            return reception

        fingerprints = Fingerprints([Target("cache")], reception=look, settings={"cache": ""}, follows={"cache": []})
        waiting = asyncio.create_task(fingerprints.known("cache"))
        await asyncio.sleep(1.0)
        fingerprints.changed()
        await asyncio.sleep(1.0)
        assert len(looks) == 2
        assert not waiting.done()
        reception = KNOWN
        began = clock.now()
        fingerprints.changed()
        await waiting
        assert looks[2:] == [pytest.approx(began, abs=1e-3)]

    run_jumping(main())


def test_waiting_for_it_is_given_up_in_the_end():
    async def main():
        fingerprints, began = made(PENDING), clock.now()
        await fingerprints.known("cache")
        assert clock.now() - began == pytest.approx(fingerprint.KNOWN_WITHIN, abs=0.01)

    run_jumping(main())
