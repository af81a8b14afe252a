"""README and the files beside it: their code runs, their figures are the measured ones, their links lead somewhere."""

import json
import re
import statistics
from pathlib import Path

import pytest

import diffsim

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_its_sections_are_in_the_usual_order():
    wanted = ["Install", "Quick start", "Results", "Cite", "Documentation"]
    assert re.findall(r"^## (.+)$", README, re.M) == wanted


def test_its_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    training, simulators = re.findall(r"```python\n(.*?)```", README, re.S)
    short = training.replace('out="runs/pendulum")', 'out="runs/pendulum", updates=2, quiet=True)', 1)
    short = short.replace("episodes=100", "episodes=3")
    assert short.count("updates=2") == 1
    names: dict = {}
    exec(short, names)
    assert "mean return" in capsys.readouterr().out
    assert names["env"].action_space.contains(names["policy"](names["observation"]))
    exec(simulators, names)
    assert names["envs"].num_envs == 1024


def test_the_comparison_with_ppo_is_the_measured_one():
    runs = json.loads((ROOT / "benchmarks" / "results" / "pendulum_vs_ppo.json").read_text())["runs"]
    for learner, label in (("diffsim", "diffsim"), ("ppo", "PPO, 4 environments")):
        (row,) = re.findall(rf"^\| {label} \| ([-\d., ]+) \| ([^|]+) \| ([^|]+) \|$", README, re.M)
        assert [float(value) for value in row[0].split(",")] == [r["curve"][-1][2] for r in runs[learner]]
        for threshold, cell in ((-190, row[1]), (-170, row[2])):
            reached = [
                next((s for _, s, value in r["curve"] if value >= threshold), None) for r in runs[learner]
            ]
            if None in reached:
                assert reached.count(None) == len(reached)
                assert "not reached" in cell
            else:
                right = f"{statistics.median(reached):.1f} ({min(reached):.1f} to {max(reached):.1f})"
                assert cell.strip() == right
    steps = [next(n for n, _, value in r["curve"] if value >= -170) for r in runs["diffsim"]]
    assert f"{round(min(steps), -3):,} to {round(max(steps), -3):,} simulator steps" in README


@pytest.mark.parametrize("page", ["CHANGELOG.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\(([^)#:]+)\)", text)
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_what_the_contributors_page_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for target in re.findall(r"^    make (\w+)", text, re.M):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target
    for name in re.findall(r"`diffsim\.(\w+)`", text):
        assert name in diffsim.__all__
