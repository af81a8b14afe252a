"""System packages are asked for by name; sudo is used after a yes only."""

import os
import pty
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "system_packages.sh"


@pytest.fixture
def machine(tmp_path):
    """A folder of commands that only write down their arguments: apt-get and sudo; ``id -u`` says who one is."""

    def make(user, *commands, fails=False):
        (tmp_path / "bin").mkdir()
        (tmp_path / "log").write_text("")
        for command in commands:
            end = 'exec "$@"' if command == "sudo" else f"exit {int(fails)}"
            put(tmp_path / "bin" / command, f'echo "{command} $*" >> {tmp_path}/log\n{end}')
        put(tmp_path / "bin" / "id", f"echo {user}")
        return {
            **os.environ,
            "PATH": str(tmp_path / "bin"),
        }, lambda: (tmp_path / "log").read_text().splitlines()

    def put(path, text):
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    return make


def call(env, *packages, stdin=subprocess.DEVNULL):
    command = ["/bin/sh", str(SCRIPT), "a compiler", *(packages or ("g++", "make"))]
    return subprocess.run(command, env=env, stdin=stdin, capture_output=True, text=True)


def answering(env, answer, *packages):
    """The script in a terminal whose user types ``answer``."""
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode() + b"\n")
    try:
        return call(env, *packages, stdin=theirs)
    finally:
        os.close(ours)
        os.close(theirs)


INSTALLED = "apt-get install -y --no-install-recommends g++ make -qq"


def test_root_installs_and_says_what(machine):
    env, log = machine(0, "apt-get", "sudo")
    done = call(env)
    assert done.returncode == 0
    assert "missing: g++ make\n  a compiler\n  command: apt-get install" in done.stdout
    assert log() == ["apt-get update -qq", INSTALLED]


def test_without_a_terminal_sudo_is_not_used(machine):
    env, log = machine(1000, "apt-get", "sudo")
    done = call(env)
    assert done.returncode == 1
    assert "sudo apt-get install g++ make" in done.stdout
    assert log() == []


@pytest.mark.parametrize("answer", ["y", "Y", "yes"])
def test_sudo_after_a_yes(machine, answer):
    env, log = machine(1000, "apt-get", "sudo")
    done = answering(env, answer)
    assert done.returncode == 0
    asked = "command: sudo apt-get install -y --no-install-recommends g++ make\n  run this now? [y/N]"
    assert asked in done.stdout
    assert log() == ["sudo apt-get update -qq", "apt-get update -qq", f"sudo {INSTALLED}", INSTALLED]


@pytest.mark.parametrize("answer", ["", "n", "no", "what?"])
def test_no_sudo_without_a_yes(machine, answer):
    env, log = machine(1000, "apt-get", "sudo")
    assert answering(env, answer).returncode == 1
    assert log() == []


def test_a_machine_without_sudo_or_without_apt_is_told_what_to_do(machine):
    env, _ = machine(1000, "apt-get")
    done = answering(env, "y")
    assert done.returncode == 1
    assert "as root: apt-get install g++ make" in done.stdout


def test_no_apt(machine):
    env, _ = machine(0)
    done = call(env)
    assert done.returncode == 1
    assert "no apt-get" in done.stdout


def test_a_failed_installation_is_a_failure(machine):
    env, _ = machine(0, "apt-get", fails=True)
    done = call(env)
    assert done.returncode == 1
    assert "that failed" in done.stdout


def test_every_line_fits_80_columns(machine):
    env, _ = machine(1000, "apt-get", "sudo")
    for done in (call(env, "python3.11-venv"), answering(env, "n", "python3.11-venv")):
        assert max(map(len, done.stdout.splitlines())) <= 80
