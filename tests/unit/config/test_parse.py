"""Every mistake is reported at once, with its position and a fix."""

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invalidator.config.compile import compile_rules
from invalidator.config.defaults import follows
from invalidator.config.parse import parse
from invalidator.core.rules.change import Change, Table
from invalidator.errors import ConfigError

HEAD = """\
version: 1
name: shop
targets:
  cache: {kind: redis}
"""
NOT_A_DURATION = (
    'c.yaml:7:19: targets.cache.repeat_after: not a duration; write a number and its unit, like "500ms", "2s" or "1m"'
)
GOOD = (
    HEAD
    + """\
rules:
  - table: public.products
    evict: ["product:{id}"]
"""
)


def read(text, environ=None, files=None):
    def read_file(path):
        if files is None or path not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[path]

    return parse(textwrap.dedent(text), environ or {}, read_file, file="c.yaml")


def mistakes(text, environ=None, files=None):
    with pytest.raises(ConfigError) as caught:
        read(text, environ, files)
    return str(caught.value).splitlines()


def rule_mistakes(rule, head=HEAD):
    return mistakes(head + "rules:\n" + textwrap.indent(textwrap.dedent(rule), "  "))


def test_a_small_configuration_has_defaults():
    config = read(GOOD)
    assert config.targets["cache"].repeat_after == 1.0
    assert config.rules[0].ops == ["insert", "update", "delete", "truncate"]


def test_all_mistakes_come_at_once_in_the_order_of_the_file():
    assert mistakes("""\
        version: 2
        name: Shop!
        postgres: {dns: x}
        targets:
          cache:
            kind: reddis
          second:
            kind: redis
            repeat_after: 5x
        rules:
          - tabel: public.products
            evict: ["product:{id|lowr}"]
            to: cahce
          - table: public.prices
            evict: ["price:{id}"]
            to: cahce
        """) == [
        'c.yaml:1:10: version: "2" is not known here; one of: 1',
        'c.yaml:2:7: name: "Shop!" is no name for an installation; use up to 31 of a-z, 0-9 and _, a letter first',
        'c.yaml:3:12: postgres.dns: unknown key; did you mean "dsn"?',
        'c.yaml:6:11: targets.cache.kind: "reddis" is not known here; did you mean "redis"?',
        NOT_A_DURATION.replace("7:19", "9:19").replace("cache", "second"),
        'c.yaml:11:5: rules[0].tabel: unknown key; did you mean "table"?',
        'c.yaml:12:22: rules[0].evict[0]: unknown filter "lowr"; did you mean "lower"?',
        'c.yaml:13:9: rules[0].to[0]: no target is named "cahce"; did you mean "cache"?',
        'c.yaml:16:9: rules[1].to[0]: no target is named "cahce"; did you mean "cache"?',
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "c.yaml: the file is empty; "),
        ("# only this\n", "c.yaml: the file is empty; "),
        ("- a\n", "c.yaml:1:1: a configuration is a mapping of keys; begin with: version: 1"),
        ("name:\n\tx: 1\n", "c.yaml:2:1: a tab where YAML wants spaces; indent with spaces"),
        ("a: [1, 2\n", "c.yaml:2:1: not YAML: did not find expected ',' or ']'; close what was opened, with ] or }"),
        ("a: 'x\n", "c.yaml:2:1: not YAML: found unexpected end of stream"),
        ("a: \x00\n", "c.yaml: the file holds a character that YAML does not allow; save it as plain UTF-8 text"),
        ("a: *b\n", "c.yaml:1:4: not YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2:1: not YAML: but found another document"),
        ("{" * 2000, "c.yaml: the document nests deeper than 50 levels; write out what the aliases (*name) stand for"),
        ("{a: 1}: b\n" + GOOD, 'c.yaml:1:1: a key that is not text; quote it, if it begins with "{"'),
    ],
    ids=["empty", "comment", "list", "tab", "unclosed", "quote", "nul", "alias", "documents", "deep", "mapping key"],
)
def test_what_is_not_even_a_document(text, line):
    assert mistakes(text)[0].startswith(line)


def test_an_alias_bomb_is_refused_quickly():
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    assert mistakes(bomb) == [
        "c.yaml: the document's aliases expand without bound; write out what the aliases (*name) stand for"
    ]


