"""The commands of docs/your_robot.md run from top to bottom, as they stand there.

Two things differ: the installation is left out, and training has UPDATES updates in place of the page's 600.
"""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from diffsim.cli import main

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "your_robot.md").read_text()
COMMANDS = re.findall(r"^```bash\n(.*?)\n```$", PAGE, re.M | re.S)
UPDATES = 2


def test_there_are_ten_commands_and_the_first_installs():
    assert len(COMMANDS) == 10
    assert COMMANDS[0].startswith("pip install")
    assert not any("\n" in command for command in COMMANDS)


@pytest.mark.slow
def test_the_commands_run(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples" / "balancer", tmp_path / "examples" / "balancer")
    monkeypatch.chdir(tmp_path)
    outputs = {}
    for written in COMMANDS[1:]:
        command, _, remark = written.partition("  # ")
        fails = remark == "fails"
        shorter = re.sub(r"--updates \d+", f"--updates {UPDATES}", command)
        if command.startswith("diffsim "):
            result = CliRunner().invoke(main, shlex.split(shorter)[1:])
            outputs[command], failed = result.output, result.exit_code != 0
        else:
            done = subprocess.run(["bash", "-c", shorter], capture_output=True, text=True, check=False)
            outputs[command], failed = done.stdout + done.stderr, done.returncode != 0
        assert failed == fails, f"{command}:\n{outputs[command]}"
    # What the page shows of their output is there, but for figures, which depend on versions.
    shown = [
        line.strip() for block in re.findall(r"```text\n(.*?)```", PAGE, re.S) for line in block.splitlines()
    ]
    assert len(shown) > 5
    everything = without_figures("\n".join(outputs.values()))
    for line in shown:
        assert without_figures(line) in everything, line
    here, there = (outputs[f"diffsim evaluate runs/balancer{how}"] for how in ("", " --mujoco"))
    returns = [float(re.search(r"mean return (-?[\d.]+)", text)[1]) for text in (here, there)]
    assert returns[0] == pytest.approx(returns[1], rel=0.02)
    assert "episodes of MuJoCo:balancer" in there
    for file in ("balancer.html", "runs/balancer/render.gif", "runs/balancer/render.html"):
        assert (tmp_path / file).stat().st_size > 10_000


def without_figures(text):
    return re.sub(r"[\d.]+(e[-+]\d+)?|\s+", "#", text)
