"""More than one Redis: replicas, Sentinels, a Cluster, and one with TLS."""

from __future__ import annotations

import os
import signal
import socket

import redis

from invalidator.embedded.redis import RedisServer, find_redis
from invalidator.embedded.workspace import UNPRIVILEGED, free_port
from tests.support import until
from tests.support.certificates import Authority
from tests.support.tls_terminator import TlsTerminator


def owned(path):
    """The file, readable for the user that servers run as."""
    if os.getuid() == 0:
        os.chown(path, UNPRIVILEGED, UNPRIVILEGED)
    return path


class Keeping(RedisServer):
    """A server that saves what it holds when it is told to, and comes back with it."""

    def __init__(self, workspace, program=None, settings=None):
        super().__init__(workspace, program, {"dbfilename": "dump.rdb", **(settings or {})})
        self._clients = {}

    def client(self, db=0):
        """The application's; always the same one."""
        if db not in self._clients:
            self._clients[db] = redis.Redis(port=self.port, db=db, decode_responses=True)
        return self._clients[db]

    def stop(self, how=signal.SIGKILL):
        """At once: asked politely, a primary waits for copies that lag."""
        for client in self._clients.values():
            client.close()
        super().stop(how)


class Sentinels:
    """Three of them, which watch a primary that may be reached through other ports than it has."""

    def __init__(self, workspace, port, quorum=2, count=3):
        self.all = [SentinelServer(workspace, port, quorum) for _ in range(count)]
        for one in self.all:
            one.start()
        until(lambda: all(self.knows(one) == count - 1 for one in self.all), 20)

    def knows(self, one):
        return int(one.client().sentinel_master("cache")["num-other-sentinels"])

    def primary(self):
        return self.all[0].client().sentinel_get_master_addr_by_name("cache")[1]

    def fail_over(self):
        self.all[0].client().execute_command("SENTINEL", "FAILOVER", "cache")

    @property
    def nodes(self):
        return [f"127.0.0.1:{one.port}" for one in self.all]


class SentinelServer(Keeping):
    def __init__(self, workspace, port, quorum, epoch=0):
        super().__init__(workspace, find_redis(os.environ.get("INVALIDATOR_TEST_REDIS") or None))
        self._file = self.folder / "sentinel.conf"
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\nprotected-mode no\n"
            f"sentinel monitor cache 127.0.0.1 {port} {quorum}\n"
            f"sentinel config-epoch cache {epoch}\n"
            "sentinel down-after-milliseconds cache 500\nsentinel failover-timeout cache 3000\n"
        )
        owned(self._file)

    def command(self):
        return [self.program, self._file, "--sentinel"]


class ClusterServers:
    """Three primaries with all slots between them, a copy of each, and maybe a node without slots."""

    def __init__(self, workspace, *, copies=True, spare=False):
        program = os.environ.get("INVALIDATOR_TEST_REDIS") or None
        count = 3 + 3 * copies + spare
        self.nodes = [ClusterNode(workspace, find_redis(program)) for _ in range(count)]
        for node in self.nodes:
            node.start()
        first = self.nodes[0]
        for number, node in enumerate(self.nodes[:3]):
            begin, end = 16384 * number // 3, 16384 * (number + 1) // 3 - 1
            node.call("CLUSTER", "ADDSLOTSRANGE" if node.has_ranges() else "ADDSLOTS", *node.slots(begin, end))
            node.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            node.call("CLUSTER", "MEET", "127.0.0.1", first.port)
        until(lambda: all(len(node.call("CLUSTER", "NODES").splitlines()) == count for node in self.nodes), 20)
        if copies:
            for node, primary in zip(self.nodes[3:6], self.nodes[:3], strict=True):
                until(lambda node=node, primary=primary: node.replicates(primary), 20)
        until(lambda: all("cluster_state:ok" in node.call("CLUSTER", "INFO") for node in self.nodes), 20)
        if copies:
            until(lambda: all(n.client.info("replication")["master_link_status"] == "up" for n in self.nodes[3:6]), 20)

    @property
    def url(self):
        return self.nodes[0].url

    def client(self):
        return redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port, decode_responses=True)


def is_free(port):
    if port > 65535:
        return False
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class ClusterNode(RedisServer):
    def __init__(self, workspace, program):
        super().__init__(
            workspace,
            program,
            {"cluster-enabled": "yes", "cluster-node-timeout": "1000", "cluster-replica-validity-factor": "0"},
        )
        while not is_free(self.port + 10_000):  # the bus
            self.port = free_port()
        self.client = redis.Redis(port=self.port, decode_responses=True)

    def call(self, *command):
        return self.client.execute_command(*command)

    def has_ranges(self):
        return int(self.client.info("server")["redis_version"].split(".")[0]) >= 7

    def slots(self, begin, end):
        return (begin, end) if self.has_ranges() else range(begin, end + 1)

    def stop(self, how=signal.SIGKILL):
        super().stop(how)

    @property
    def id(self):
        return self.call("CLUSTER", "MYID")

    def replicates(self, primary):
        try:
            self.call("CLUSTER", "REPLICATE", primary.id)
        except redis.RedisError:
            return False
        return True


def open_slot(slot, source, target):
    """Begin to move a slot from one node to another, as `redis-cli --cluster reshard` does."""
    target.call("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
    source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)


def move_keys(slot, source, target):
    while names := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
        source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *names)


def close_slot(slot, source, target):
    target.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)
    source.call("CLUSTER", "SETSLOT", slot, "NODE", target.id)


class TlsServer(Keeping):
    """One that speaks TLS as well, on `tls_port`, with a certificate of an authority of its own."""

    def __init__(self, workspace, program=None, *hosts, strict=True, with_clients=False):
        super().__init__(workspace, program)
        self._made = Authority(self.folder / "tls", strict=strict)
        self.authority = self._made.certificate
        self._trusts = self._made.certificate if with_clients else None
        self.files = self._made.issue("server", *(hosts or ("localhost",)))
        self.client_files = self._made.issue("client")
        self._terminator = None

    def start(self):
        super().start()
        self._terminator = TlsTerminator(self.port, *self.files, clients=self._trusts)
        self._terminator.__enter__()

    @property
    def tls_port(self):
        return self._terminator.port

    def stop(self, how=signal.SIGKILL):
        if self._terminator is not None:
            self._terminator.__exit__()
            self._terminator = None
        super().stop(how)