def test_an_alias_within_itself_is_refused():
    assert mistakes("a: &a [*a]\n")[0].startswith("c.yaml: the document's aliases expand without bound")


def test_a_huge_file_is_refused():
    assert mistakes("#" * (1 << 20) + "\n\n")[0].startswith("c.yaml: the file is larger than 1 MiB")


def test_aliases_within_reason_work():
    config = read(
        HEAD
        + """\
rules:
  - table: public.a
    evict: &keys ["a:{id}"]
  - table: public.b
    evict: *keys
"""
    )
    assert config.rules[1].evict[0].key == "a:{id}"


def test_a_duplicate_key_names_both_places():
    assert mistakes(GOOD + "name: other\n") == ["c.yaml:8:1: name: this key is already on line 2; keep one of them"]


@pytest.mark.parametrize(
    ("evict", "line"),
    [
        ('["product:{id"]', 'c.yaml:7:22: rules[0].evict[0]: a "{" that is not closed; '),
        ('"product:}id"', 'c.yaml:7:21: rules[0].evict: a "}" without its "{"; '),
        ("[{tag: x, key: y}]", "c.yaml:7:13: rules[0].evict[0]: an eviction is one of key, tag, version, hash, url; "),
        ("[{}]", "c.yaml:7:13: rules[0].evict[0]: an eviction is one of key, tag, version, hash, url; "),
        ("[{hash: x}]", "c.yaml:7:13: rules[0].evict[0]: hash and field go together; "),
        ("[{tag: x, field: y}]", "c.yaml:7:13: rules[0].evict[0]: hash and field go together; "),
        ("[{tgа: x}]", "c.yaml:7:14: rules[0].evict[0].tgа: unknown key; "),
        ("[{url: /x}]", "c.yaml:7:13: rules[0].evict[0]: none of the rule's targets supports a url; "),
        ("[]", "c.yaml:7:12: rules[0].evict: there is nothing in it; add at least one"),
        ("[[x]]", "c.yaml:7:13: rules[0].evict[0]: a list where a mapping should be; "),
        (
            '["{slug}:page"]',
            'c.yaml:7:13: rules[0].evict[0]: "{slug}:page" does not begin with literal text, so a flush would sweep ',
        ),
        (
            '["*:page"]',
            'c.yaml:7:13: rules[0].evict[0]: "*:page" does not begin with literal text, so a flush would sweep "*:',
        ),
        (
            "[product: {id}]",
            "c.yaml:7:13: rules[0].evict[0].product: YAML reads this template as a mapping; quote it: ",
        ),
        ("[{slug}]", "c.yaml:7:14: rules[0].evict[0].slug: YAML reads this template as a mapping; quote it: "),
    ],
)
def test_mistakes_in_templates(evict, line):
    found = rule_mistakes(f"- table: public.products\n  evict: {evict}\n")
    assert len(found) == 1
    assert found[0].startswith(line), found[0]


def test_every_wrong_entry_of_a_rule_is_said():
    found = rule_mistakes("- table: public.products\n  evict: [{hash: x}, {tag: x, key: y}]\n")
    assert ["evict[0]" in found[0], "evict[1]" in found[1], len(found)] == [True, True, 2]


def test_an_unquoted_template_that_is_no_yaml_says_to_quote_it():
    (line,) = rule_mistakes("- table: public.products\n  evict:\n    - {slug}:page\n")
    assert line.startswith("c.yaml:8:")
    assert line.endswith('quote the template: - "{slug}:page"')


