"""The image built and run for real, by podman in its own storage, on a locally made base.

Without a registry, the base is a Debian of the same release with its own Python, under the name in the Dockerfile. It
behaves like the official base in everything that the Dockerfile does, though not in size.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

from invalidator import __version__
from tests.support import until

REPO = Path(__file__).parents[2]
IMAGE = f"localhost/invalidator:{__version__}"
NEEDED = ("podman", "runc", "debootstrap")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")

# Inside a container that may not raise its own limits, podman's defaults would be refused.
_LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")


def why_not():
    """Why no image can be built here; empty where it can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return "" if os.getuid() == 0 else "it takes root"


def base_name():
    """What the Dockerfile builds upon."""
    (name,) = re.findall(r"^ARG BASE=(\S+)$", (REPO / "Dockerfile").read_text(), re.MULTILINE)
    return name


class Podman:
    """Open while the image is there."""

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="invalidator-podman-"))
        self._command = ["podman", "--root", f"{self.folder}/storage", "--runroot", f"{self.folder}/run",
            "--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]  # fmt: skip
        return self

    def __exit__(self, *_):
        self("rm", "--all", "--force", "--time", "0")
        subprocess.run(["umount", "--quiet", f"{self.folder}/storage/overlay"], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, *arguments, check=True, timeout=600):
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, timeout=timeout)
        assert not check or done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done

    def build(self):
        """The image, from the Dockerfile as it is."""
        with self.debian("trixie", ["python3", "python3-venv", "ca-certificates"], f"localhost/{base_name()}"):
            pass
        certificates = ["--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"] if CERTIFICATES.exists() else []
        self("build", "--isolation", "chroot", "--format", "docker", *certificates,
            "--build-arg", f"VERSION={__version__}", "--tag", IMAGE, REPO)  # fmt: skip

    @contextmanager
    def debian(self, suite, packages, name):
        """An image of Debian under this name; while this is open, its folder, for what else it shall have."""
        root, archive = self.folder / "debian", self.folder / "debian.tar"
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite, root, _mirror()]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
        yield root
        left_out = ["./var/cache/apt/*", "./var/lib/apt/lists/*", "./dev/*", "./proc/*", "./sys/*"]
        subprocess.run(
            ["tar", "-C", root, *(f"--exclude={path}" for path in left_out), "-cf", archive, "."], check=True
        )
        self("import", "--quiet", archive, name)
        archive.unlink()
        shutil.rmtree(root)

    def inspect(self, image=IMAGE):
        return json.loads(self("image", "inspect", image).stdout)[0]

    @contextmanager
    def files(self, image=IMAGE):
        """An image's files as the tar that they come in."""
        container = self("create", "--no-healthcheck", *_LIMITS, image, "true").stdout.strip()
        path = self.folder / f"{container}.tar"
        self("export", "--output", path, container)
        self("rm", container)
        with tarfile.open(path) as archive:
            yield archive
        path.unlink()

    @contextmanager
    def running(self, *options, image=IMAGE, arguments=()):
        """A container from now on, on the host's network; its id."""
        command = ["run", "--detach", "--network", "host", *_LIMITS, *options, image, *arguments]
        container = self(*command).stdout.strip()
        try:
            yield container
        finally:
            self("rm", "--force", "--time", "0", container)

    def run(self, *options, image=IMAGE, arguments=()):
        command = ["run", "--rm", "--no-healthcheck", "--network", "host", *_LIMITS, *options, image, *arguments]
        return self(*command)

    def state(self, container):
        return json.loads(self("inspect", container).stdout)[0]["State"]

    def stop(self, container):
        """End it with SIGTERM; its exit code."""
        self("kill", "--signal", "TERM", container)
        until(lambda: not self.state(container)["Running"], 30)
        return self.state(container)["ExitCode"]


def _mirror():
    """Where this machine's own packages come from."""
    command = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
    targets = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return next(site for site in targets if "security" not in site)
