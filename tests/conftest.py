import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As runs do: at the sizes of these tests a second thread only waits for the first."""
    torch.set_num_threads(1)
