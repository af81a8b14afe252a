"""A simulator that is another one in training than in evaluations: what trains, what is judged, what is said."""

import os
import signal

import pytest
import torch
from same_state import same

import diffsim
from diffsim.assembly import assemble
from diffsim.config import load_config
from diffsim.errors import Interrupted
from diffsim.rollouts import Rollout
from diffsim.runs.show import describe_run
from robotics_envs.robots import from_mjcf
from robotics_envs.simulators.pendulum import Pendulum
from solvers.native import build

CRAWLER = """<mujoco><option timestep="0.005"/><worldbody><geom name="floor" type="plane" size="5 5 1"/>
  <body pos="0 0 .28"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/><geom size=".1"/>
    <body><joint name="knee" axis="0 1 0" damping=".2" armature=".02"/><geom pos=".15 0 -.25" size=".04"/></body>
  </body></worldbody><actuator><motor joint="knee" gear="2" ctrlrange="-1 1"/></actuator></mujoco>"""


class Lighter(Pendulum):
    """Gravity is less at the start of training."""

    training_note = "training begins with less gravity"
    longest_window = 6 * Pendulum.dt

    def training_params(self, p, left=1.0):
        return {**p, "g": p["g"] * (1 - left / 2)}


@pytest.mark.parametrize("algorithm", ["value_gradient", "short_window", "full_horizon"])
def test_an_update_simulates_with_the_parameters_of_its_time(algorithm, monkeypatch):
    settings = {"name": algorithm, "batch": 4} | ({"horizon": 4} if algorithm == "full_horizon" else {})
    config = load_config({"env": Lighter, "updates": 4, "backend": "eager"}, {"algorithm": settings})
    made = assemble(config).algorithm
    seen = []

    def spied(call):
        def spy(self, x, steps, p=None, **more):
            seen.append(float(p["g"]))
            return call(self, x, steps, p, **more)

        return spy

    for name in ("__call__", "vjp"):
        monkeypatch.setattr(Rollout, name, spied(getattr(Rollout, name)))
    true = Lighter().constants["g"].value
    for done in range(4):
        seen.clear()
        made.step()
        assert seen
        assert seen == pytest.approx([true * (1 - (1 - done / 4) / 2)] * len(seen))
        assert float(made.params["g"]) == pytest.approx(true)


def test_an_evaluation_is_that_of_the_simulator_itself():
    made = assemble(load_config({"env": Lighter, "updates": 4, "backend": "eager"})).algorithm
    x = made.env.reset(4, torch.Generator().manual_seed(0))
    same_policy = Rollout(Pendulum(), made.policy, backend="eager")
    assert torch.allclose(made.returns(x), same_policy.returns(x, noise=torch.zeros(1)))


def test_windows_are_not_longer_than_gradients_are_good_for():
    made = assemble(load_config({"env": Lighter, "updates": 4, "backend": "eager"})).algorithm
    made.step()
    assert made.objective.steps == 6

    class Short(Lighter):
        longest_window = 0.01 * Pendulum.dt

    made = assemble(load_config({"env": Short, "updates": 4, "backend": "eager"})).algorithm
    made.step()
    assert made.objective.steps == 1


def test_simulators_are_the_same_in_training_unless_they_say_otherwise():
    env = Pendulum()
    p = env.params(torch.zeros(1))
    assert env.training_params(p, 0.3) is p
    assert env.training_note == ""


def test_a_robot_trains_on_softened_contacts_and_is_judged_on_mujocos(tmp_path, capsys, monkeypatch):
    file = tmp_path / "crawler.xml"
    file.write_text(CRAWLER)
    settings = {
        "updates": 4,
        "backend": "native",
        "algorithm": {"batch": 16, "critic_hidden": [4]},
        "policy": {"hidden": [4]},
        "evaluation": {"every": 1, "episodes": 4},
    }
    built, at_row = set(), []
    load = build.load
    monkeypatch.setattr(build, "load", lambda source: (built.add(source), load(source))[1])
    run = diffsim.train(
        {"name": f"mjcf:{file}", "onset": 0.05},
        tmp_path / "whole",
        callback=lambda row: at_row.append(len(built)),
        **settings,
    )
    # As the onset falls, nothing is compiled again.
    assert at_row[0] == at_row[-1]
    assert "softens the onset of contacts over 0.05 m" in capsys.readouterr().err
    assert run.config().env.options == {"onset": 0.05}
    assert "softens the onset of contacts over 0.05 m" in run.provenance()["training"]
    assert "softens the onset of contacts over 0.05 m" in " ".join(describe_run(tmp_path / "whole").split())

    # Evaluations are those of the robot without the option.
    policy = diffsim.load_policy(run).module
    plain = from_mjcf(file)
    x = plain.reset(4, torch.Generator().manual_seed(2**31))
    own = Rollout(plain, policy, backend="native").returns(x, noise=torch.zeros(1))
    assert float(own.mean()) == pytest.approx(max(run.history()["return"]), rel=1e-4)

    # A run that was stopped while the onset fell ends in the same bits.
    with pytest.raises(Interrupted):
        diffsim.train(
            {"name": f"mjcf:{file}", "onset": 0.05},
            tmp_path / "half",
            quiet=True,
            callback=lambda row: os.kill(os.getpid(), signal.SIGTERM),
            **settings,
        )
    half = diffsim.train(out=tmp_path / "half", resume=True, quiet=True)
    assert same(half.checkpoint("last"), run.checkpoint("last"))

    without = diffsim.train(f"mjcf:{file}", tmp_path / "without", quiet=True, **settings)
    assert not same(without.checkpoint("last")["policy"], run.checkpoint("last")["policy"])
    assert "training" not in without.provenance()
