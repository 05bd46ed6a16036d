"""`make setup` with a Python that lacks ensurepip, as Debian's does without python3-venv."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Stands in for Debian's Python, and then for that of .venv: it only tells what it was asked, and installs nothing.
PYTHON = """#!/bin/sh
echo "$*" >> "{log}"
case "$*" in
  *"import ensurepip"*) exit 1;;
  *"import pip"*) exit {no_pip};;
  *--without-pip*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/dvc;;
  "-m venv"*) echo "ensurepip is not available"; exit 1;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    """`make setup` in a folder with nothing but the Makefile and what it reads: the process, and what Python saw."""

    def run(no_pip: int) -> tuple[subprocess.CompletedProcess, list[str]]:
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, tmp_path)
        python, log = tmp_path / "python", tmp_path / "log"
        python.write_text(PYTHON.format(log=log, no_pip=no_pip))
        python.chmod(0o755)
        command = ["make", "setup", f"PYTHON={python}", "TORCH_INDEX_URL="]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done, log.read_text().splitlines()

    return run


def test_a_pip_at_hand_stands_in_for_ensurepip(setup):
    done, asked = setup(no_pip=0)
    assert done.returncode == 0, done.stderr
    made = asked.index("-m venv --clear --without-pip .venv")
    assert asked[made + 1] == "-m pip --quiet --python .venv/bin/python install --ignore-installed pip"
    assert any("-e .[browse,dev,s3]" in line for line in asked[made + 2 :])


def test_without_any_pip_one_line_says_what_to_install(setup):
    done, asked = setup(no_pip=1)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith(("make", "setting up"))]
    assert len(said) == 1
    assert said[0].endswith("apt install python3-venv")
    assert not any("install" in line for line in asked)
