"""Robots from files: MJCF and URDF become simulators with MuJoCo's own physics, contacts and gradients included."""
