import math

import h5py
import pytest
import torch
from first_format import write_entry_by_entry
from same_state import same

from diffsim import state_tree


def round_trip(tmp_path, value):
    with h5py.File(tmp_path / "state.h5", "w") as file:
        state_tree.write(file, "state", value)
    with h5py.File(tmp_path / "state.h5") as file:
        return state_tree.read(file["state"])


def test_nested_states_come_back_as_they_were(tmp_path):
    state = {
        "tensors": [torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor(7)],
        0: {"step": torch.tensor(3.0), "nothing": None},
        "a/key with/slashes": (1, 2.5, "text", True, None),
        "tiny": 5e-324,
        "big": 2**200,
        "tenth": 0.1,
        "infinite": math.inf,
        "empty": {},
        "none": [],
    }
    assert same(state, round_trip(tmp_path, state))


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool],
)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_tensors_of_every_dtype_and_shape(tmp_path, dtype, shape):
    tensor = torch.ones(shape).mul(3.14).to(dtype)
    assert same(tensor, round_trip(tmp_path, tensor))


def test_nan_and_negative_zero_keep_their_bits(tmp_path):
    back = round_trip(tmp_path, torch.tensor([math.nan, -0.0]))
    assert back[0].isnan()
    assert math.copysign(1, float(back[1])) == -1


def test_views_and_gradients_are_stored_as_values(tmp_path):
    tensor = torch.arange(6.0).view(2, 3).t().requires_grad_()
    assert same(tensor.detach(), round_trip(tmp_path, tensor))
    column = torch.ones(4, 3)[:0, 0]  # no numbers, 3 apart
    assert same(column, round_trip(tmp_path, column))


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"cannot store a set at /state/0"):
        round_trip(tmp_path, {"a": {1, 2}})


def test_a_generator_goes_on_where_it_was(tmp_path):
    generator = torch.Generator().manual_seed(5)
    torch.rand(3, generator=generator)
    state = round_trip(tmp_path, generator.get_state())
    expected = torch.rand(4, generator=generator)
    generator.set_state(state)
    assert torch.equal(torch.rand(4, generator=generator), expected)


OLD = {
    "tensors": [torch.arange(6.0).reshape(2, 3), torch.tensor(7), torch.ones(2, dtype=torch.bfloat16)],
    0: {"step": torch.tensor(3.0), "nothing": None},
    "a/key with/slashes": (1, 2.5, "text", True, None),
    "infinite": math.inf,
    "empty": {},
    "none": [],
}


def test_states_of_the_first_format_are_read(tmp_path):
    with h5py.File(tmp_path / "state.h5", "w") as file:
        write_entry_by_entry(file, "state", OLD)
        assert same(state_tree.read(file["state"]), OLD)


def test_a_packed_state_is_smaller_than_one_of_the_first_format(tmp_path):
    sizes = []
    for write in (write_entry_by_entry, state_tree.write):
        with h5py.File(tmp_path / f"{len(sizes)}.h5", "w") as file:
            write(file, "state", OLD)
        sizes.append((tmp_path / f"{len(sizes)}.h5").stat().st_size)
    assert sizes[1] < sizes[0]


def test_tensors_share_no_memory_with_each_other_or_the_state(tmp_path):
    one, two = round_trip(tmp_path, [torch.zeros(3), torch.zeros(3)])
    one.add_(1.0)
    assert two.tolist() == [0.0, 0.0, 0.0]
    assert one.untyped_storage().nbytes() == 12
