"""Open-loop rollouts of simulators outside of torch that compute whole windows in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsim.rollouts.inputs import Inputs, Outcome
from diffsim.rollouts.stepwise import Unrolled


class Windows(Unrolled):
    """``Env.window``, one node of autograd's graph.

    What acts between control intervals (marked failures, cut and bounded gradients) goes interval by interval.
    """

    def unrolled(self, inputs: Inputs, mark: bool = False) -> tuple[Outcome, Tensor | None]:
        if mark or inputs.truncate or inputs.costate_bound is not None:
            return super().unrolled(inputs, mark)
        return self._window(inputs, True), None

    def _forward(self, inputs: Inputs, keep_states: bool) -> Outcome:
        return self._window(inputs, keep_states)

    def _window(self, inputs: Inputs, keep_states: bool) -> Outcome:
        assert isinstance(inputs.controls, Tensor)
        states, costs = inputs.env.window(inputs.x0, inputs.controls, inputs.p)
        last = states[-1] if keep_states else torch.clone(states[-1])
        values = None if inputs.terminal is None else inputs.value(last)
        return Outcome(states if keep_states else None, last, costs, values)