def test_an_unquoted_template_that_is_yaml_says_to_quote_it():
    (line,) = rule_mistakes("- table: public.products\n  evict:\n    - product: {id}\n")
    assert line.endswith('YAML reads this template as a mapping; quote it: "product: {id}"')


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("table: products", '"products" names no schema; write "public.products"'),
        ("table: a.b.c", '"a.b.c" is no table name; '),
        ("table: public." + "x" * 64, "is too long; PostgreSQL's names have at most 63 bytes"),
        ("table: [a]", "not a table name; write schema.table"),
        ("ops: [upsert]", '"upsert" is not known here; did you mean "insert"?'),
        ("ops: []", "there is nothing in it; add at least one"),
        ("changed: [a b]", '"a b" is no column name'),
        ("if: {a b: x}", '"a b" is no column name'),
        ("if: [a]", "a list where a mapping should be"),
        ("vars: {id: []}", "a variable without values makes no keys; list its values"),
        ("vars: {op: [x]}", '"op" is a built-in name of templates; give the variable another name'),
        ("vars: {lang: [en]}", "no template of this rule uses it; use {lang}, or remove it"),
        ("owns: '*x'", '"*x" would sweep every key; begin it with literal text'),
        ("to: [cache, cash]", 'no target is named "cash"; did you mean "cache"?'),
    ],
)
def test_mistakes_in_rules(rule, line):
    base = {"table": "public.products", "evict": '["product:{id}"]'}
    key, _, value = rule.partition(": ")
    (found,) = rule_mistakes("-\n" + "".join(f"  {k}: {v}\n" for k, v in (base | {key: value}).items()))
    assert line in found


@pytest.mark.parametrize("target", ["prefix: 'shop:'", "flush: database"])
def test_a_template_without_anchor_is_fine_where_a_flush_can_not_hurt(target):
    head = HEAD.replace("{kind: redis}", "{kind: redis, " + target + "}")
    read(head + "rules: [{table: public.p, evict: ['{slug}:page']}]\n")


def test_a_template_without_anchor_is_fine_where_the_rule_says_what_it_owns():
    config = read(HEAD + "rules: [{table: public.p, evict: ['{slug}'], owns: 'page-*'}]\n")
    assert [e.key for e in compile_rules(config).owned()["cache"]] == ["page-*"]


def test_conditions_are_compared_as_they_are_written():
    config = read(
        HEAD
        + """\
rules:
  - table: public.p
    if: {a: [1.50, yes, null, "null", ~, 0x10], b: on}
    evict: "p:{id}"
"""
    )
    assert config.rules[0].if_ == {"a": ["1.50", "yes", None, "null", None, "0x10"], "b": ["on"]}


def test_one_item_stands_for_a_list_of_one():
    config = read(HEAD + "rules: [{table: public.p, evict: 'p:{id}', ops: insert, changed: a, to: cache}]\n")
    assert (config.rules[0].ops, config.rules[0].changed, config.rules[0].to) == (["insert"], ["a"], ["cache"])


def test_variables_make_hash_and_field_together():
    config = read(
        HEAD
        + """\
rules:
  - table: public.p
    vars: {lang: [en, de]}
    evict: {hash: "p:{lang}", field: "{lang}:{id}"}
"""
    )
    row = {"id": "7"}
    made = compile_rules(config).evict([Change(Table("public", "p"), "insert", None, row)])["cache"]
    assert [(e.key, e.field) for e in made] == [("p:en", "en:7"), ("p:de", "de:7")]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:s3c@ret@host/db",
        "postgresql://u:s3c/ret@host/db",
        "postgresql://u:s3cret",
        "postgresql://host:s3cret/db",
    ],
)
def test_a_password_that_could_leak_in_an_error_is_refused(url):
    (line,) = mistakes(GOOD + f"postgres: {{dsn: '{url}'}}\n")
    assert "%2F" in line
    assert "s3c" not in line


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:s3c@ret@host",
        "redis://:s3c/ret@host",
        "redis://:s3c?ret@host",
        "redis://:s3c#ret@h",
        "redis://h:s3cret",
    ],
)
def test_a_redis_password_that_could_leak_in_an_error_is_refused(url):
    (line,) = mistakes(GOOD.replace("redis}", f"redis, url: '{url}'}}"))
    assert "%2F" in line
    assert "s3c" not in line


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "postgresql://",
        "postgresql:///shop",
        "postgresql://u:p%40@h1:5432,h2:5433/shop?target_session_attrs=read-write&application_name=a@b",
        "postgres://[::1]:5432/x",
        "postgresql://%2Fvar%2Frun/x",
        "postgresql://u:a?b@host/x",
        "host=db  port = 5432 password='a b' dbname=x",
    ],
)
def test_any_libpq_string_will_do(dsn):
    assert read(GOOD + f'postgres: {{dsn: "{dsn}"}}\n').postgres.dsn.get_secret_value() == dsn


