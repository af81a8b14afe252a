"""Where modules of this package were in version 0.1.0, and where they are."""

MOVED = {
    "robotics_envs": {
        "acrobot": "robotics_envs.simulators.acrobot",
        "arm7": "robotics_envs.simulators.arm7",
        "arm7_point": "robotics_envs.simulators.arm7_point",
        "capsule": "robotics_envs.mechanics.capsule",
        "car": "robotics_envs.simulators.car",
        "cartpole_balance": "robotics_envs.simulators.cartpole_balance",
        "cartpole_swingup": "robotics_envs.simulators.cartpole_swingup",
        "double_pendulum": "robotics_envs.simulators.double_pendulum",
        "gym_adapter": "robotics_envs.adapters.gym_adapter",
        "heat_rod": "robotics_envs.simulators.heat_rod",
        "hopper": "robotics_envs.simulators.hopper",
        "joint_limit": "robotics_envs.mechanics.joint_limit",
        "orbit_transfer": "robotics_envs.simulators.orbit_transfer",
        "pendulum": "robotics_envs.simulators.pendulum",
        "quadrotor": "robotics_envs.simulators.quadrotor",
        "quadrotor_eight": "robotics_envs.simulators.quadrotor_eight",
        "quadrotor_planar": "robotics_envs.simulators.quadrotor_planar",
        "quaternions": "robotics_envs.mechanics.quaternions",
        "reacher": "robotics_envs.simulators.reacher",
        "reactor": "robotics_envs.simulators.reactor",
        "rocket_landing": "robotics_envs.simulators.rocket_landing",
        "satellite": "robotics_envs.simulators.satellite",
        "sb3_adapter": "robotics_envs.adapters.sb3_adapter",
        "trebuchet": "robotics_envs.simulators.trebuchet",
    }
}
