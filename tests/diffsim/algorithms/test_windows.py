"""What algorithms on short windows share."""

import pytest
import torch

from diffsim.algorithms.windows import never_ends, not_ended, td_lambda
from robotics_envs import make_env


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_td_lambda_is_the_average_of_all_returns_of_n_steps(share, device):
    """Against the sum over n of (1 - lambda) lambda^(n - 1) times the n-step return, the last with the rest."""
    generator = torch.Generator().manual_seed(0)
    costs, discounts, values = torch.rand(3, 5, 7, generator=generator, dtype=torch.float64)
    discounts[2, :3] = 0.0  # where an episode ends
    if device == "meta":  # computed by torch: only the shape is known
        found = td_lambda(*(q.to(device) for q in (costs, discounts, values)), share)
        assert found.shape == (5, 7)
        return
    expected = torch.zeros(5, 7, dtype=torch.float64)
    for t in range(5):
        total, weight = torch.zeros(7, dtype=torch.float64), torch.ones(7, dtype=torch.float64)
        for n in range(1, 5 - t + 1):
            total = total + weight * costs[t + n - 1]
            weight = weight * discounts[t + n - 1]
            part = share ** (n - 1) * (1.0 if n == 5 - t else 1 - share)
            expected[t] += part * (total + weight * values[t + n - 1])
    found = td_lambda(costs, discounts, values, share)
    assert torch.allclose(found, expected, rtol=1e-13)


def test_whether_a_simulator_has_ends_is_known_without_asking_for_states():
    pendulum, hopper = make_env("pendulum"), make_env("double_pendulum")
    assert (never_ends(pendulum), never_ends(hopper)) == (True, False)
    pendulum.done = lambda x: x[:, 0] > 0
    assert not never_ends(pendulum)
    states = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert not_ended(pendulum, states).tolist() == [[0.0, 1.0]]
