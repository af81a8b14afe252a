"""Settings of the RL Zoo for Stable-Baselines3 and sb3-contrib, word for word, and which entry serves which task.

From https://github.com/DLR-RM/rl-baselines3-zoo at commit 22e3ff2450fd92033f7f032915e1f64894a09584 of 2026-04-23,
``hyperparams/{ppo,sac,td3,tqc,crossq}.yml`` (MIT License).  Merged are entries that name another as their base;
``n_timesteps`` is the length that the Zoo trains for.  The Zoo says of itself that it is no quantitative benchmark:
its settings are used here, its scores are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

SOURCE = "RL Zoo at commit 22e3ff24 (2026-04-23)"

_WIDE_RELU = {"activation_fn": "ReLU", "net_arch": {"pi": [256, 256], "vf": [256, 256]}, "ortho_init": False}
_ZOO_400 = {"net_arch": [400, 300]}
_PYBULLET_SAC = {
    "n_timesteps": 1e6,
    "learning_rate": 7.3e-4,
    "buffer_size": 300_000,
    "batch_size": 256,
    "ent_coef": "auto",
    "gamma": 0.98,
    "tau": 0.02,
    "train_freq": 8,
    "gradient_steps": 8,
    "learning_starts": 10_000,
    "use_sde": True,
    "policy_kwargs": {"log_std_init": -3, "net_arch": [400, 300]},
}
_LANDER_SAC = {
    "n_timesteps": 5e5,
    "batch_size": 256,
    "learning_rate": "lin_7.3e-4",
    "buffer_size": 1_000_000,
    "ent_coef": "auto",
    "gamma": 0.99,
    "tau": 0.01,
    "train_freq": 1,
    "gradient_steps": 1,
    "learning_starts": 10_000,
    "policy_kwargs": _ZOO_400,
}
_MUJOCO_SAC = {"n_timesteps": 1e6, "learning_starts": 10_000}
_PYBULLET_TD3 = {
    "n_timesteps": 1e6,
    "gamma": 0.98,
    "buffer_size": 200_000,
    "learning_starts": 10_000,
    "noise_type": "normal",
    "noise_std": 0.1,
    "gradient_steps": 1,
    "train_freq": 1,
    "batch_size": 256,
    "learning_rate": 7e-4,
    "policy_kwargs": _ZOO_400,
}
_LANDER_TD3 = {
    "n_timesteps": 3e5,
    "gamma": 0.98,
    "buffer_size": 200_000,
    "learning_starts": 10_000,
    "noise_type": "normal",
    "noise_std": 0.1,
    "gradient_steps": 1,
    "train_freq": 1,
    "learning_rate": 1e-3,
    "policy_kwargs": _ZOO_400,
}
_MUJOCO_TD3 = {
    "n_timesteps": 1e6,
    "learning_starts": 10_000,
    "noise_type": "normal",
    "noise_std": 0.1,
    "train_freq": 1,
    "gradient_steps": 1,
    "learning_rate": 1e-3,
    "batch_size": 256,
    "policy_kwargs": _ZOO_400,
}
_MUJOCO_CROSSQ = {
    "buffer_size": 1_000_000,
    "learning_rate": 1e-3,
    "learning_starts": 5_000,
    "n_timesteps": 5e6,
    "policy_delay": 3,
    "policy_kwargs": {"net_arch": {"pi": [256, 256], "qf": [2048, 2048]}},
}

ENTRIES: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "ppo": {
        "default": {"n_timesteps": 1e6},
        "Pendulum-v1": {
            "n_envs": 4,
            "n_timesteps": 1e5,
            "n_steps": 1024,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
        "LunarLanderContinuous-v3": {
            "n_envs": 16,
            "n_timesteps": 1e6,
            "n_steps": 1024,
            "batch_size": 64,
            "gae_lambda": 0.98,
            "gamma": 0.999,
            "n_epochs": 4,
            "ent_coef": 0.01,
        },
        "InvertedPendulumSwingupBulletEnv-v0": {
            "normalize": True,
            "n_envs": 8,
            "n_timesteps": 2e6,
            "n_steps": 2048,
            "batch_size": 64,
            "gae_lambda": 0.95,
            "gamma": 0.99,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 2.5e-4,
            "clip_range": 0.2,
        },
        "HalfCheetah-v4": {
            "normalize": True,
            "n_envs": 1,
            "n_timesteps": 1e6,
            "batch_size": 64,
            "n_steps": 512,
            "gamma": 0.98,
            "learning_rate": 2.0633e-05,
            "ent_coef": 0.000401762,
            "clip_range": 0.1,
            "n_epochs": 20,
            "gae_lambda": 0.92,
            "max_grad_norm": 0.8,
            "vf_coef": 0.58096,
            "policy_kwargs": {"log_std_init": -2, **_WIDE_RELU},
        },
        "Hopper-v4": {
            "normalize": True,
            "n_envs": 1,
            "n_timesteps": 1e6,
            "batch_size": 32,
            "n_steps": 512,
            "gamma": 0.999,
            "learning_rate": 9.80828e-05,
            "ent_coef": 0.00229519,
            "clip_range": 0.2,
            "n_epochs": 5,
            "gae_lambda": 0.99,
            "max_grad_norm": 0.7,
            "vf_coef": 0.835671,
            "policy_kwargs": {"log_std_init": -2, **_WIDE_RELU},
        },
        "InvertedDoublePendulum-v2": {
            "normalize": True,
            "n_envs": 1,
            "n_timesteps": 1e6,
            "batch_size": 512,
            "n_steps": 128,
            "gamma": 0.98,
            "learning_rate": 0.000155454,
            "ent_coef": 1.05057e-06,
            "clip_range": 0.4,
            "n_epochs": 10,
            "gae_lambda": 0.8,
            "max_grad_norm": 0.5,
            "vf_coef": 0.695929,
        },
        "InvertedPendulum-v2": {
            "normalize": True,
            "n_envs": 1,
            "n_timesteps": 1e6,
            "batch_size": 64,
            "n_steps": 32,
            "gamma": 0.999,
            "learning_rate": 0.000222425,
            "ent_coef": 1.37976e-07,
            "clip_range": 0.4,
            "n_epochs": 5,
            "gae_lambda": 0.9,
            "max_grad_norm": 0.3,
            "vf_coef": 0.19816,
        },
        "Reacher-v2": {
            "normalize": True,
            "n_envs": 1,
            "n_timesteps": 1e6,
            "batch_size": 32,
            "n_steps": 512,
            "gamma": 0.9,
            "learning_rate": 0.000104019,
            "ent_coef": 7.52585e-08,
            "clip_range": 0.3,
            "n_epochs": 5,
            "gae_lambda": 1.0,
            "max_grad_norm": 0.9,
            "vf_coef": 0.950368,
        },
        "Walker2d-v4": {
            "normalize": True,
            "n_envs": 1,
            "n_timesteps": 1e6,
            "batch_size": 32,
            "n_steps": 512,
            "gamma": 0.99,
            "learning_rate": 5.05041e-05,
            "ent_coef": 0.000585045,
            "clip_range": 0.1,
            "n_epochs": 20,
            "gae_lambda": 0.95,
            "max_grad_norm": 1,
            "vf_coef": 0.871923,
        },
    },
    "sac": {
        "default": {"n_timesteps": 1e6},
        "Pendulum-v1": {"n_timesteps": 20_000, "learning_rate": 1e-3},
        "LunarLanderContinuous-v3": _LANDER_SAC,
        "HalfCheetah-v4": _MUJOCO_SAC,
        "Hopper-v4": _MUJOCO_SAC,
        "Walker2d-v4": _MUJOCO_SAC,
        "ReacherBulletEnv-v0": {**_PYBULLET_SAC, "n_timesteps": 3e5},
        "InvertedDoublePendulumBulletEnv-v0": {**_PYBULLET_SAC, "n_timesteps": 5e5},
        "InvertedPendulumSwingupBulletEnv-v0": {**_PYBULLET_SAC, "n_timesteps": 3e5},
    },
    "td3": {
        "default": {
            "n_timesteps": 1e6,
            "train_freq": 1,
            "gradient_steps": 1,
            "noise_type": "normal",
            "noise_std": 0.1,
        },
        "Pendulum-v1": {**_LANDER_TD3, "n_timesteps": 20_000},
        "LunarLanderContinuous-v3": _LANDER_TD3,
        "HalfCheetah-v4": _MUJOCO_TD3,
        "Hopper-v4": _MUJOCO_TD3,
        "Walker2d-v4": _MUJOCO_TD3,
        "ReacherBulletEnv-v0": {**_PYBULLET_TD3, "n_timesteps": 3e5},
        "InvertedDoublePendulumBulletEnv-v0": _PYBULLET_TD3,
        "InvertedPendulumSwingupBulletEnv-v0": {**_PYBULLET_TD3, "n_timesteps": 3e5},
    },
    "tqc": {
        "default": {"n_timesteps": 1e6},
        "Pendulum-v1": {"n_timesteps": 20_000, "learning_rate": 1e-3},
        "LunarLanderContinuous-v3": _LANDER_SAC,
        "HalfCheetah-v4": _MUJOCO_SAC,
        "Hopper-v4": {**_MUJOCO_SAC, "top_quantiles_to_drop_per_net": 5},
        "Walker2d-v4": _MUJOCO_SAC,
        "ReacherBulletEnv-v0": {**_PYBULLET_SAC, "n_timesteps": 3e5},
        "InvertedDoublePendulumBulletEnv-v0": {**_PYBULLET_SAC, "n_timesteps": 5e5},
        "InvertedPendulumSwingupBulletEnv-v0": {**_PYBULLET_SAC, "n_timesteps": 3e5},
    },
    "crossq": {
        "default": {"n_timesteps": 1e6},
        "Pendulum-v1": {
            "n_timesteps": 20_000,
            "policy_delay": 2,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
        "LunarLanderContinuous-v3": {
            "n_timesteps": 2e5,
            "buffer_size": 1_000_000,
            "learning_starts": 10_000,
        },
        "HalfCheetah-v4": _MUJOCO_CROSSQ,
        "Hopper-v4": _MUJOCO_CROSSQ,
        "Walker2d-v4": _MUJOCO_CROSSQ,
        "HalfCheetahBulletEnv-v0": {
            "n_timesteps": 1e6,
            "learning_rate": 7.3e-4,
            "buffer_size": 300_000,
            "batch_size": 256,
            "ent_coef": "auto",
            "gamma": 0.98,
            "train_freq": 8,
            "gradient_steps": 8,
            "learning_starts": 10_000,
            "use_sde": True,
            "policy_kwargs": {"use_expln": True, "log_std_init": -3},
        },
    },
}
"""By algorithm and entry. ``lin_X`` falls linearly from X to zero over ``n_timesteps``."""

_FLYING = "LunarLanderContinuous-v3"
_NEAREST: Mapping[str, tuple[str, ...]] = {
    "pendulum": ("Pendulum-v1",),
    "cartpole_swingup": ("InvertedPendulumSwingupBulletEnv-v0", "HalfCheetahBulletEnv-v0"),
    "cartpole_balance": (
        "InvertedPendulum-v2",
        "InvertedPendulumSwingupBulletEnv-v0",
        "HalfCheetahBulletEnv-v0",
    ),
    "gym:InvertedPendulum-v5": (
        "InvertedPendulum-v2",
        "InvertedPendulumSwingupBulletEnv-v0",
        "HalfCheetahBulletEnv-v0",
    ),
    "double_pendulum": (
        "InvertedDoublePendulum-v2",
        "InvertedDoublePendulumBulletEnv-v0",
        "HalfCheetahBulletEnv-v0",
    ),
    "reacher": ("Reacher-v2", "ReacherBulletEnv-v0", "HalfCheetahBulletEnv-v0"),
    "arm7": ("Reacher-v2", "ReacherBulletEnv-v0", "HalfCheetahBulletEnv-v0"),
    "arm7_point": ("Reacher-v2", "ReacherBulletEnv-v0", "HalfCheetahBulletEnv-v0"),
    "payload_arm": ("Reacher-v2", "ReacherBulletEnv-v0", "HalfCheetahBulletEnv-v0"),
    "hopper": ("Hopper-v4",),
    "gym:HalfCheetah-v5": ("HalfCheetah-v4",),
    "gym:Hopper-v5": ("Hopper-v4",),
    "gym:Walker2d-v5": ("Walker2d-v4",),
    "gym:Ant-v5": ("HalfCheetah-v4",),
    "gym:Humanoid-v5": ("HalfCheetah-v4",),
    "gym:Reacher-v5": ("Reacher-v2", "ReacherBulletEnv-v0", "HalfCheetahBulletEnv-v0"),
    "gym:InvertedDoublePendulum-v5": (
        "InvertedDoublePendulum-v2",
        "InvertedDoublePendulumBulletEnv-v0",
        "HalfCheetahBulletEnv-v0",
    ),
    "rocket_landing": (_FLYING,),
    "quadrotor_planar": (_FLYING,),
    "quadrotor": (_FLYING,),
    "quadrotor_eight": (_FLYING,),
}
_SAME = {
    "pendulum",
    "gym:HalfCheetah-v5",
    "gym:Hopper-v5",
    "gym:Walker2d-v5",
    "gym:InvertedPendulum-v5",
    "gym:InvertedDoublePendulum-v5",
    "gym:Reacher-v5",
    "reacher",
}


class ZooEntry(NamedTuple):
    """Settings for a task, and where they come from."""

    name: str
    same_task: bool
    """Whether the entry is that of the task, of whatever version; else it is the nearest that there is."""
    settings: Mapping[str, Any]

    @property
    def source(self) -> str:
        kind = "entry" if self.same_task else "no entry for this task, the nearest is"
        return f"{SOURCE}: {kind} {self.name}"


def entry(algorithm: str, task: str) -> ZooEntry:
    """The Zoo's entry for a task, the nearest where it has none, and its ``default`` where none is near."""
    known = ENTRIES[algorithm]
    names = _NEAREST.get(task, ())
    name = next((name for name in names if name in known), "default")
    return ZooEntry(name, task in _SAME and name == names[0], known[name])
