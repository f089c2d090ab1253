"""When working sets pay, and how large they are.

The encoder of `skpudle.encoding._working_sets` computes the same codes whatever is decided here.

A dense iteration of a sample and its adjoint take ``6 p^2`` operations of a large product, or less
where zeros are left out of it (`skpudle.encoding._products`), and one in a working set of ``k``
atoms 24 ``k^2``, since products of small matrices with vectors run at a twelfth of that speed (2
CPU cores, float32). What costs are the matrices of the sets: ``4 m k^2`` operations, from the
atoms. Where a dense iteration takes ``4 m p``, waiting for smaller sets pays until ``k^2`` is a few
times ``p``, as long as codes become sparser. With n = 50, m = 1000, p = 1500, T = 100, sets of at
most p / 8, p / 12, p / 18 and p / 30 took 219, 185, 178 and 174 ms (soft shrinkage), 122, 122, 121
and 177 ms (hard shrinkage, whose codes have 50 entries at first), and 193, 188, 264 and 181 ms with
T = 1000 (soft shrinkage).
"""

from math import ceil

__all__ = ["EARLY", "Plan", "pays"]

# Iterations that may pass before codes are sparse (measured where p = 1500 and p = 512: 7 to 16).
EARLY = 16
# What an iteration in working sets takes however small they are, in operations: 20 calls of torch.
_CALLS = 5e6
# The same on a device, 20 launches of 5 microseconds at 50 TFLOP/s (not measured); and each block
# has the host wait.
_CALLS_ON_DEVICE = 5e9
# In an update with n = 50, m = 1000, p = 1500, T = 100 a first block of 8 takes up to 1.15 times as
# long.
_FIRST_BLOCK, _LONGEST_BLOCK = 4, 64
# Sets with room for atoms that are yet to come: for the same problem 1.1 times the need and 8 takes
# 1.5 times as long, 1.5 times the need and 16 1.1 times.
_ROOM, _LEAST_ROOM = 1.25, 16
_SHORT_BLOCK = 3  # takes as long as dense iterations, with the product that certifies it


def pays(n_samples, n_components, n_features, n_unfoldings, *, on_cpu=True):
    """Return whether working sets may pay at all, so that it is worth looking at codes."""
    calls = _CALLS if on_cpu else _CALLS_ON_DEVICE
    iteration = 2 * n_samples * n_components * min(n_components, 2 * n_features)
    return n_unfoldings > EARLY and n_components >= 128 and iteration > 8 * calls


class Plan:
    """Decides on working sets from the numbers of atoms that samples need.

    Parameters
    ----------
    n_components, n_features : int
        Shape of the dictionary.
    forced : bool
        Whether to use working sets wherever possible, small ones that fail often.
    """

    def __init__(self, n_components, n_features, *, forced):
        self._n_components, self._forced = n_components, forced
        # Gram matrices of more atoms are close to singular, and rounding adds up in the directions
        # that they hardly see, where the atoms themselves keep it out
        self._most = n_components if forced else min(n_features / 2, n_components / 12)
        self._pause = _FIRST_BLOCK
        self.next_look = 1 if forced else 2
        self.block_length = _FIRST_BLOCK

    def size(self, need):
        """Return how many atoms the sets have for samples that need up to so many."""
        room = 2 if self._forced else _LEAST_ROOM
        step = 1 if self._forced else 16
        return min(self._n_components, step * ceil((_ROOM * need + room) / step))

    def enters(self, need, t):
        """Return whether to set out from iteration ``t``, and plan the next look."""
        self.next_look = t + 1 if self._forced else t + max(1, t // 4)
        return self.size(need) <= self._most

    def extend(self):
        """Take note that a block was certified by the first bound."""
        self.block_length = min(2 * self.block_length, _LONGEST_BLOCK)

    def goes_on(self, t, length, whole, need, size):
        """Take note of a block and return whether to go on with its working sets.

        Parameters
        ----------
        t : int
            Where it ended.
        length : int
            How many iterations it had.
        whole : bool
            Whether all that were tried are certified.
        need, size : int
            How many atoms samples use at most by now, and the size of the sets.
        """
        if whole:
            self.extend()
        else:
            self.block_length = max(_FIRST_BLOCK, length)
        if not whole and length < _SHORT_BLOCK and not self._forced:
            self.next_look, self._pause = t + self._pause, 3 * self._pause
            return False
        self.next_look, self._pause = t, _FIRST_BLOCK
        return whole and size < 2 * self.size(need)  # smaller ones would cost a fourth
