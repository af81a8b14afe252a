"""What ``diffsim compare`` is told: names, budgets, seeds and settings, checked before anything heavy is imported."""

import dataclasses
import json
import subprocess
import sys

import pytest
from click.testing import CliRunner
from short_comparison import ROOT, plan_of, run_of, short

from diffsim.cli import main
from diffsim.comparison.clock import Budget
from diffsim.comparison.compare import about_task, comparison_of, normalisation, planned, request
from diffsim.comparison.contenders.catalogue import CONTENDERS
from diffsim.comparison.contenders.white_box import resolved
from diffsim.comparison.records import read_comparison, write_comparison
from diffsim.errors import ConfigError
from diffsim.suites.plan import read_plan
from robotics_envs.environments import ENVIRONMENTS, GYM_TASKS

WRONG = {
    "unknown simulator": (["pendulumm"], "did you mean 'pendulum'"),
    "unknown task of Gymnasium": (["gym:Hoper-v5"], "gym:Hopper-v5"),
    "no simulator": ([], "needs at least one simulator"),
    "unknown contender": (["pendulum", "--against", "ppo,sacc"], "did you mean 'sac'"),
    "budget without a unit": (["pendulum", "--budget", "60"], "60s"),
    "budget of an unknown contender": (["pendulum", "--against", "ppo", "--budget", "td3:5s"], "'td3'"),
    "two budgets": (
        ["pendulum", "--budget", "60s", "--budget", "5s"],
        "two budgets are given, '60s' and '5s'",
    ),
    "two budgets of a contender": (
        ["pendulum", "--against", "sac", "--budget", "sac:5s", "--budget", "sac : 9steps"],
        "two budgets of sac are given, '5s' and '9steps'",
    ),
    "budget of nobody": (["pendulum", "--budget", ":5s"], "budget ':5s': needs a contender's name"),
    "budget of nothing": (
        ["pendulum", "--against", "sac", "--budget", "sac:"],
        "budget 'sac:': needs a contender's",
    ),
    "log": (["pendulum", "--log", "csv,tensorbord"], "did you mean 'tensorboard'"),
    "a name twice": (["pendulum", "--ours", "a:updates=1", "--ours", "a:updates=2"], "named 'ours a'"),
    "seeds": (["pendulum", "--seeds", "many"], "seeds 'many'"),
    "no seed": (["pendulum", "--seeds", "0"], "seeds '0'"),
    "seeds twice": (["pendulum", "--seeds", "1,1"], "each once"),
    "settings": (["pendulum", "--ours", "fast"], "--ours 'fast'"),
    "settings of the comparison": (["pendulum", "--ours", "seed=3"], "belong to the comparison"),
    "seeds of the search": (["pendulum", "--tune", "2", "--tuning-seeds", "5..6"], "tuning seeds 5, 6"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_with_what_to_do(case, tmp_path):
    arguments, words = WRONG[case]
    done = CliRunner().invoke(main, ["compare", *arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert words in done.output
    assert not (tmp_path / "out").exists()


def test_names_are_checked_before_torch_is_imported():
    code = (
        "import sys\nfrom diffsim.cli import main\n"
        "for wrong in (['nothing'], ['pendulum', '--against', 'nothing'], ['pendulum', '--budget', 'x']):\n"
        "    try:\n        main(['compare', *wrong])\n"
        "    except SystemExit as end:\n        assert end.code == 2, wrong\n"
        "assert not {'torch', 'stable_baselines3', 'gymnasium'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_impossible_settings_of_ours_are_refused_before_anything_starts(tmp_path):
    asked = request([short(tmp_path)], [], ["algorithm.windw=3"])
    with pytest.raises(ConfigError, match=r"algorithm\.windw"):
        planned(tmp_path / "out", asked)


def test_other_settings_of_ours_have_names():
    asked = request(["pendulum"], [], ["updates=50,policy.hidden=[8,8]", "long:updates=1200"])
    assert list(asked.contenders) == ["ours", "ours updates=50 hidden=[8,8]", "ours long"]
    settings = asked.contenders["ours updates=50 hidden=[8,8]"].settings("pendulum")
    assert settings == {"updates": 50, "policy": {"hidden": [8, 8]}}
    full = resolved("pendulum", asked.contenders["ours long"].settings("pendulum"))
    assert full == {**resolved("pendulum", {}), "updates": 1200, "doublings": 0}


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", (0, 1, 2)), ("10..12", (10, 11, 12)), ("7,3", (7, 3)), ("4..4", (4,))]
)
def test_seeds_are_a_number_a_range_or_a_list(text, seeds):
    assert request(["pendulum"], [], seeds=text).seeds == seeds


def test_the_plan_holds_every_run_and_survives_a_file(tmp_path):
    plan = plan_of(tmp_path, ["ppo", "cma_es"], seeds="3", budget=["2000steps", "ppo:50steps"])
    again = read_plan(plan.root)
    assert again == plan
    assert len(plan.runs) == len({run.folder for run in plan.runs}) == 4 * 3
    assert [run.seed for run in plan.runs[:4]] == [0] * 4  # seed by seed
    ppo, ours = (run_of(again, name).settings for name in ("ppo", "ours"))
    assert ppo["budget"] == {"cpu_seconds": None, "steps": 50}
    assert ours["budget"] == {"cpu_seconds": None, "steps": 2000}
    assert "RL Zoo at commit 22e3ff24" in ppo["source"]
    assert ours["settings"]["optimizer"]["lr"] == 5e-3  # all defaults are written out


def test_comparison_json_says_the_same_of_tasks_and_contenders(tmp_path):
    plan = plan_of(tmp_path, ["ppo"], budget=["60s+2000steps", "ppo:50steps"])
    write_comparison(plan.root, comparison_of(plan, Budget(60.0, 2000), "diffsim compare"))
    comparison = read_comparison(plan.root)
    assert comparison.reference == "ours"
    assert comparison.budget == {"cpu_seconds": 60.0, "environment_steps": 2000.0}
    assert comparison.planned() == sorted(
        [(run.settings["task"], run.settings["contender"], run.seed) for run in plan.runs],
        key=lambda key: list(comparison.contenders).index(key[1]),
    )
    assert any("ppo" in note and "50 steps" in note for note in comparison.notes)
    (task,) = comparison.tasks.values()
    assert task.threshold.measure == "success"
    assert task.threshold.value == 60 / 64


def test_more_may_be_asked_for_in_the_same_folder_but_nothing_else(tmp_path):
    plan_of(tmp_path, ["ppo"])
    plan = plan_of(tmp_path, ["cma_es"], seeds="2")
    assert {run.settings["contender"] for run in plan.runs} == {"ours", "ours full", "ppo", "cma_es"}
    assert len(plan.runs) == 7
    skipped = comparison_of(plan, Budget(steps=2000)).skipped
    assert skipped == {}
    with pytest.raises(
        ConfigError, match=r"another budget: steps = 2000 before, 3000 now.*Choose another --out"
    ):
        plan_of(tmp_path, ["ppo"], budget="3000steps")
    with pytest.raises(ConfigError, match=r"another settings: .*batch"):
        plan_of(tmp_path, ours=["full:algorithm.name=full_horizon,algorithm.batch=5"])


def test_pairs_and_seeds_that_nobody_asked_for_are_not_missing(tmp_path):
    plan_of(tmp_path, ["ppo"], seeds="3")
    plan = plan_of(tmp_path, ["cma_es"], seeds="1")
    comparison = comparison_of(plan, Budget(steps=2000))
    (task,) = comparison.tasks
    assert comparison.seeds_of == {f"{task}/cma_es": [0]}
    assert sorted(comparison.planned()) == sorted(
        (run.settings["task"], run.settings["contender"], run.seed) for run in plan.runs
    )
    write_comparison(plan.root, comparison)
    assert read_comparison(plan.root) == comparison
    other = planned(plan.root, request(["pendulum"], ["ppo"], seeds="1", budgets=["2000steps"]))
    skipped = comparison_of(other, Budget(steps=2000)).skipped
    assert skipped == {"pendulum/ours full": "not asked for", "pendulum/cma_es": "not asked for"}


def test_a_dry_run_starts_nothing_and_estimates(tmp_path):
    done = CliRunner().invoke(
        main,
        ["compare", "pendulum", "--against", "ppo,sac", "--budget", "60s", "--budget", "sac:1000steps",
         "--out", str(tmp_path / "out"), "--dry-run"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "30 runs, 30 to do" in done.output
    assert "CPU min, and 10 runs limited by steps" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", [*ENVIRONMENTS, *GYM_TASKS])
def test_every_task_has_a_threshold_and_a_place_in_the_normalisation(task):
    about = about_task(task)
    assert about.threshold.measure == "success"
    assert 0 < about.threshold.value <= 1
    assert "starts" in about.threshold.source
    table = json.loads((ROOT / "diffsim/comparison/normalisation.json").read_text())["tasks"]
    assert set(table) == {*ENVIRONMENTS, *GYM_TASKS}
    assert len(table[task]["zero_source"]) > 10
    assert (task in normalisation()) == (table[task]["one"] is not None)
    if about.limits is not None:
        assert about.limits.zero < about.limits.one


def test_every_contender_says_who_tuned_it_and_where_its_settings_are_from():
    for name, entry in CONTENDERS.items():
        about = dataclasses.asdict(entry.about)
        assert all(about.values()), name
    assert [name for name, entry in CONTENDERS.items() if entry.about.kind == "reference"] == ["ours"]
