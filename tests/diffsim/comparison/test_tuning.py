"""The search of settings: equal trials for all, on seeds of its own, chosen by the area under the curve."""

import json

import numpy as np
import pytest
from short_comparison import SMALL, short

from diffsim.comparison import records
from diffsim.comparison.clock import Budget, Meter
from diffsim.comparison.compare import request
from diffsim.comparison.contenders import stable_baselines
from diffsim.comparison.contenders.catalogue import CONTENDERS, WHITE_BOX
from diffsim.comparison.contenders.white_box import resolved
from diffsim.comparison.tuning import SPACES, Tuning, area_of, drawn, trial_of

TUNABLE = [name for name, entry in CONTENDERS.items() if entry.space]


def run(task, contender, seed, score, steps, status="finished"):
    curve = records.Curve.of(score, environment_steps=steps)
    protocol = records.Protocol("simulator", 4, 0)
    error = "" if status == "finished" else "why"
    return records.Record(task, contender, seed, status, curve, protocol, error)


def test_the_area_is_the_mean_score_over_the_budget_with_the_last_value_held():
    budget = Budget(steps=100)
    runs = [run("t", "a", 0, [0.0, 1.0, 5.0], [0, 50, 75]), run("t", "a", 1, [2.0, 2.0], [0, 10])]
    assert area_of(runs, budget, 2) == pytest.approx((0.25 * 1.0 + 0.25 * 5.0 + 2.0) / 2)
    late = [run("t", "a", 0, [0.0, 9.0], [0, 120])]  # an update that ended after the budget
    assert area_of(late, budget, 1) == 0.0
    assert area_of(runs[:1], budget, 2) == -np.inf
    assert area_of([run("t", "a", 0, [1.0], [0], "crashed")], budget, 1) == -np.inf


@pytest.mark.parametrize("name", TUNABLE)
def test_trials_depend_on_their_number_alone_and_the_first_is_untuned(name):
    entry = CONTENDERS[name]
    trials = [trial_of(entry, "pendulum", trial) for trial in range(6)]
    assert trials[0] == entry.settings("pendulum")
    assert trials == [trial_of(entry, "pendulum", trial) for trial in range(6)]
    assert len({json.dumps(trial, sort_keys=True) for trial in trials}) >= 4
    assert drawn(entry.space, "pendulum", 1) != drawn(entry.space, "reacher", 1)
    assert drawn(entry.space, "pendulum", 0) == {}


@pytest.mark.filterwarnings(
    "ignore:You have specified a mini-batch size"
)  # of one environment instead of many
@pytest.mark.parametrize("name", TUNABLE)
def test_every_drawn_setting_is_one_that_the_contender_takes(name, tmp_path):
    entry = CONTENDERS[name]
    envs = stable_baselines.make_envs("pendulum", {})
    for trial in range(8):
        settings = trial_of(entry, "pendulum", trial)
        if entry.trainer == WHITE_BOX:
            resolved("pendulum", settings)
        else:
            meter = Meter(Budget(steps=1), lambda act: (0.0, 0.0))
            size = {} if name == "ppo" else {"buffer_size": 1000}
            stable_baselines.make_model(envs, {**settings, **size}, 0, meter)


def test_both_sides_have_the_same_trials_budgets_and_seeds_and_the_best_is_added(tmp_path):
    task = short(tmp_path)
    asked = request([task], ["ppo_wide", "sac"], [SMALL], "2", ["100steps", "sac:50steps"])
    tuning = Tuning(tmp_path, asked, 3, "7..8")
    assert tuning.names == ["ours", "sac", "ppo"]
    assert list(tuning.asked.contenders) == [f"{n} #{k}" for n in tuning.names for k in range(3)]
    assert tuning.asked.seeds == (7, 8)
    assert tuning.asked.budget_of("sac #2") == Budget(steps=50)
    assert not [e for e in tuning.asked.contenders.values() if e.about.kind == "reference"]
    best = {"ours": 2, "sac": 0, "ppo": 1}
    for name in tuning.names:
        for trial in range(3):
            for seed in (7, 8):
                score = [0.0, 5.0 if trial == best[name] else 1.0]
                one = run(task, f"{name} #{trial}", seed, score, [0, 10])
                path = records.record_path(tuning.root, task, f"{name} #{trial}", seed)
                records.write_record(path, one)
    found, notes = tuning.chosen()
    assert set(found.contenders) - set(asked.contenders) == {"ours_tuned", "sac_tuned", "ppo_tuned"}
    for name, trial in best.items():
        entry = found.contenders[f"{name}_tuned"]
        assert entry.settings(task) == trial_of(CONTENDERS[name], task, trial)
        assert "3 trials a task on seeds 7, 8" in entry.about.tuning_effort
    assert found.contenders["ours_tuned"].about.kind == "white box"
    assert found.budget_of("sac_tuned") == Budget(steps=50)
    outcome = json.loads((tmp_path / "tuning.json").read_text())
    assert outcome["chosen"][f"{task}/ours"] == {"trial": 2, "settings": drawn("ours", task, 2)}
    assert set(outcome["spaces"]["ppo"]) == set(SPACES["ppo"])
    assert "tuning.json" in notes[0]
