"""How long a run is: doublings, limits that it uses, and what it is asked for."""

import numpy as np
import pytest
import torch
from small_runs import assert_same, train, weights

import diffsim
from diffsim.config import load_config
from diffsim.errors import ConfigError
from diffsim.runs.length import continuation
from robotics_envs.environments import make_env
from robotics_envs.simulators.pendulum import Pendulum

EQUAL = {"algorithm": {"name": "full_horizon", "batch": 2, "horizon": 5}}
"""All updates simulate the same number of intervals."""
AN_UPDATE = 10


class Mine(Pendulum):
    """A simulator of this module."""


def test_a_run_that_does_not_solve_its_task_is_doubled(tmp_path, capsys):
    doubled = train(tmp_path / "doubled", doublings=2)
    said = " ".join(capsys.readouterr().err.split())
    assert "the best policy succeeds from 0 of 3 held-out starts, too few to be sure of 93.8%" in said
    assert "going on to 8 updates" in said
    assert "going on to 16 updates" in said
    config = doubled.config()
    assert (config.updates, config.doublings, len(doubled.history()["update"])) == (16, 0, 16)
    # The same as lengthening it by hand.
    by_hand = train(tmp_path / "by_hand")
    for updates in (8, 16):
        diffsim.train(out=by_hand, resume=True, updates=updates, quiet=True)
    assert_same(weights(doubled), weights(by_hand))
    np.testing.assert_array_equal(doubled.history()["loss"], by_hand.history()["loss"])


@pytest.mark.parametrize("when", [3, 4, 6])
def test_a_run_killed_around_its_doubling_goes_on_bit_for_bit(tmp_path, when):
    settings = {"doublings": 1, "checkpoint_every": 100}

    def vanish(row):
        if row["update"] == when:
            raise KeyboardInterrupt  # as a killed process: nothing is written

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", callback=vanish, **settings)
    diffsim.train(out=tmp_path / "run", resume=True, quiet=True)
    assert_same(weights(tmp_path / "run"), weights(train(tmp_path / "whole", **settings)))


def test_a_run_that_solves_its_task_is_not_doubled(tmp_path):
    class Easy(Mine):
        def success(self, states):
            return torch.ones(states.states.shape[1], dtype=torch.bool)

    class Unmeasured(Mine):
        success_criterion = None

    for env in (Easy, Unmeasured):
        assert len(train(tmp_path / env.__name__, env, doublings=2).history()["update"]) == 4


def test_a_run_uses_the_limit_that_it_has(tmp_path, capsys):
    """Whatever its policy does; the last part of it ends with the limit."""

    class Easy(Mine):
        def success(self, states):
            return torch.ones(states.states.shape[1], dtype=torch.bool)

    run = train(tmp_path / "run", Easy, doublings="stop", stop={"env_steps": 40 * AN_UPDATE}, **EQUAL)
    # 4 updates are a tenth of the limit; 8 leave room for 40 in all, which are the last part.
    assert run.config().updates == 40
    assert len(run.history()["update"]) == 40
    said = " ".join(capsys.readouterr().err.split())
    assert "10% of the limit of [stop] is used: going on to 8 updates" in said
    assert "20% of the limit of [stop] is used: going on to 16 updates" in said
    assert "40% of the limit of [stop] is used: going on to 40 updates" in said
    by_hand = train(tmp_path / "by_hand", Easy, **EQUAL)
    for updates in (8, 16, 40):
        diffsim.train(out=by_hand, resume=True, updates=updates, quiet=True)
    assert_same(weights(run), weights(by_hand))


def test_a_run_with_a_limit_is_killed_and_goes_on_bit_for_bit(tmp_path):
    limit = {"env_steps": 10 * AN_UPDATE}
    settings = {**EQUAL, "doublings": "stop", "stop": limit, "checkpoint_every": 100}

    def vanish(row):
        if row["update"] == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", callback=vanish, **settings)
    diffsim.train(out=tmp_path / "run", resume=True, quiet=True)
    whole = train(tmp_path / "whole", **settings)
    assert len(whole.history()["update"]) == 10
    assert_same(weights(tmp_path / "run"), weights(whole))


