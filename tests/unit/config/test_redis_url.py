"""The parameters of a Redis URL: used, without effect, or a mistake."""

from __future__ import annotations

import ssl

import pytest

from invalidator.config.connection_strings import mask
from invalidator.config.parse import parse
from invalidator.config.redis_url import parse_redis_url, parse_sentinel_node, read_redis_url
from invalidator.config.show import show
from invalidator.core.protocol.redis_endpoint import Endpoint, Tls
from invalidator.errors import ConfigError
from invalidator.service import wiring
from tests.unit.config.test_parse import GOOD


def target(entries):
    return GOOD.replace("cache: {kind: redis}", f"cache: {{kind: redis, {entries}}}")


def test_where_the_server_is_and_how_to_log_in():
    assert parse_redis_url("redis://") == Endpoint()
    assert parse_redis_url("redis://u:p%40ss@h:1/2?client_name=shop") == Endpoint(
        host="h", port=1, database=2, user="u", password="p@ss", client_name="shop"
    )
    assert parse_redis_url("redis://h?db=3&username=u&password=p") == Endpoint("h", database=3, user="u", password="p")
    assert parse_redis_url("unix://:p@/run/my%20redis?db=1") == Endpoint(
        "", path="/run/my redis", database=1, password="p"
    )


def test_how_tls_is_spoken():
    assert parse_redis_url("rediss://h").tls == Tls()
    options = "ssl_ca_path=/etc/ca&ssl_check_hostname=false&ssl_min_version=771&ssl_ciphers=HIGH"
    flags = "ssl_include_verify_flags=VERIFY_CRL_CHECK_LEAF&ssl_exclude_verify_flags=VERIFY_X509_STRICT"
    assert dict(parse_redis_url(f"rediss://h?{options}&{flags}").tls.options) == {
        "ssl_ca_path": "/etc/ca",
        "ssl_check_hostname": False,
        "ssl_min_version": 771,
        "ssl_ciphers": "HIGH",
        "ssl_include_verify_flags": (ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF,),
        "ssl_exclude_verify_flags": (ssl.VerifyFlags.VERIFY_X509_STRICT,),
    }


TUNING = (
    "socket_timeout=5&socket_connect_timeout=5&health_check_interval=30&max_connections=10&protocol=3"
    "&decode_responses=true&retry_on_timeout=true&socket_keepalive=true&encoding=utf-8"
)


def test_what_tunes_redis_py_has_no_effect_and_is_named():
    parsed = read_redis_url(f"redis://h?{TUNING}&ssl_ca_certs=/ca&db=1")
    assert parsed.endpoint == Endpoint("h", database=1)
    assert [*parsed.ignored] == [*(pair.partition("=")[0] for pair in TUNING.split("&")), "ssl_ca_certs"]
    assert not read_redis_url("rediss://h?ssl_ca_certs=/ca&db=1").ignored


def test_it_costs_one_warning(caplog):
    nodes = "sentinel: {service: s, nodes: ['redis://a?protocol=3', 'redis://b?timeout=1']}"
    config = parse(target(f"url: 'redis://h?socket_timeout=5&max_connections=9', {nodes}"), {}, str)
    wiring.target(config, "cache")
    (record,) = caplog.records
    assert (record.levelname, record.event) == ("WARNING", "url_parameters_ignored")
    assert record.fields["parameters"] == "socket_timeout, max_connections, protocol, timeout"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        (
            "rediss://h?ssl_validate_ocsp=true",
            '"ssl_validate_ocsp" is not supported: certificates are verified without OCSP; remove it',
        ),
        (
            "redis://h?sokcet_timeout=5",
            '"sokcet_timeout" is no parameter of a Redis URL; did you mean "socket_timeout"',
        ),
        ("redis://h/one", "the database is no number"),
        ("redis://h/0/1", "the database is no number"),
        ("redis://h?db=-1", "the database is below 0"),
        ("redis://h?db=one", "Invalid value for 'db'"),
        ("rediss://h?ssl_cert_reqs=maybe", "ssl_cert_reqs is one of required, optional, none"),
        ("rediss://h?ssl_exclude_verify_flags=NO_SUCH", "Invalid value for 'ssl_exclude_verify_flags'"),
    ],
)
def test_a_mistake_is_said(url, what):
    with pytest.raises(ValueError, match=what):
        parse_redis_url(url)


def test_a_sentinel_may_have_tls_of_its_own():
    assert parse_sentinel_node("h:1") == "h:1"
    assert parse_sentinel_node("redis://h").tls is None
    assert parse_sentinel_node("rediss://h:1?ssl_cert_reqs=none").tls == Tls((("ssl_cert_reqs", "none"),))


@pytest.mark.parametrize("node", ["", "h:1/2", "http://h", "redis://u:s3cret@h", "redis://h:s3cret", "redis://h/1"])
def test_what_is_no_sentinel(node):
    with pytest.raises(ConfigError) as caught:
        parse(target(f"sentinel: {{service: s, nodes: ['{node}']}}"), {}, str)
    assert "targets.cache.sentinel.nodes" in str(caught.value)
    assert "s3cret" not in str(caught.value)


FILE, COMMAND, PROVIDER = "password_file: /p", "password_command: print-it now", "credential_provider: 'a.b:make'"


def test_a_command_is_split_as_a_shell_would():
    config = parse(target("password_command: vault read -field='a b' redis"), {}, str)
    assert config.targets["cache"].password_command == ["vault", "read", "-field=a b", "redis"]
    config = parse(target("password_command: [vault, read]"), {}, str)
    assert config.targets["cache"].password_command == ["vault", "read"]


@pytest.mark.parametrize(
    ("entries", "path", "what"),
    [
        (f"{FILE}, url: 'redis://:s3cret@h'", "password_file", "there is a password already"),
        (f"{FILE}, {COMMAND}", "password_command", "password_file gives a password already"),
        (f"{COMMAND}, {PROVIDER}", "credential_provider", "password_command gives a password already"),
        (f"{PROVIDER}, url: 'redis://u@h'", "credential_provider", "there is a user already"),
        (
            f"sentinel: {{service: s, nodes: [h], password: s3cret, {FILE}}}",
            "sentinel.password_file",
            "password already",
        ),
        ('password_command: "it\'s"', "password_command", "close its quotes"),
        ("credential_provider: make", "credential_provider", "write package.module:factory"),
    ],
)
def test_there_is_one_password(entries, path, what):
    with pytest.raises(ConfigError) as caught:
        parse(target(entries), {}, str)
    assert f"targets.cache.{path}: " in str(caught.value)
    assert what in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_no_secret_is_shown():
    assert mask("rediss://h?ssl_password=s3cret&db=1") == "rediss://h?ssl_password=***&db=1"
    urls = "url: 'rediss://u:s3cret@h?ssl_password=s3cret', sentinel: {service: s, password: s3cret, nodes: [NODE]}"
    config = parse(target(urls.replace("NODE", "'rediss://h?ssl_password=s3cret'")), {}, str)
    assert "s3cret" not in show(config)
    assert "s3cret" not in repr(config)
    assert "s3cret" not in repr(parse_redis_url("rediss://u:s3cret@h?ssl_password=s3cret").tls)
    assert "s3cret" not in repr(parse_redis_url("rediss://u:s3cret@h?ssl_password=s3cret"))
