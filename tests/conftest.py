import pytest
import torch
from jaxtyping import install_import_hook

# Without the checker: arithmetic that states no shapes and is called ten thousands of times.
import robotics_envs.robots.scalars  # noqa: F401

# Before anything imports the packages: from here on every stated shape is checked at each call.
install_import_hook(("solvers", "robotics_envs", "diffsim"), "shape_checker.check")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As runs do: at the sizes of these tests a second thread only waits for the first."""
    torch.set_num_threads(1)
