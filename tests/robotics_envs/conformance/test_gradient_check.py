"""The check of gradients: rounding of large outputs is no fault, a wrong gradient is."""

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError, gradcheck

from robotics_envs.conformance.gradients import _checked


def test_rounding_of_large_outputs_is_no_complaint():
    x = torch.linspace(0.1, 2.0, 20, dtype=torch.float64, requires_grad=True)

    def constant(x):
        return 3e5 * (x.sin().square() + x.cos().square())

    with pytest.raises(GradcheckError):
        gradcheck(constant, [x])
    _checked(constant, [x], fast_mode=False)
    with pytest.raises(GradcheckError):
        _checked(lambda x: 3e5 * (x.sin().square() + x.detach().cos().square()), [x], fast_mode=False)
