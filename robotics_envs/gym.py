"""Simulators as Gymnasium environments.  Importing this module registers them all; it loads no torch.

    import gymnasium
    import robotics_envs.gym

    env = gymnasium.make("diffsim/CartpoleSwingup-v0", render_mode="rgb_array")
    envs = gymnasium.make_vec("diffsim/CartpoleSwingup-v0", num_envs=1024)
    mine = gymnasium.make("diffsim/Simulator-v0", env="my_env.py:MyEnv")

Without the import, ``gymnasium.make("robotics_envs.gym:diffsim/CartpoleSwingup-v0")`` does the same.
"""

from __future__ import annotations

import gymnasium

from robotics_envs.environments import ENVIRONMENTS

ANY = "diffsim/Simulator-v0"
"""The id of an environment whose argument ``env`` is the simulator or its name."""


EPISODE_STEPS = {
    "pendulum": 200,
    "cartpole_swingup": 1000,
    "cartpole_balance": 1000,
    "acrobot": 1000,
    "double_pendulum": 1000,
    "reacher": 50,
    "arm7": 75,
    "arm7_point": 150,
    "quadrotor_planar": 250,
    "quadrotor": 250,
    "quadrotor_eight": 500,
    "car": 300,
    "rocket_landing": 80,
    "satellite": 80,
    "orbit_transfer": 50,
    "hopper": 300,
    "trebuchet": 150,
    "reactor": 60,
    "heat_rod": 90,
    "crane": 200,
    "maglev": 150,
    "glider": 200,
    "payload_arm": 150,
    "tug": 180,
}
"""The simulators' own ``episode_steps``, repeated because a registration needs them and must not load torch."""


def gym_id(name: str) -> str:
    """The id of a simulator of the registry: ``cartpole_swingup`` is ``diffsim/CartpoleSwingup-v0``."""
    return f"diffsim/{''.join(part.capitalize() for part in name.split('_'))}-v0"


def register_envs() -> None:
    """Register every simulator of the registry, and ``diffsim/Simulator-v0`` for others; a second call does nothing."""
    ids: dict[str, tuple[dict[str, str], int | None]] = {ANY: ({}, None)}
    ids |= {gym_id(name): ({"env": name}, EPISODE_STEPS[name]) for name in ENVIRONMENTS}
    for environment_id, (arguments, steps) in ids.items():
        if environment_id not in gymnasium.registry:
            gymnasium.register(
                id=environment_id,
                entry_point=f"robotics_envs.adapters.gym_adapter:{'GymEnv' if steps is None else 'RegisteredEnv'}",
                vector_entry_point="robotics_envs.adapters.gym_adapter:GymVectorEnv",
                kwargs=arguments,
                max_episode_steps=steps,
                # Gymnasium's checker on every step costs more than the step; check_env serves that purpose.
                disable_env_checker=True,
            )


register_envs()
