"""Settings of contenders: the RL Zoo's reach Stable-Baselines3, and every contender trains."""

import numpy as np
import pytest
import torch
from short_comparison import short
from stable_baselines3.common.vec_env import VecNormalize

import diffsim
from diffsim.comparison.clock import Budget, Meter
from diffsim.comparison.contenders import stable_baselines, white_box, zoo
from diffsim.comparison.contenders.catalogue import CONTENDERS, STABLE_BASELINES, WHITE_BOX
from diffsim.comparison.contenders.stable_baselines import Standardised, make_envs, make_model, wrapped
from diffsim.comparison.contenders.white_box import resolved
from diffsim.config import load_config
from robotics_envs.environments import ENVIRONMENTS, GYM_TASKS, make_env

TASKS = [*ENVIRONMENTS, *GYM_TASKS]
ENTRIES = [(algorithm, name) for algorithm, entries in zoo.ENTRIES.items() for name in entries]


def meter(budget="100steps"):
    return Meter(Budget.parse(budget), lambda act: (0.0, 0.0))


# Two entries of the Zoo have larger minibatches than rollouts, of which Stable-Baselines3 warns.
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size:UserWarning")
@pytest.mark.parametrize(("algorithm", "name"), ENTRIES)
def test_settings_of_the_zoo_reach_the_algorithm(algorithm, name, tmp_path):
    settings = {"algorithm": algorithm, **zoo.ENTRIES[algorithm][name]}
    settings["buffer_size"] = 1000  # memory
    if algorithm == "ppo":
        del settings["buffer_size"]
    if "qf" in str(settings.get("policy_kwargs")):
        settings["policy_kwargs"] = {"net_arch": {"pi": [8], "qf": [8]}}
    task = short(tmp_path)
    envs = wrapped(make_envs(task, settings), task, settings)
    assert envs.num_envs == settings.get("n_envs", 1)
    assert isinstance(envs, VecNormalize) == bool(settings.get("normalize"))
    if settings.get("normalize"):
        assert envs.gamma == settings["gamma"]
    model = make_model(envs, settings, 3, meter())
    elsewhere = {
        "algorithm",
        "n_envs",
        "n_timesteps",
        "normalize",
        "policy_kwargs",
        "noise_type",
        "noise_std",
    }
    for key in settings.keys() - elsewhere:
        found, wanted = getattr(model, key), settings[key]
        if str(wanted).startswith("lin_"):
            assert found(0.5) == pytest.approx(0.5 * float(wanted[4:]))
            continue
        found = found(0.5) if callable(found) else found
        found = getattr(found, "frequency", found)
        assert found == wanted, key
    policy = settings.get("policy_kwargs", {})
    if isinstance(policy.get("net_arch"), dict) and "vf" in policy["net_arch"]:
        assert model.policy.net_arch == policy["net_arch"]
        assert model.policy.activation_fn is torch.nn.ReLU
        assert float(model.policy.log_std[0].detach().mean()) == policy["log_std_init"]
    if "noise_std" in settings:
        assert np.array_equal(model.action_noise._sigma, [settings["noise_std"]])
    assert model.seed == 3


@pytest.mark.parametrize("algorithm", zoo.ENTRIES)
def test_every_task_has_an_entry_that_is_named_and_the_nearest_is_called_so(algorithm):
    for task in TASKS:
        entry = zoo.entry(algorithm, task)
        assert entry.settings is zoo.ENTRIES[algorithm][entry.name]
        assert entry.name in entry.source
        assert ("nearest" in entry.source) != entry.same_task
    assert zoo.entry(algorithm, "pendulum") == ("Pendulum-v1", True, zoo.ENTRIES[algorithm]["Pendulum-v1"])
    assert zoo.entry(algorithm, "gym:Hopper-v5").name == "Hopper-v4"
    assert zoo.entry(algorithm, "heat_rod").name == "default"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=() if n in ("ppo", "sac") else pytest.mark.slow)
        for n, e in CONTENDERS.items()
        if e.trainer == STABLE_BASELINES
    ],
)
def test_black_box_contenders_learn_within_their_budget(name, tmp_path):
    """Gradients are counted, and a run of the same seed is the same."""
    task = short(tmp_path)
    settings = dict(CONTENDERS[name].settings("pendulum"))
    changes = {"n_steps": 8, "batch_size": 16} if settings["algorithm"] == "ppo" else {"learning_starts": 10}
    settings |= {**changes, "n_envs": min(2, settings.get("n_envs", 1))}
    if settings["algorithm"] == "ppo":
        settings["n_envs"] = 2
    curves = []
    for _ in range(2):
        kept = []
        clock = Meter(
            Budget(steps=60),
            lambda act, kept=kept: (kept.append(act(np.eye(3, dtype=np.float32))), (0.0, 0.0))[1],
        )
        stable_baselines.load(settings)
        stable_baselines.train(task, settings, 5, clock)
        assert 60 <= clock.points[-1].environment_steps <= 62
        assert clock.points[-1].gradient_evaluations > 20
        assert not np.array_equal(kept[0], kept[-1])
        assert np.abs(kept[-1]).max() <= 2.0  # N·m, the pendulum's box
        curves.append(kept)
    assert all(np.array_equal(a, b) for a, b in zip(*curves, strict=True))


@pytest.mark.parametrize("name", [n for n, e in CONTENDERS.items() if e.trainer == WHITE_BOX])
@pytest.mark.parametrize("task", ["pendulum", "quadrotor"])
def test_settings_of_our_contenders_are_valid(name, task):
    settings = resolved(task, CONTENDERS[name].settings(task))
    assert settings["env"]["name"] == task
    assert resolved(task, settings) == settings


