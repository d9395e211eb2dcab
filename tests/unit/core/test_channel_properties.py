"""A column that a channel's payload leaves out is evicted by wildcard: for any row, and any way to leave it out."""

import json

from hypothesis import given
from hypothesis import strategies as st

from invalidator.core.protocol.channel import Channel, parse_text
from tests.strategies import COLUMNS, TABLE, covers, evicted, known, rules

OPERATIONS = st.sampled_from(["INSERT", "UPDATE", "DELETE", "insert", "Delete", ""])
values = st.one_of(known, st.booleans(), st.integers(), st.floats(allow_nan=False))


def channel(nested, each):
    prefix = "row." if nested else ""
    columns = {name: parse_text("{tenant}" if each and name == "b" else f"{{{prefix}{name}}}") for name in COLUMNS}
    return Channel(parse_text("c"), TABLE, parse_text("{op}"), columns)


def payload(op, row, nested):
    return {"op": op, "row": row} if nested else {"op": op, **row}


@st.composite
def with_holes(draw, said, nested):
    """The same payload as a trigger sends it that does not know, or does not say, some of it."""
    fields = dict(said["row"]) if nested else dict(said)
    for name in list(fields):
        loss = draw(st.sampled_from(["kept", "kept", "null", "empty", "missing", "another shape"]))
        if loss == "missing":
            del fields[name]
        elif loss != "kept":
            fields[name] = {"null": None, "empty": "", "another shape": draw(st.sampled_from([[], {}, [1], {"a": 1}]))}[
                loss
            ]
    if nested:
        fields = {**said, "row": draw(st.sampled_from([fields, fields, None, "", []]))}
    text = json.dumps(fields)
    return draw(st.sampled_from([text, text, text, "", text[:-1], f"[{text}]", "null", '""']))


@given(st.data(), rules(), OPERATIONS, st.fixed_dictionaries(dict.fromkeys(COLUMNS, values)))
def test_what_a_payload_leaves_out_never_evicts_less(data, rule, op, row):
    nested, each = data.draw(st.booleans()), data.draw(st.booleans())
    tenant = {"tenant": "t"} if each else {}
    read = channel(nested, each)
    whole, _ = read.read(json.dumps(payload(op, row, nested)), tenant)
    said = data.draw(with_holes(payload(op, row, nested), nested))
    some, _ = read.read(said, data.draw(st.sampled_from([tenant, dict.fromkeys(tenant)])))
    assert covers(evicted(rule, *some), evicted(rule, *whole))
    assert all(None not in (image or {}).values() for change in (*some, *whole) for image in (change.old, change.new))
