from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


def test_hadolint_has_nothing_to_say_against_it(repo):
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", repo / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_its_context_is_what_it_copies(repo):
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (repo / "Dockerfile").read_text(), re.MULTILINE)
    wanted = {name for line in copied for name in line.split()}
    let_in = {line[1:] for line in (repo / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert let_in == wanted


def pins(file):
    return dict(re.findall(r"^([a-z0-9-]+)==([\d.]+)", file.read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", ["image", "build", "demo", "dev"])
def test_what_is_installed_is_pinned_by_hash(repo, name):
    text = (repo / f"requirements/{name}.txt").read_text()
    assert "://" not in text
    for entry in re.split(r"\n(?=[a-z])", text.strip()):
        assert re.match(r"[a-z0-9-]+==[\d.]+", entry), entry
        assert "--hash=sha256:" in entry, entry


def test_the_image_has_what_was_tested(repo):
    image, dev = pins(repo / "requirements/image.txt"), pins(repo / "requirements/dev.txt")
    assert image.items() <= dev.items()
