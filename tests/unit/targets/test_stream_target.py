"""The stream's pump, with readers of any speed."""

from __future__ import annotations

import json

from invalidator.core.rules.eviction import Evictions
from invalidator.targets.stream import StreamTarget
from invalidator.targets.stream.ring import Ring
from tests.support import eventually
from tests.unit.targets.test_stream_ring import parsed


class Slow:
    """A reader with a small buffer, which is emptied by hand."""

    def __init__(self):
        self.data, self.waits, self.ended = b"", 0, None

    def write(self, data):
        self.data += data
        self.waits += len(data)

    def behind(self):
        return self.waits

    def is_gone(self):
        return False

    def end(self, *, cut):
        self.ended = "cut" if cut else "let go"

    def told(self):
        return [(event["event"], json.loads(event["data"])) for event in parsed(self.data)]


async def test_no_reader_hears_how_far_we_are_before_it_was_told_all_that_this_stands_on():
    async with StreamTarget("local", ring=Ring("e")) as stream:
        reader = Slow()
        stream.join(reader, "")
        names = [f"{'key' * 100}:{number}" for number in range(2000)]
        await stream.evict(Evictions(dict.fromkeys(names)))
        await stream.heartbeat(123.0)

        def reads_on():
            reader.waits = 0
            return any(kind == "heartbeat" for kind, _ in reader.told())

        await eventually(reads_on)
        told = reader.told()
        first = next(place for place, (kind, _) in enumerate(told) if kind == "heartbeat")
        assert [key for kind, data in told[:first] for key in data.get("keys", [])] == names
        assert told[first][1]["as_of"] == 123.0
        stream.leave(reader)


async def test_a_reader_that_was_slow_and_reads_on_is_not_cut_off():
    async with StreamTarget("local", ring=Ring("e")) as stream:
        reader = Slow()
        stream.join(reader, "")
        seat = stream.seats[reader]
        await stream.evict(Evictions({f"{'key' * 3000}:{number}": None for number in range(20)}))
        await eventually(lambda: seat.blocked)

        def reads_on():
            reader.waits = 0
            return seat.at == stream.ring.newest

        await eventually(reads_on)
        await stream.evict(Evictions({"one more": None}))
        await eventually(reads_on)
        assert seat.blocked is None
    assert reader.ended == "let go"
