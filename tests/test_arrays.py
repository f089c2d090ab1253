"""The boundary between NumPy and torch: nothing is lost, shared by accident, or let through."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from skpudle._data.arrays import (
    check_rows,
    host_array,
    like_input,
    make_generator,
    resolve_device,
    to_numpy,
    to_tensor,
)


@pytest.fixture
def array():
    return np.random.default_rng(0).normal(size=(5, 3))


def read_only(array):
    array.flags.writeable = False
    return array


LAYOUTS = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "read-only": read_only,
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_array_comes_back_from_torch_as_it_was(dtype, layout, array, device):
    array = layout(array.astype(dtype))
    tensor = to_tensor(array, device)
    assert tensor.device.type == device
    back = to_numpy(tensor)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, array)


def test_a_writeable_array_shares_its_memory(array):
    assert to_tensor(array).data_ptr() == array.ctypes.data


def test_a_read_only_array_is_copied(array):
    """Torch cannot protect it, and warns where it is not."""
    assert to_tensor(read_only(array)).data_ptr() != array.ctypes.data


def test_a_tensor_stays_itself(array):
    tensor = torch.from_numpy(array)
    assert to_tensor(tensor) is tensor


def test_what_becomes_numpy_is_independent_of_the_tensor(array):
    tensor = torch.from_numpy(array).clone().requires_grad_()
    back = to_numpy(tensor)
    with torch.no_grad():
        tensor.zero_()
    np.testing.assert_array_equal(back, array)


def test_zero_dimensions_pass_both_ways():
    """The step count of an optimiser is such a tensor."""
    there = to_numpy(torch.tensor(3.0))
    assert isinstance(there, np.ndarray)
    assert to_tensor(there) == 3.0


def test_output_is_of_the_kind_of_the_input(array, device):
    tensor = torch.from_numpy(array)
    assert isinstance(like_input(tensor.to(device), array), np.ndarray)
    assert isinstance(like_input(tensor.to(device), pd.DataFrame(array)), np.ndarray)
    returned = like_input(tensor, tensor.to(device))
    assert isinstance(returned, torch.Tensor)
    assert returned.device.type == device


# ---------------------------------------------------------------------------- devices


def test_auto_follows_a_tensor(device):
    assert resolve_device("auto", torch.zeros(2, device=device)).type == device


def test_auto_is_the_cpu_where_there_is_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for X in (None, np.zeros(2), [[1.0]]):
        assert resolve_device("auto", X) == torch.device("cpu")


def test_auto_is_cuda_where_it_is_present(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto", np.zeros(2)).type == "cuda"
    assert resolve_device("auto", torch.zeros(2)).type == "cpu"


def test_a_device_is_taken_by_its_name(device):
    assert resolve_device(device).type == device
    assert resolve_device(device, torch.zeros(2)).type == device


@pytest.mark.parametrize("name", ["gpu", "", "cuda:97", "mps:7", "cpu:x"])
def test_an_unknown_device_is_named_next_to_those_available(name):
    with pytest.raises(ValueError, match=rf"Device '{name}' is .* pass 'auto' or one of \['cpu'"):
        resolve_device(name)


# ---------------------------------------------------------------------------- random numbers


def draw(random_state):
    return torch.rand(5, generator=make_generator(random_state)).tolist()


def test_the_same_seed_gives_the_same_numbers():
    assert draw(3) == draw(3) == draw(np.random.RandomState(3))
    assert draw(3) != draw(4)


def test_a_random_state_is_advanced():
    """Its second use differs from its first, as everywhere in scikit-learn."""
    shared = np.random.RandomState(3)
    assert draw(shared) != draw(shared)


# ---------------------------------------------------------------------------- validation

KINDS = {"array": np.asarray, "tensor": lambda rows: torch.tensor(np.asarray(rows))}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def make(request):
    return request.param


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floating_rows_keep_their_dtype(dtype, make, array):
    rows = check_rows(make(array.astype(dtype)))
    assert str(rows.dtype).endswith(dtype)
    np.testing.assert_array_equal(np.asarray(rows), array.astype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "int8", "int64", "uint8", "bool"])
def test_other_numbers_become_float64(dtype, make):
    rows = check_rows(make(np.array([[0, 1], [1, 1]], dtype=dtype)))
    assert str(rows.dtype).endswith("float64")
    assert rows.tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_brain_floating_point_becomes_float64():
    assert check_rows(torch.ones(2, 2, dtype=torch.bfloat16)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [">f8", ">f4"])
def test_rows_of_foreign_byte_order_become_tensors(dtype, array):
    tensor = to_tensor(check_rows(array.astype(dtype)))
    torch.testing.assert_close(tensor.double(), torch.from_numpy(array), rtol=1e-6, atol=0)


def test_kind_of_container_stays(make, array):
    assert isinstance(check_rows(make(array)), type(make(array)))


def test_lists_and_data_frames_become_arrays(array):
    for rows in (array.tolist(), pd.DataFrame(array)):
        np.testing.assert_array_equal(check_rows(rows), array)


def test_copies_are_made_on_demand(make, array, device):
    rows = make(array)
    if isinstance(rows, torch.Tensor):
        rows = rows.to(device)
    copied = check_rows(rows, copy=True)
    copied[:] = 0
    np.testing.assert_array_equal(to_numpy(to_tensor(rows)), array)


def test_the_graph_of_a_tensor_is_left_behind(array):
    assert not check_rows(torch.from_numpy(array).requires_grad_()).requires_grad


def test_a_tensor_may_be_one_that_is_negated_when_read(array):
    """As the imaginary part of a conjugate, which NumPy cannot look at."""
    lazy = torch.complex(torch.zeros(array.shape, dtype=torch.float64), torch.from_numpy(array))
    lazy = lazy.conj().imag
    assert lazy.is_neg()
    for found in (check_rows(lazy), to_numpy(lazy), host_array(lazy)):
        np.testing.assert_array_equal(np.asarray(found), -array)


def test_only_tensors_are_brought_to_the_host(array):
    assert host_array(array) is array
    assert isinstance(host_array(torch.from_numpy(array).requires_grad_()), np.ndarray)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_are_finite(bad, make, array, device):
    array[2, 1] = bad
    rows = make(array)
    if isinstance(rows, torch.Tensor):
        rows = rows.to(device)
    with pytest.raises(ValueError, match="NaN|infinity"):
        check_rows(rows)


def test_nan_alone_is_let_through_on_demand(make, array, device):
    array[2, 1] = np.nan
    rows = make(array)
    if isinstance(rows, torch.Tensor):
        rows = rows.to(device)
    assert np.isnan(to_numpy(to_tensor(check_rows(rows, allow_nan=True)))).sum() == 1
    rows[0, 0] = np.inf
    with pytest.raises(ValueError, match="infinity"):
        check_rows(rows, allow_nan=True)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros(3), "Expected 2D array, got 1D array"),
        (np.zeros((2, 2, 2)), "Found array with dim 3"),
        (np.zeros((0, 3)), r"0 sample\(s\)"),
        (np.zeros((3, 0)), r"0 feature\(s\)"),
        (np.ones((2, 2), dtype=complex), "Complex data not supported"),
    ],
    ids=["1-D", "3-D", "no samples", "no features", "complex"],
)
def test_rows_of_the_wrong_kind_are_refused(rows, message, make, device):
    rows = make(rows)
    if isinstance(rows, torch.Tensor):
        rows = rows.to(device)
    with pytest.raises(ValueError, match=message):
        check_rows(rows)


@pytest.mark.parametrize(
    "rows", [sparse.eye_array(3), torch.eye(3).to_sparse()], ids=["scipy", "torch"]
)
def test_sparse_rows_are_refused_with_a_way_out(rows):
    with pytest.raises(TypeError, match="dense"):
        check_rows(rows)


def test_objects_that_are_no_numbers_are_refused():
    with pytest.raises((TypeError, ValueError), match=r"dict|could not convert"):
        check_rows(np.array([[{}, 1.0]], dtype=object))
    with pytest.raises(ValueError, match="could not convert string to float"):
        check_rows(np.array([["a", 1.0]], dtype=object))


def test_the_estimator_is_named_in_the_message():
    with pytest.raises(ValueError, match="required by Learner"):
        check_rows(np.zeros((0, 3)), estimator="Learner")
