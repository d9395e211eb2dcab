"""A value of each built-in type whose text is easy to get wrong: (type, value as an SQL literal)."""

from __future__ import annotations

TYPES = """
create domain odd_flag as boolean;
create domain odd_code as char(5);
create type odd_mood as enum ('so so', 'bad');
create type odd_pair as (a int, b text);
"""

VALUES = [
    ("boolean", "'t'"),
    ("boolean", "'f'"),
    ("odd_flag", "'f'"),
    ("bool[]", "'{t,f,null}'"),
    ('"char"', "'x'"),
    ("char(5)", "'ab'"),
    ("odd_code", "'ab'"),
    ("varchar(5)", "'ab '"),
    ("name", "'Ab'"),
    ("text", "'With \"quotes\", ''these'' and %s {}'"),
    ("text", "'é😀'"),
    ("text", "'  '"),
    ("smallint", "'-7'"),
    ("integer", "'007'"),
    ("bigint", "'9223372036854775807'"),
    ("oid", "'4294967295'"),
    ("numeric", "'1.500'"),
    ("numeric", "'NaN'"),
    ("numeric", "'-Infinity'"),
    ("numeric(30, 2)", "'12345678901234567890'"),
    ("real", "'0.1'"),
    ("double precision", "'0.30000000000000004'"),
    ("double precision", "'1e300'"),
    ("double precision", "'-Infinity'"),
    ("money", "'1234.5'"),
    ("date", "'infinity'"),
    ("date", "'0044-03-15 BC'"),
    ("date", "'12026-01-02'"),
    ("time", "'24:00:00'"),
    ("timetz", "'12:30:01.5+05:30'"),
    ("timestamp", "'-infinity'"),
    ("timestamp", "'2026-01-02 03:04:05.000001'"),
    ("timestamptz", "'infinity'"),
    ("timestamptz", "'2026-01-02 03:04:05+02'"),
    ("timestamptz", "'0001-01-01 00:00:00+00 BC'"),
    ("interval", "'1 mon -2 days 00:00:03'"),
    ("bytea", r"'\x00ff41'"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"),
    ("inet", "'10.0.0.1'"),
    ("inet", "'10.0.0.1/24'"),
    ("inet", "'::1'"),
    ("cidr", "'10.0.0.0/8'"),
    ("macaddr", "'08-00-2b-01-02-03'"),
    ("bit(3)", "'101'"),
    ("varbit", "'1'"),
    ("json", """'{"b": 1.0, "a":  null}'"""),
    ("jsonb", """'{"b": 1.0, "a":  null}'"""),
    ("int[]", "'[0:1]={1,2}'"),
    ("text[]", """'{"a b",NULL,"null"}'"""),
    ("timestamptz[]", "'{infinity}'"),
    ("odd_mood", "'so so'"),
    ("odd_pair", "'(1,\"a b\")'"),
    ("int4range", "'[1,5]'"),
    ("tstzrange", "'[2026-01-02 00:00:00+02,infinity)'"),
    ("int4multirange", "'{[1,3),[5,7)}'"),
    ("point", "'(1,2.5)'"),
    ("tsvector", "'b a:1'"),
    ("jsonpath", "'$.a[*]'"),
    ("pg_lsn", "'16/B374D848'"),
    ("regclass", "'pg_catalog.pg_class'"),
    ("tid", "'(1,2)'"),
    ("xid8", "'12'"),
]

SETTINGS = (
    "set timezone = 'UTC'; set datestyle = 'ISO, MDY'; set intervalstyle = 'postgres'; "
    "set extra_float_digits = 1; set bytea_output = 'hex'"
)
"""With which a text is what we take it for, whatever the database's own are."""
