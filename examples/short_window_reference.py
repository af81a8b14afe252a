"""``short_window`` of diffsim in plain torch, from top to bottom: short windows with a critic at their ends.

    python examples/short_window_reference.py pendulum 100

It imports the simulator and torch, nothing of the trainer, whose ``--algorithm short_window --set backend=eager``
computes the same numbers to the last bit (tests/diffsim/algorithms/test_reference.py compares them).  The trainer has
more: compiled rollouts, any optimizer, checkpoints, other devices; see diffsim/algorithms/short_window.py.

The idea: the gradient of a long simulation is noisy and can explode, that of a few control intervals is neither.  So
the policy is rolled out over short windows, a critic estimates the cost from the end of a window on, and the gradient
of their sum goes back through the critic, the simulator and the policy.  This is close to SHAC (Xu et al.,
"Accelerated Policy Learning with Parallel Differentiable Simulation", ICLR 2022, arXiv 2204.07137).
"""

import copy
import sys
from typing import Any

import torch
from torch import Tensor, nn

from robotics_envs import make_env

BATCH, WINDOW = 256, 4  # windows per update, control intervals per window
GAMMA = 0.97  # discount per control interval
NOISE_STD = 0.4  # of the noise on actions, in half ranges of the action box
CONTINUING, SURVIVAL, REACH = 0.75, 0.95, 1.5  # which windows continue the last ones, see 1. below
LEARNING_RATE, BETAS = 5e-3, (0.7, 0.95)  # of Adam, for policy and critic; it falls linearly to zero
TD_LAMBDA = 0.8
CRITIC_MINIBATCHES, CRITIC_BATCH = 8, 256  # per update, and states in each
CRITIC_WINDOWS = 2  # the critic learns from the windows of so many updates
TAU = 0.2  # the target network moves by this fraction towards the critic
NORMALIZER_RATE = 0.2  # and the critic's mean and scale towards those of the newest targets