@pytest.mark.parametrize(
    "url", ["redis://", "rediss://u:p@h:1/2?ssl_ca_certs=/ca", "unix:///run/redis.sock?db=1", "redis://[::1]:6379"]
)
def test_any_redis_url_will_do(url):
    config = read(GOOD.replace("redis}", f"redis, url: '{url}'}}"))
    assert config.targets["cache"].url.get_secret_value() == url


class TestInterpolation:
    def test_replaces_variables_defaults_files_and_dollars(self):
        text = GOOD.replace("{kind: redis}", "{kind: redis, prefix: '${A}-${B:-b}-${C:-}-${file:/secret}-$$-${D:-d}'}")
        config = read(text, {"A": "a", "D": ""}, {"/secret": "s\n"})
        assert config.targets["cache"].prefix == "a-b--s-$-d"

    def test_a_value_can_not_inject_yaml(self):
        text = GOOD.replace("{kind: redis}", "{kind: redis, prefix: '${P}'}")
        evil = "x'}\nrules: []\n# *a &b"
        assert read(text, {"P": evil}).targets["cache"].prefix == evil

    @pytest.mark.parametrize(
        ("reference", "line"),
        [
            ("${DATABASE_URI}", 'the variable "DATABASE_URI" is not set; did you mean "DATABASE_URL"?'),
            ("${NOPE}", 'the variable "NOPE" is not set; set it, or write ${NOPE:-default}'),
            ("cost$", 'a "$" on its own; write "$$" for a dollar sign'),
            ("${a b}", '"${a b}" is no reference; write ${NAME}, ${NAME:-default} or ${file:/path}'),
            ("${file:/nope}", 'can\'t read the file "/nope": No such file or directory; check that it is there'),
        ],
    )
    def test_says_what_is_wrong_with_a_reference(self, reference, line):
        (found,) = mistakes(GOOD + f"postgres:\n  dsn: {reference}\n", {"DATABASE_URL": "secret"})
        assert found.startswith(f"c.yaml:9:8: postgres.dsn: {line}")
        assert "secret" not in found

    def test_a_number_can_come_from_a_variable(self):
        assert read(GOOD + "triggers: {bulk_limit: '${N}'}\n", {"N": "5"}).triggers.bulk_limit == 5


@given(st.text(max_size=60))
def test_any_text_gives_mistakes_and_never_a_traceback(text):
    for whole in (text, GOOD + text, GOOD.replace("product:{id}", text)):
        try:
            parse(whole, {}, lambda _: "", file="c.yaml")
        except ConfigError as error:
            assert error.mistakes
            assert len(str(error).splitlines()) >= 1


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("channels: {c: {columns: {id: x}}}", "channels.c.table: this key is required; add it"),
        ("channels: {c: {table: a.b, columns: {}}}", "channels.c.columns: there is nothing in it; add at least one"),
        ("channels: {c: {table: a.b, columns: {id: '{x'}}}", 'channels.c.columns.id: "{x" has a "{" alone; '),
        ("channels: {c: {table: a.b, columns: {id: '{}'}}}", 'channels.c.columns.id: "{}" names no field; '),
        ("channels: {c: {table: a.b, op: '{a..b}', columns: {id: x}}}", 'channels.c.op: "{a..b}" names no field; '),
        ("channels: {'c_{t}': {table: a.b, columns: {id: x}}}", "the name has a hole, and no `each` to fill it; "),
        (
            "channels: {c: {table: a.b, each: select 1, columns: {id: x}}}",
            "the name has no hole for `each`; ",
        ),
        (
            "channels: {invalidator_x: {table: a.b, columns: {id: x}}}",
            "this is the channel of invalidator's own ",
        ),
        ("channels: {" + "c" * 64 + ": {table: a.b, columns: {id: x}}}", "this name is too long; "),
        (
            "channels: {'': {table: a.b, columns: {id: x}}}",
            "the name of the channel is empty; ",
        ),
        (
            "channels: {c: {table: a.b, each_interval: 1m, columns: {id: x}}}",
            "each_interval: there is no query to run; ",
        ),
        (
            "channels: {'c{t}': {table: a.b, each: select 1 as t, each_interval: 1ms, columns: {id: x}}}",
            "each_interval: input should be greater than or equal to 1",
        ),
        ("channels: {c: {table: 'a*.b', columns: {id: x}}}", 'channels.c.table: "a*.b" is not a single table; '),
        ("listen: {api: here}", "listen.api: not an address; write host:port or unix:/path"),
        ("listen: {probes: 'h:99999'}", "listen.probes: not an address; write host:port or unix:/path"),
        (
            "listen: {hosts: ['shop:9911']}",
            "listen.hosts[0]: not a host name; write it in lower case, without a port",
        ),
        ("listen: {api: '0.0.0.0:9911'}", "any client can evict; set listen.token, or listen on 127.0.0.1"),
        ("listen: {api: 'example.com:9911'}", "any client can evict; "),
        ("postgres: {canary: 0s}", "postgres.canary: input should be greater than 0"),
        ("postgres: {canary: 2}", 'postgres.canary: not a duration; write a number and its unit, like "500ms"'),
        ("triggers: {install: often}", 'triggers.install: "often" is not known here; '),
    ],
)
def test_mistakes_in_channels_and_listeners(more, line):
    (said,) = mistakes(f"{GOOD}{more}\n".replace("name: shop", "name: x"))
    assert line in said


