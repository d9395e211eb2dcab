"""invalidator installed into an environment of its own, as users install it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from tests.support import is_settled, until

REPO = Path(__file__).parents[2]
CONFIG = """
version: 1
name: shipped
instance: "{instance}"
postgres: {{dsn: "{dsn}", canary: 200ms, canary_timeout: 1s}}
targets: {{cache: {{kind: redis, url: "{redis}", repeat_after: 100ms}}}}
listen: {{api: "unix:{folder}/{instance}.api", probes: "unix:{folder}/{instance}.probes"}}
rules:
  - {{table: public.products, evict: ["product:{{id}}", "list:*:{{name}}"]}}
"""


def pythons():
    """Every Python that we support and that is at hand, one of each version, the newest last."""
    places = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
    places += Path.home().glob(".pyenv/versions/*/bin")
    found = {}
    for program in [one for place in places if place.is_dir() for one in sorted(place.glob("python3.[0-9]*"))]:
        if program.name.removeprefix("python3.").isdecimal():
            asked = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
            done = subprocess.run([program, "-c", asked], capture_output=True, text=True)
            version = tuple(map(int, done.stdout.split()))
            if done.returncode == 0 and version >= (3, 11):
                found.setdefault(version, program)
    return [found[version] for version in sorted(found)]


def built(tree, folder):
    """The wheel of a source tree."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def download(folder, python, machine):
    """All that the image installs, as wheels for this version of Python and this kind of machine."""
    platforms = [f"--platform={tag}_{machine}" for tag in ("manylinux_2_28", "manylinux2014")]
    wheels = ["--only-binary=:all:", "--no-deps", "--require-hashes", f"--python-version={python}", *platforms]
    # pip judges the conditions by the Python that it runs on: what only an older 3.11 needs is downloaded anyway.
    text = (REPO / "requirements/image.txt").read_text()
    requirements = folder / "requirements.txt"
    requirements.write_text(re.sub(r" ; python_full_version < '[\d.]+'", "", text))
    command = [sys.executable, "-m", "pip", "download", "--quiet", *wheels, "-r", requirements]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


class Installation:
    """An environment in a folder; what stands in it can be run."""

    def __init__(self, folder, python, *what):
        self.folder = folder
        subprocess.run([python, "-m", "venv", folder], check=True, capture_output=True)
        command = [folder / "bin/python", "-m", "pip", "install", "--quiet", *what]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    def __call__(self, *arguments):
        """A command, with nothing of this repository in its way."""
        command = [self.folder / "bin/invalidator", *arguments]
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/", env=clean)

    @contextmanager
    def running(self, file):
        """A sidecar, once it keeps its promise and its start is settled."""
        command = [self.folder / "bin/invalidator", "run", "--log-format", "json", "-c", file]
        with (
            (file.parent / f"{file.stem}.log").open("w+") as log,
            subprocess.Popen(command, stderr=log, cwd="/") as process,
        ):
            try:
                until(lambda: self.is_settled(file) or process.poll() is not None, 30)
                assert process.poll() is None, (file.parent / f"{file.stem}.log").read_text()
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def is_settled(self, file):
        return is_settled(self("status", "-o", "json", "-c", file))


def write(folder, instance, dsn, redis_url):
    file = folder / f"{instance}.yaml"
    file.write_text(CONFIG.format(instance=instance, dsn=dsn, redis=redis_url, folder=folder))
    return file


def events(file):
    """What the sidecar of this configuration has logged."""
    return [json.loads(line) for line in (file.parent / f"{file.stem}.log").read_text().splitlines()]


def pinned_for_image():
    """The packages that the image installs, with their versions: not those for Windows or for older Pythons."""
    requirements = (REPO / "requirements/image.txt").read_text()
    pinned = re.findall(r"^([a-z0-9-]+)==([^ ]+)(.*)$", requirements, re.MULTILINE)
    return {name: version for name, version, where in pinned if not re.search("win32|python_full_version < ", where)}
