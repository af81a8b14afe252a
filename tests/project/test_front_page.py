"""README and the files beside it: their code runs, their figures are the measured ones, their links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest

import diffsim
from diffsim.comparison import read_comparison, survival
from diffsim.comparison.scores import Rules, TaskData
from diffsim.comparison.statistics import interquartile_mean

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


CONTENDERS = ("ours", "ppo", "ppo_wide", "ppo_tuned", "cma_es", "sac", "tqc")


def cell(comparison, task, contender):
    """Final return; runs that succeed; the median of Kaplan and Meier of the CPU seconds to it, where half do."""
    data = TaskData(comparison, task, Rules())
    if not data.records(contender):
        return "not run"
    times, score = data.times(contender), float(interquartile_mean(data.scores(contender)))
    middle = survival.median(times).value
    seconds = f"; {middle:.1f} s" if np.isfinite(middle) else ""
    shown = f"{score:,.0f}" if abs(score) >= 100 else f"{score:.1f}"
    return f"{shown}; {int(times.reached.sum())} of {len(times)}{seconds}"


def test_the_comparison_on_six_tasks_is_the_measured_one():
    comparison = read_comparison(ROOT / "benchmarks" / "results" / "six_tasks")
    rows = dict(re.findall(r"^\| `([\w:-]+)` \| (.+ \| .+ \| .+ \| .+ \| .+ \| .+ \| .+) \|$", README, re.M))
    assert len(comparison.tasks) == 6
    for task in comparison.tasks:
        assert rows[task] == " | ".join(cell(comparison, task, name) for name in CONTENDERS)


ABLATIONS = ("ours", "ours_task_starts", "ppo_state_box", "ppo_ours")


def test_the_ablations_of_contenders_are_the_measured_ones():
    comparison = read_comparison(ROOT / "benchmarks" / "results" / "contender_ablations")
    text = (ROOT / "docs" / "comparisons.md").read_text()
    table = text.split("<!-- contender_ablations -->")[1].split("<!-- -->")[0]
    rows = dict(re.findall(r"^\| `([\w:-]+)` \| (.+ \| .+ \| .+ \| .+) \|$", table, re.M))
    assert rows == {
        task: " | ".join(cell(comparison, task, name) for name in ABLATIONS) for task in comparison.tasks
    }
    assert len(rows) == 3


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
