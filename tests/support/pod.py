"""A pod of the example chart: an application that reads through its cache, and the sidecar as the chart renders it.

The containers are podman's, on the host's network; user, root, memory and configuration are the chart's.
"""

from __future__ import annotations

import urllib.request

import psycopg
import redis

from invalidator.embedded import open_postgres, open_redis
from invalidator.embedded.workspace import free_port
from tests.support.charts import environment, one, render
from tests.support.podman import IMAGE


class World:
    """Servers, an application that reads through its cache, and the sidecar as a chart renders it; open in a `with`."""

    def __init__(self, workspace, podman, charts):
        self.podman = podman
        self.dsn = open_postgres(workspace).create_database()
        self.cache = redis.Redis.from_url((store := open_redis(workspace)).url, decode_responses=True)
        self.db = psycopg.connect(self.dsn, autocommit=True)
        self.db.execute("create table products (id int primary key, category_id int, price int)")
        self.db.execute("insert into products values (1, 1, 100)")
        ports = {"api": free_port(), "probes": free_port()}
        self.probes = f"http://127.0.0.1:{ports['probes']}"
        objects = render({"invalidator": {"ports": ports, "image": {"repository": IMAGE.rpartition(":")[0]}}}, charts)
        secrets = {"shop": {"DATABASE_URL": self.dsn, "OWNER_DATABASE_URL": self.dsn, "REDIS_URL": store.url}}
        (self.sidecar,) = one(objects, "Deployment")["spec"]["template"]["spec"]["initContainers"]
        (self.job,) = one(objects, "Job", "release-invalidator-install-triggers")["spec"]["template"]["spec"][
            "containers"
        ]
        config = workspace.path / "config"
        config.mkdir()
        (config / "config.yaml").write_text(one(objects, "ConfigMap", "release-invalidator")["data"]["config.yaml"])
        self.options = as_kubernetes_would(self.sidecar, environment(self.sidecar, secrets), config)
        self.job_options = as_kubernetes_would(self.job, environment(self.job, secrets), config)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.db.close()
        self.cache.close()

    def price(self):
        """What the application would show: from its cache, else from the database."""
        if (cached := self.cache.get("product:1")) is None:
            cached = self.db.execute("select price from products where id = 1").fetchone()[0]
            self.cache.set("product:1", cached)
        return int(cached)

    def install_triggers(self):
        """What the chart's Job does."""
        self.podman.run(*self.job_options, image=self.job["image"], arguments=self.job["args"])

    def running(self):
        """The sidecar from now on."""
        return self.podman.running(*self.options, image=self.sidecar["image"], arguments=self.sidecar["args"])

    def has_started(self):
        """What its startup probe finds."""
        return self.asked(self.sidecar["startupProbe"]["httpGet"]["path"]) == 200

    def is_alive(self):
        """What its liveness probe finds."""
        return self.asked(self.sidecar["livenessProbe"]["httpGet"]["path"]) == 200

    def asked(self, path):
        try:
            with urllib.request.urlopen(self.probes + path, timeout=3) as answer:
                return answer.status
        except OSError as error:
            return getattr(error, "code", 0)


def as_kubernetes_would(container, environment, config):
    """podman's options for a container of a rendered pod: its user, root, memory, and its configuration's folder."""
    security, limits = container["securityContext"], container["resources"]["limits"]
    memory = limits["memory"].removesuffix("Mi") + "m"
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    options = ["--read-only", "--read-only-tmpfs=false", "--security-opt", "no-new-privileges"]
    options += ["--user", f"{security['runAsUser']}:{security['runAsGroup']}"]
    options += [f"--cap-drop={capability}" for capability in security["capabilities"]["drop"]]
    options += ["--memory", memory, "--memory-swap", memory]
    options += [f"--env={name}={value}" for name, value in environment.items()]
    return [*options, "--volume", f"{config}:/etc/invalidator:ro"]
