"""Optimizers that need values only: many candidates a step, all of them in one batch of rollouts."""
