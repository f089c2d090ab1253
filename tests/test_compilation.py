import threading

import pytest
import torch

from skpudle._compilation import in_parts


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("n", [0, 1, 7, 100])
@pytest.mark.parametrize("least", [1, 5, 1000])
def test_every_member_is_in_one_part(n, least, n_threads):
    parts, lock = [], threading.Lock()

    def record(first, last):
        with lock:
            parts.append((first, last))

    in_parts(record, n, least)
    assert sorted(i for first, last in parts for i in range(first, last)) == list(range(n))
    assert all(last - first >= least for first, last in sorted(parts)[:-1])


def test_what_a_part_raises_is_raised(n_threads):
    def fail(first, last):
        if last == 40:
            raise KeyError(first)

    with pytest.raises(KeyError):
        in_parts(fail, 40, 1)