@pytest.mark.parametrize("api", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/tmp/x", "127.8.8.8:1"])
def test_an_api_that_only_this_machine_reaches_needs_no_token(api):
    assert read(f"{GOOD}listen: {{api: '{api}'}}\n").listen.api == api


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ("lookup: {sql: 'select {a|lower}', none: skip}", "is no plain column; name a column"),
        ("lookup: {sql: 'select {a', none: skip}", 'lookup.sql: a "{" that is not closed; '),
        ("lookup: {sql: select 1}", "lookup.none: this key is required; add it"),
        ("lookup: {sql: select 1, none: maybe}", 'lookup.none: "maybe" is not known here; '),
        ("lookup: {sql: '', none: skip}", "lookup.sql: there is nothing in it; add at least one"),
        (
            "lookup: {sql: 'select id from p where c = {id}', none: skip}",
            'lookup.sql: it returns "id", which the change has, too: {id} could be either; give it another name: ',
        ),
        (
            "lookup: {sql: 'select p.id from p where c = {c}', none: skip}\n    if: {id: ['1']}",
            'lookup.sql: it returns "id", which the change has, too',
        ),
        ("lookup: {sql: select 1, none: skip, limit: 0}", "lookup.limit: input should be greater than or equal to 1"),
    ],
)
def test_mistakes_in_lookups(rule, line):
    (said,) = mistakes(GOOD + f"    {rule}\n")
    assert line in said


@pytest.mark.parametrize(
    ("after", "line"),
    [
        ("[d]", 'targets.cache.after[0]: no target is named "d"; '),
        ("[cache]", 'targets.cache.after[0]: "cache" would follow itself; '),
    ],
)
def test_mistakes_in_after(after, line):
    text = GOOD.replace("kind: redis", f"kind: redis, after: {after}")
    assert text != GOOD
    (said,) = mistakes(text)
    assert line in said


def test_a_table_that_somebody_elses_notifications_tell_of_gets_no_triggers_unless_the_rule_says_so():
    text = GOOD + "channels: {c: {table: public.products, columns: {id: '{id}'}}}\n"
    assert [rule.triggers for rule in compile_rules(read(text)).rules] == ["none"]


HOOK = """\
version: 1
name: shop
targets:
  cache: {kind: redis}
  it: {HOOK}
rules:
  - {table: public.products, evict: ["p:{id}", url: "URL"]}
"""


