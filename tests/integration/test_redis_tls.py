"""TLS to Redis by redis-py's URL parameters; Sentinels without TLS, or with parameters of their own."""

from __future__ import annotations

from contextlib import contextmanager
from urllib.parse import quote

import pytest

from invalidator.config.parse import parse
from invalidator.config.redis_url import parse_redis_url
from invalidator.core.rules.eviction import Eviction, Evictions
from invalidator.errors import RetryReason, TargetAway
from invalidator.service import wiring
from invalidator.targets.redis import RedisTarget
from tests.support.redises import SentinelServer, TlsServer
from tests.support.tls_terminator import TlsTerminator

CONFIG = """
version: 1
name: shop
targets:
  cache:
    kind: redis
    url: "URL"
    sentinel: {service: cache, nodes: ["NODE"]}
rules: [{table: a.b, evict: "k:{id}"}]
"""


@contextmanager
def running(servers, program, *hosts, **options):
    server = TlsServer(servers, program, *hosts, **options)
    server.start()
    yield server
    server.stop()


def url(server, parameters, host="localhost"):
    return f"rediss://{host}:{server.tls_port}/0?{parameters}"


async def evicts(target, server):
    server.client().set("k:1", "stale")
    await target.heartbeat()
    assert await target.evict(Evictions.of([Eviction("key", "k:1")])) == 1


@pytest.mark.parametrize(
    "parameters",
    [
        "ssl_ca_certs={authority}",
        "ssl_ca_data={pem}",
        "ssl_cert_reqs=none",
        "ssl_ca_certs={authority}&ssl_min_version=772",
        "ssl_ca_certs={authority}&ssl_ciphers=ECDHE-ECDSA-AES128-GCM-SHA256",
        "ssl_ca_certs={authority}&ssl_include_verify_flags=VERIFY_X509_STRICT",
        "ssl_ca_certs={authority}&socket_timeout=5&health_check_interval=30&max_connections=10&protocol=3",
    ],
)
async def test_redis_py_s_parameters(servers, program, parameters):
    with running(servers, program) as server:
        pem = quote(server.authority.read_text())
        given = url(server, parameters.format(authority=server.authority, pem=pem))
        async with RedisTarget("cache", parse_redis_url(given)) as target:
            await evicts(target, server)


async def test_certificates_of_redis_s_own_script_work_where_python_is_strict(servers, program):
    """Python 3.13 has VERIFY_X509_STRICT by default; older ones are made to have it here."""
    with running(servers, program, strict=False) as server:
        strict = f"ssl_ca_certs={server.authority}&ssl_include_verify_flags=VERIFY_X509_STRICT"
        async with RedisTarget("cache", parse_redis_url(url(server, strict))) as target:
            with pytest.raises(TargetAway, match="its certificate is not trusted") as caught:
                await target.heartbeat()
        assert "ssl_exclude_verify_flags=VERIFY_X509_STRICT" in caught.value.todo
        lenient = url(server, f"{strict}&ssl_exclude_verify_flags=VERIFY_X509_STRICT")
        async with RedisTarget("cache", parse_redis_url(lenient)) as target:
            await evicts(target, server)


async def test_a_certificate_for_no_host_works_without_the_check_of_the_host(servers, program):
    with running(servers, program, "elsewhere") as server:
        unchecked = f"ssl_ca_certs={server.authority}&ssl_check_hostname=false"
        async with RedisTarget("cache", parse_redis_url(url(server, unchecked))) as target:
            await evicts(target, server)


async def test_a_server_that_asks_for_a_certificate_gets_it(servers, program):
    with running(servers, program, with_clients=True) as server:
        certificate, key = server.client_files
        trusted = f"ssl_ca_certs={server.authority}"
        async with RedisTarget("cache", parse_redis_url(url(server, trusted))) as target:
            with pytest.raises(TargetAway):
                await target.heartbeat()
        known = f"{trusted}&ssl_certfile={certificate}&ssl_keyfile={key}"
        async with RedisTarget("cache", parse_redis_url(url(server, known))) as target:
            await evicts(target, server)


@pytest.mark.parametrize("parameters", ["ssl_ca_certs=/nowhere/ca.pem", "ssl_ciphers=NOSUCH", "ssl_min_version=7"])
async def test_parameters_that_can_not_be_used_are_refused(servers, program, parameters):
    with running(servers, program) as server:
        async with RedisTarget("cache", parse_redis_url(url(server, parameters))) as target:
            with pytest.raises(TargetAway, match="TLS can't be set up") as caught:
                await target.heartbeat()
    assert caught.value.reason == RetryReason.REFUSED
    assert caught.value.todo == "correct the ssl_ parameters of the url"


def with_sentinel(address, node):
    config = parse(CONFIG.replace("URL", address).replace("NODE", node), {}, str)
    return wiring.target(config, "cache")


async def test_the_primary_has_tls_and_its_sentinels_have_none(servers, program):
    with running(servers, program, "elsewhere") as server:
        sentinel = SentinelServer(servers, server.tls_port, 1)
        sentinel.start()
        primary = f"rediss://unused/0?ssl_ca_certs={server.authority}&ssl_check_hostname=false"
        async with with_sentinel(primary, f"redis://127.0.0.1:{sentinel.port}") as target:
            await evicts(target, server)
        async with with_sentinel(primary, f"127.0.0.1:{sentinel.port}") as target:
            with pytest.raises(TargetAway, match="no Sentinel answers"):
                await target.heartbeat()
        sentinel.stop()


async def test_the_sentinels_have_tls_of_their_own_and_the_primary_has_none(servers, program):
    with running(servers, program) as server:
        sentinel = SentinelServer(servers, server.port, 1)
        sentinel.start()
        with TlsTerminator(sentinel.port, *server.files) as terminator:
            node = f"rediss://localhost:{terminator.port}?ssl_ca_certs={server.authority}"
            async with with_sentinel("redis://unused/0", node) as target:
                await evicts(target, server)
            async with with_sentinel("redis://unused/0", f"rediss://localhost:{terminator.port}") as target:
                with pytest.raises(TargetAway, match="its certificate is not trusted"):
                    await target.heartbeat()
        sentinel.stop()
