"""Optimizers that use values only: each step evaluates many candidates in one batch of rollouts."""