class ProjectedClip(torch.autograd.Function):
    """Clamp to [-1, 1] whose gradient is zero only where descent would leave the bounds further.

    The derivative of a plain clamp is zero outside, so an action that once saturates would stay there.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return v.clamp(-1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient * ((v.abs() < 1.0) | (v * gradient > 0.0))


def tanh_network(inputs: int, outputs: int, seed: int) -> nn.Sequential:
    """Two hidden layers of 64; orthogonal weights (Saxe et al., arXiv 1312.6120), of the last layer a tenth."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)]
        for layer, gain in zip(layers[::2], (1.0, 1.0, 0.1), strict=True):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def train(simulator: str, updates: int, seed: int = 0) -> tuple[Any, ...]:
    """Train a policy; returns policy, critic, target network, the critic's mean and scale, and every update's loss.

    Shapes below: B windows, T control intervals, n states.
    """
    env = make_env(simulator)
    p = env.params(torch.zeros(()))  # physical parameters
    generator = torch.Generator().manual_seed(seed)

    # Observations are standardised by their mean and standard deviation over the simulator's box of states.
    drawn = env.observe(env.state_box.sample(4096, torch.Generator().manual_seed(0), torch.float64))
    mean, std = drawn.mean(dim=0).float(), drawn.std(dim=0)
    scale = torch.where(std > 0, std, 1.0).float()

    def observed(x: Tensor) -> Tensor:
        return (env.observe(x) - mean) / scale

    low, high = env.state_box.bounds(mean)
    middle, half_size = (low + high) / 2, (high - low) / 2
    is_angle = torch.tensor([name in env.angle_names for name in env.state_names])
    low, high = env.action_box.bounds(mean)
    centre, half_range = (low + high) / 2, (high - low) / 2

    policy = tanh_network(len(mean), len(centre), seed)
    critic = tanh_network(len(mean), 1, seed + 1)
    target = copy.deepcopy(critic).requires_grad_(False)  # a slowly moving copy, from which values are read
    critic_mean, critic_scale = torch.zeros(()), torch.zeros(())  # V(z) = mean + scale * network(z)
    policy_adam, critic_adam = (
        torch.optim.Adam(q.parameters(), betas=BETAS, fused=True) for q in (policy, critic)
    )
    discounts = GAMMA ** torch.arange(WINDOW + 1, dtype=torch.float32).unsqueeze(-1)  # [T+1, 1]
    ends: Tensor | None = None  # the last states of the last windows, [B, n]
    data: list[tuple[Tensor, Tensor]] = []  # observations and targets of the last windows, for the critic
    losses: list[float] = []

    for update in range(updates):
        for optimizer in (policy_adam, critic_adam):
            optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1.0 - update / updates)

        # 1. Starts [B, n]: three quarters of the windows continue where the last ones ended, unless the episode is
        # over, the state is far outside the box, or chance (5 %) decides otherwise.  The others start in the box.
        x = env.state_box.sample(BATCH, generator)
        if ends is not None:
            near = (((ends - middle).abs() <= REACH * half_size) | is_angle).all(dim=-1)
            continues = near & (torch.rand(BATCH, generator=generator) < SURVIVAL) & ~env.done(ends)
            continues[round(BATCH * CONTINUING) :] = False
            x = torch.where(continues.unsqueeze(-1), ends, x)
        noise = NOISE_STD * torch.randn(WINDOW, BATCH, len(centre), generator=generator)

        # 2. Rollouts: states [T+1, B, n] and costs [T, B].
        states, costs = [x], []
        for t in range(WINDOW):
            action = policy(observed(x)) + noise[t]
            x, cost = env.step(x, centre + half_range * ProjectedClip.apply(action), p)
            states.append(x)
            costs.append(cost)

        # 3. Loss: discounted costs and the discounted value at the end, in units of the critic's scale.  Nothing
        # counts after the end of an episode.  Before the first fit there are no values.
        over = torch.stack([env.done(q) for q in states])
        alive = (~over).float().cumprod(dim=0)
        terms = discounts[:-1] * alive[:-1] * torch.stack(costs)
        if critic_scale == 0:
            cost_std = torch.stack(costs).detach().std()
            terms = terms / torch.where(cost_std > 0, cost_std, 1.0)
        else:
            value = critic_mean + critic_scale * target(observed(x)).squeeze(-1)
            terms = torch.cat((terms, (discounts[-1] * alive[-1] * value).unsqueeze(0))) / critic_scale
        loss = terms.sum(dim=0).mean()
        losses.append(loss.item())

        # 4. One step of the policy.  An update whose numbers are not finite is dropped.
        policy_adam.zero_grad()
        loss.backward()
        gradients = torch.cat([q.grad.flatten() for q in policy.parameters()])
        if not (loss.isfinite() and gradients.isfinite().all()):
            ends, data = None, []
            continue
        policy_adam.step()

        # 5. One fit of the critic to TD(lambda) targets (Sutton and Barto, 2nd ed., §12.1).
        with torch.no_grad():
            ends = x.detach()
            z = observed(torch.stack(states).flatten(0, 1)).unflatten(0, (WINDOW + 1, BATCH))
            values = critic_mean + critic_scale * target(z[1:]).squeeze(-1)
            targets, to_go = torch.empty_like(values), values[-1]
            for t in reversed(range(WINDOW)):
                to_go = costs[t] + GAMMA * (~over[t + 1]).float() * torch.lerp(values[t], to_go, TD_LAMBDA)
                targets[t] = to_go
            data = [*data, (z[:-1].flatten(0, 1), targets.flatten())][-CRITIC_WINDOWS:]

            # Mean and scale follow the targets; the last layers change so that no value does (PopArt; van Hasselt et
            # al., arXiv 1602.07714).
            new_mean, new_scale = targets.mean(), targets.std(correction=0)
            new_scale = torch.where(new_scale > 0, new_scale, 1.0)
            if critic_scale > 0:
                new_mean = torch.lerp(critic_mean, new_mean, NORMALIZER_RATE)
                new_scale = torch.lerp(critic_scale, new_scale, NORMALIZER_RATE)
                for last in (critic[-1], target[-1]):
                    last.weight.mul_(critic_scale / new_scale)
                    last.bias.mul_(critic_scale / new_scale).add_((critic_mean - new_mean) / new_scale)
            critic_mean, critic_scale = new_mean, new_scale
        inputs, outputs = map(torch.cat, zip(*data, strict=True))
        outputs = ((outputs - critic_mean) / critic_scale).unsqueeze(-1)
        per_pass = max(len(inputs) // CRITIC_BATCH, 1)
        for minibatch in range(CRITIC_MINIBATCHES):
            if minibatch % per_pass == 0:  # shuffle before each pass over the data
                order = torch.randperm(len(inputs), generator=generator)
                inputs, outputs = inputs[order], outputs[order]
            rows = slice(minibatch % per_pass * CRITIC_BATCH, (minibatch % per_pass + 1) * CRITIC_BATCH)
            critic_adam.zero_grad()
            nn.functional.mse_loss(critic(inputs[rows]), outputs[rows]).backward()
            critic_adam.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
                slow.lerp_(fast, TAU)

    return policy, critic, target, critic_mean, critic_scale, losses


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums that are split over threads round differently
    _, simulator, updates = sys.argv
    for number, loss in enumerate(train(simulator, int(updates))[-1], start=1):
        print(f"update {number}: loss {loss:.4f}")