def test_ours_is_told_the_budget_as_a_user_tells_a_run():
    ours = resolved("pendulum", {}, Budget(60.0, 10**6))
    assert (ours["updates"], ours["doublings"]) == (600, "stop")
    assert ours["stop"] == {"target_return": None, "wall_seconds": 60.0, "env_steps": 10**6}
    assert ours == load_config({"env": "pendulum", "threads": 1, "stop": ours["stop"]}).model_dump(
        mode="json", exclude={"seed"}
    ) | {section: ours[section] for section in ("algorithm", "optimizer", "policy", "env")}
    assert resolved("pendulum", {"updates": 600}, Budget(60.0))["stop"]["wall_seconds"] is None


def test_ours_uses_the_whole_budget(tmp_path):
    settings = {
        "backend": "eager",
        "algorithm": {"name": "full_horizon", "batch": 2},
        "evaluation": {"every": 0, "episodes": 1},
    }
    task = short(tmp_path)
    config = resolved(task, settings, Budget(steps=10**5)) | {"updates": 3}
    clock = Meter(Budget(steps=20 * 12 + 10 * 3), lambda act: (0.0, 0.0))
    white_box.train(task, config, 5, clock)
    # 3 updates of 20 steps and an evaluation of 10 use 70 of 270 steps, which has room for floor(3 * 270 / 70) updates.
    # What is then left, 30 steps, has no room for a tenth more.
    assert clock.reason == "all 11 updates done"
    assert clock.points[-1].environment_steps == 240


def test_ours_is_the_untouched_default_and_starts_from_the_task_only_in_its_ablation():
    assert CONTENDERS["ours"].settings("pendulum") == {}
    both = [
        resolved("pendulum", CONTENDERS[name].settings("pendulum")) for name in ("ours", "ours_task_starts")
    ]
    changed = {k for k in both[0]["algorithm"] if both[0]["algorithm"][k] != both[1]["algorithm"][k]}
    assert changed == {"fresh", "resets"}
    assert both[1]["algorithm"]["fresh"] == 0.0
    assert both[1]["algorithm"]["resets"] == 1.0
    assert {k: v for k, v in both[0].items() if k != "algorithm"} == {
        k: v for k, v in both[1].items() if k != "algorithm"
    }


def test_ppo_with_our_parts_has_our_network_observations_and_optimizer():
    settings = CONTENDERS["ppo_ours"].settings("pendulum")
    ours = resolved("pendulum", {})
    envs = wrapped(make_envs("pendulum", {**settings, "n_envs": 400}), "pendulum", settings)
    assert isinstance(envs.venv, Standardised)
    clock = meter("1000000steps")
    model = make_model(envs, {**settings, "n_steps": 4}, 0, clock)
    assert model.policy.net_arch == {"pi": [64, 64], "vf": [64, 64]}
    assert model.policy.activation_fn is torch.nn.Tanh
    assert model.policy.optimizer.defaults["betas"] == tuple(ours["optimizer"]["betas"])
    assert model.lr_schedule(1.0) == ours["optimizer"]["lr"]
    clock.begin(lambda o: o)
    clock.go_on(500_000, 0, lambda o: o)
    assert model.lr_schedule(1.0) == pytest.approx(0.5 * ours["optimizer"]["lr"])


def test_standardised_observations_have_mean_0_and_deviation_1_over_the_state_box():
    task = "cartpole_swingup"
    settings = {"n_envs": 4000, "starts": "state_box", "standardise": True}
    bare = make_envs(task, settings)
    bare._simulation.backend = "eager"
    envs = wrapped(bare, task, settings)
    envs.seed(0)
    observations = envs.reset()
    assert np.abs(observations.mean(0)).max() < 0.1
    assert np.abs(observations.std(0) - 1).max() < 0.1


def test_ppo_from_the_state_box_in_mujoco_starts_there():
    envs = make_envs("gym:InvertedPendulum-v5", {"n_envs": 64, "starts": "state_box"})
    envs.seed(0)
    observations = envs.reset()
    box = make_env("gym:InvertedPendulum-v5").state_box
    assert (np.abs(observations) <= np.array(box.high)).all()
    assert observations.std(0) == pytest.approx(np.array(box.high) / np.sqrt(3), rel=0.3)
    task = make_envs("gym:InvertedPendulum-v5", {"n_envs": 64})
    task.seed(0)
    assert np.abs(task.reset()).max() < 0.05


@pytest.mark.parametrize(("doublings", "updates"), [(0, 3), (1, 6)])
def test_ours_is_trained_bit_for_bit_as_diffsim_train_does(doublings, updates, tmp_path):
    """Doublings included; validation is on the clock and chooses the policy, the curve's evaluations change nothing."""
    settings = {
        "updates": 3,
        "doublings": doublings,
        "backend": "eager",
        "policy": {"hidden": [4]},
        "algorithm": {"name": "full_horizon", "batch": 2},
        "evaluation": {"every": 2, "episodes": 3},
    }
    task = short(tmp_path)
    file = diffsim.train(task, out=tmp_path / "run", seed=5, quiet=True, **settings)
    policy = diffsim.load_policy(file, "best")
    probe, acts = np.eye(3, dtype=np.float32), []
    clock = Meter(Budget(steps=10**6), lambda act: (acts.append(act(probe)), (0.0, 0.0))[1])
    white_box.train(task, settings, 5, clock)
    assert clock.reason == f"all {updates} updates done"
    assert np.array_equal(acts[-1], policy(probe))
    validations = 4 if doublings else 2  # after updates 2 and 3; with a doubling 4 and 6, too
    assert clock.points[-1].environment_steps == updates * 2 * 10 + validations * 3 * 10
