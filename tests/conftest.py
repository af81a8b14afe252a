import os

import pytest
import torch
from shape_checker import install

# Tests replace functions and constants that traces depend on: none is kept, except where a test is about that.
os.environ["DIFFSIM_TRACES"] = "0"

# Without the checker: arithmetic that states no shapes and is called ten thousands of times.
import robotics_envs.robots.scalars  # noqa: F401

# Before anything imports the packages: from here on every stated shape is checked at each call.
install(("solvers", "robotics_envs", "diffsim"))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As runs do: at the sizes of these tests a second thread only waits for the first."""
    torch.set_num_threads(1)