def test_a_finished_run_goes_on_with_another_limit(tmp_path):
    run = train(tmp_path / "run", doublings="stop", stop={"env_steps": 4 * AN_UPDATE}, **EQUAL)
    assert run.status()["reason"] == "all 4 updates done"
    diffsim.train(out=run, resume=True, quiet=True)
    assert len(run.history()["update"]) == 4
    diffsim.train(out=run, resume=True, stop={"env_steps": 8 * AN_UPDATE}, quiet=True)
    assert len(run.history()["update"]) == 8


@pytest.mark.parametrize(
    ("used", "updates"), [(0.001, 1200), (0.2, 1200), (0.25, 2400), (0.7, 857), (0.92, None), (1.3, None)]
)
def test_how_long_a_run_becomes_follows_from_the_share_of_the_limit_that_is_used(used, updates):
    config = load_config({"env": "pendulum", "stop": {"wall_seconds": 60}})
    assert config.doublings == "stop"
    changed = continuation(config, make_env("pendulum"), 600, [-150.0], [1.0], used)
    assert (changed and changed.config.updates) == updates


@pytest.mark.parametrize(
    ("done", "used", "updates"),
    [
        (16, 0.04, 400),  # there is room for so many
        (128, 0.5, 256),
        (8, 0.5, None),  # too early to tell
        (17, 0.5, None),  # at 16, 32, 64, ... only
        (512, 0.9, None),  # room for 568, less than a tenth fewer
        (16, 0.0, None),
        (256, 1.0, None),  # the run ends here
    ],
)
def test_a_run_takes_fewer_updates_where_the_limit_has_no_room_for_all(done, used, updates):
    config = load_config({"env": "pendulum", "stop": {"wall_seconds": 60}})
    changed = continuation(config, make_env("pendulum"), done, [], [], used)
    assert (changed and changed.config.updates) == updates
    asked = load_config({"env": "pendulum", "stop": {"wall_seconds": 60}, "updates": 600})
    assert continuation(asked, make_env("pendulum"), done, [], [], used) is None


def test_the_schedules_of_a_run_with_fewer_updates_end_with_the_limit(tmp_path, capsys):
    settings = {**EQUAL, "doublings": "stop", "stop": {"env_steps": 20 * AN_UPDATE}, "checkpoint_every": 100}
    run = train(tmp_path / "run", updates=50, **settings)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "80% of the limit of [stop] is used, which has no room for 50 updates: going on to 20 updates" in said
    )
    assert (run.config().updates, run.status()["reason"]) == (20, "all 20 updates done")

    def vanish(row):
        if row["update"] == 18:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", callback=vanish, updates=50, **settings)
    diffsim.train(out=tmp_path / "killed", resume=True, quiet=True)
    assert_same(weights(tmp_path / "killed"), weights(run))


def test_a_limit_is_used_only_where_there_is_one():
    assert load_config({"env": "pendulum", "stop": {"target_return": -150.0}}).doublings == 2
    assert load_config({"env": "pendulum", "stop": {"env_steps": 5}, "updates": 600}).doublings == 0
    with pytest.raises(ConfigError, match=r'doublings = "stop" trains until a limit, and there is none'):
        load_config({"env": "pendulum", "doublings": "stop"})
    for wrong in ("often", -1, 1.5, True):
        with pytest.raises(ConfigError, match=r'doublings = .*: needs a whole number, 0 or more, or "stop"'):
            load_config({"env": "pendulum", "doublings": wrong})


def test_updates_that_are_asked_for_are_not_doubled(tmp_path):
    assert load_config({"env": "pendulum"}).doublings == 2
    assert load_config({"env": "pendulum"}, {"updates": 600}).doublings == 0
    assert load_config({"env": "pendulum", "updates": 600, "doublings": 1}).doublings == 1
    run = train(tmp_path / "run", doublings=1, stop={"env_steps": 300})
    diffsim.train(out=run, resume=True, updates=5, stop={"env_steps": 10**9}, quiet=True)
    assert len(run.history()["update"]) == 5