def hook_mistakes(hook, url="/products/{id}"):
    return mistakes(HOOK.replace("HOOK", hook).replace("URL", url))


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("kind: hook", "c.yaml:5:7: targets.it.url: this key is required; add it"),
        ("kind: hok", 'c.yaml:5:14: targets.it.kind: "hok" is not known here; did you mean "hook"?'),
        ("url: http://x", "c.yaml:5:7: targets.it.kind: this key is required; add it"),
        ("kind: hook, url: http://x, fromat: ban", 'targets.it.fromat: unknown key; did you mean "format"?'),
        ("kind: hook, url: http://x, format: bann", 'targets.it.format: "bann" is not known here; did you mean "ban"?'),
        ("kind: hook, url: 'ftp://u:s3cret@x'", "targets.it.url: not the URL of a hook; write http://host:port/path"),
        ("kind: hook, url: 'http://a@b:s3cret@x/'", "targets.it.url: not the URL of a hook; "),
        ("kind: hook, url: 'http://x:s3cret/'", "targets.it.url: not the URL of a hook; "),
        ("kind: hook, url: 'http://x/a b'", "targets.it.url: not the URL of a hook; "),
        ("kind: hook, url: http://x, secret: s3cret", "targets.it.secret: not a secret of Standard Webhooks; "),
        ("kind: hook, url: http://x, format: purge", "every gap needs a flush; name a fallback: ban or wildcard"),
        ("kind: hook, url: http://u:s3cret@x:6081, format: ban", "would evict those of x:6081; set it, like"),
        ("kind: hook, url: http://x, format: xkey, fallback: wildcard", '"wildcard" is not a fallback of format '),
        ("kind: hook, url: http://x, format: ban, fallback: ban", "remove it: the format needs none"),
        ("kind: hook, url: http://x, format: ban, secret: whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz",
         "targets.it.secret: only json batches are signed; remove it"),
        ("kind: hook, url: http://u@x, format: ban, token: t", "the url has a user already; "),
        ("kind: hook, url: http://x, format: ban, tls: {cert: a}", "cert and key go together; name both files"),
        ("kind: hook, url: http://x, format: fastly", 'target "it" needs the site of this page; '),
        ("kind: hook, url: http://x, format: fastly, site: https://y", "Fastly has no form for a pattern, which"),
        ("kind: hook, url: http://x, format: ban, site: https://y/z", "targets.it.site: not the address of a site; "),
        ("kind: hook, url: http://x, format: ban, rate: 0", "targets.it.rate: "),
        ("kind: hook, url: http://x, timeout: 0s", "targets.it.timeout: "),
        ("kind: stream, stale_after: 5s", "it may be 5 s old while all is well; write more than 5s"),
    ],
)  # fmt: skip
def test_mistakes_in_hooks_and_streams(hook, said):
    told = hook_mistakes(hook)
    assert any(said in line for line in told), told
    assert "s3cret" not in "".join(told)


def test_a_url_is_for_targets_that_purge_by_url():
    assert any(
        "none of the rule's targets supports a url; name a hook" in line for line in hook_mistakes("kind: stream")
    )
    for url, said in (
        ("products/{id}", "a path begins with /"),
        ("/a b", "it has characters that must be encoded in a URL"),
    ):
        assert any(said in line for line in hook_mistakes("kind: hook, url: http://x, format: ban", url))


def test_a_rule_must_have_something_to_tell_a_target_that_it_names():
    said = rule_mistakes(
        """\
        - table: public.products
          evict: ["p:{id}"]
          to: [varnish]
        """,
        HEAD + "  varnish: {kind: hook, url: http://x, format: ban}\n",
    )
    assert '"varnish" supports nothing of what this rule evicts; add a url to evict' in said[-1]


def test_each_target_is_told_what_it_can_be_told():
    hook = "kind: hook, url: http://x, format: ban, site: https://y"
    config = read(HOOK.replace("HOOK", hook).replace("URL", "/products/{id}"))
    rules = compile_rules(config)
    change = Change(Table("public", "products"), "insert", None, {"id": "7"})
    told = {name: [(one.kind, one.key) for one in made] for name, made in rules.evict([change]).items()}
    assert told == {"cache": [("key", "p:7")], "it": [("url", "/products/7")]}
    assert [(one.kind, one.key) for one in rules.owned()["it"]] == [("url", "/products/*")]


def test_local_targets_follow_every_redis_unless_they_say_otherwise():
    text = GOOD.replace(
        "rules:",
        """\
  second: {kind: redis}
  app: {kind: hook, url: "http://x"}
  other: {kind: stream, after: [second]}
  alone: {kind: stream, after: []}
rules:""",
    )
    assert follows(read(text.replace("second: {kind: redis}", "second: {kind: redis, url: 'redis://b'}")).targets) == {
        "cache": [], "second": [], "app": ["cache", "second"], "other": ["second"], "alone": []
    }  # fmt: skip
