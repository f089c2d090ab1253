"""When working sets pay, and how large they are.

The encoder of `skpudle.encoding._working_sets` computes the same codes whatever is decided here:
this is a model of costs. All are in operations of a large matrix product.
"""

from math import ceil

__all__ = ["Planner", "expected_dense_iterations", "pays"]

_EARLY = 16  # iterations that may pass before codes are sparse

# An entry of a batch of small matrices in a product with vectors, and an iteration inside working
# sets however small they are.
_ENTRY = {"cpu": 12, "cuda": 70}
_ITERATION = {"cpu": 5e6, "cuda": 1.5e9}
_CACHE = 2**22  # bytes of small matrices beyond which an entry costs twice as much on a CPU
# An entry of the Gram matrix that is gathered (or added to its counterpart in the derivative), an
# atom that is ranked, and a code that is looked at.
_GATHER = 800
_RANK = 1000
_LOOK = 300

_FULL = 0.5  # atoms that samples may use, as a fraction of the features
_FEW = 24  # samples whose time every dense iteration takes in addition to that of its own

_WORTHWHILE = 0.2  # what working sets must save, as a fraction of the dense iterations left
# What they may cost in vain, as a fraction of all dense iterations and of what they are hoped to
# save; and what looking for them may cost, of the iterations between two looks.
_WASTE = 0.03
_RISK = 0.1
_ATTENTION = 0.06
_SHORT_BLOCK = 3
_FIRST_BLOCK = 4
_FIRST_LIFE = 32  # iterations that first working sets can be expected to be good for
_LONGEST_BLOCK = 64


def pays(n_samples, n_components, n_features, n_unfoldings, device):
    """Return whether working sets may pay at all, so that it is worth looking at codes."""
    iteration = 2 * n_samples * n_components * min(n_components, 2 * n_features)
    enough = 8 * _ITERATION.get(device.type, _ITERATION["cuda"])
    return n_unfoldings > _EARLY and n_components >= 128 and iteration > enough


def _fall(levels):  # -> share that the levels lose in the end
    return 1 - (levels[-1].mean() / levels[0].mean()).nan_to_num_(1).clamp_(0, 1).item()


def expected_dense_iterations(levels):  # (n_unfoldings, ...) -> float
    """Return how many iterations cannot be expected to be sparse.

    Codes of levels that fall are sparse after some iterations, and become dense again.
    """
    return min(len(levels), _EARLY + _fall(levels) * len(levels) / 2)


class Planner:
    """Decides on working sets from the numbers of entries that samples need.

    A size is chosen for what it saves over the iterations to come. While codes still become sparser
    quickly it pays to wait, and what working sets may cost in vain is limited.

    Parameters
    ----------
    steps : Steps
        The dense steps that are to be saved.
    levels : Tensor of shape (n_unfoldings, ...)
        What iterations shrink by: where that falls, codes become dense again.
    forced : bool
        Whether to use working sets wherever possible, paying or not.
    """

    def __init__(self, steps, levels, *, forced):
        device, n_unfoldings = steps.x.device.type, len(levels)
        self._steps, self._n_unfoldings, self._forced = steps, n_unfoldings, forced
        self._grows = _fall(levels) > 0
        self._device = device if device in _ENTRY else "cuda"
        self._ways = 2 if steps.adjoint else 1  # there, and back
        self._everything = n_unfoldings * len(steps.x) * steps.cost
        self._budget = _WASTE * self._everything
        self._before = None  # when codes were last looked at, and the sizes then
        self._pause = 4
        self._cost = 0  # of working sets that are not yet known to be good
        self._warm = False  # whether a block has succeeded
        self._n_inside, self._n_setups = _FIRST_LIFE, 1  # iterations and working sets so far
        # of looks at codes
        look = _LOOK * len(steps.atoms) + 6 * _ITERATION[self._device] / len(steps.x)
        self._interval = max(1, int(look / (_ATTENTION * steps.cost)))
        self.next_look = 1 if forced else max(2, self._interval)
        self.block_length = _FIRST_BLOCK

    def size(self, need):
        """Return the size of working sets for samples that need up to ``need`` entries."""
        if self._forced:  # small ones, which fail often
            return min(len(self._steps.atoms), int(1.25 * need) + 2)
        room = 2 if self._grows else 1.25
        return min(len(self._steps.atoms), 16 * ceil((room * need + 16) / 16))

    def setup(self, size):
        """Return what a working set costs, for either direction."""
        _, n_features = self._steps.atoms.shape
        # without the Gram matrix atoms are gathered, which takes as long as their products
        entry = 4 * n_features if self._steps.transition is None else _GATHER
        return entry * size**2 + _RANK * len(self._steps.atoms) / 2

    def iteration(self, size, n_rows):
        """Return what an iteration of a sample costs inside a working set."""
        entry = _ENTRY[self._device]
        if self._device == "cpu" and n_rows * size**2 * self._steps.x.element_size() > _CACHE:
            entry *= 2
        return self._ways * (entry * size**2 + _ITERATION[self._device] / n_rows)

    def _gain(self, size, n_rows, n_left):
        block = self.iteration(size, n_rows) + self._steps.push_cost / self.block_length
        setups = max(1, n_left * self._n_setups / self._n_inside)
        gain = n_left * (self._steps.cost - block) - setups * self._ways * self.setup(size)
        n_rest = len(self._steps.x) - n_rows
        return n_rows * gain - n_left * self._steps.cost * (self._rows(n_rest) - n_rest)

    def _rows(self, n_rest):  # -> what fewer samples cost, in samples of a whole batch
        n_samples = len(self._steps.x)
        return n_samples * (n_rest + _FEW) / (n_samples + _FEW) if n_rest else 0

    def choose(self, counts, needs, t):
        """Return how many samples get working sets and of what size, or zeros.

        Parameters
        ----------
        counts : list of int
            Numbers of samples, in increasing order.
        needs : list of float
            How many entries that many samples need at most.
        t : int
            The iteration.
        """
        n_left = self._n_unfoldings - t
        self.next_look = t + 1 if self._forced else t + max(self._interval, t // 4)
        # Gram matrices of more atoms are close to singular, and rounding adds up in the directions
        # that they hardly see, where the atoms themselves keep it out
        most = _FULL * self._steps.atoms.shape[1]
        sizes = {n: self.size(need) for n, need in zip(counts, needs, strict=True) if need <= most}
        if not sizes:
            return 0, 0
        if self._forced:
            n_rows = max(sizes)
            return n_rows, sizes[n_rows]
        gain, n_rows = max((self._gain(size, n, n_left), n) for n, size in sizes.items())
        size, before, self._before = sizes[n_rows], self._before, (t, sizes)
        self._cost = n_rows * self.setup(size)
        least = max(2 * _WASTE, _WORTHWHILE * n_left / self._n_unfoldings) * self._everything
        if gain < least or self._cost > self._budget + _RISK * gain:
            return 0, 0
        # the size that was needed before, if samples were sparse enough for one
        then = None if before is None or self._warm else before[1].get(n_rows)
        if then is not None:
            later = size * min(1, size / then) ** (1 / (t - before[0]))
            if self._gain(later, n_rows, n_left - 1) > gain:
                self.next_look = t + self._interval
                return 0, 0
        self._n_setups += 1
        return n_rows, size

    def look_back(self, needs, size, t):
        """Return how many iterations before ``t`` to include on the way back, and the size then.

        ``needs`` are the entries that samples need at most for one, two, ... of them.
        """
        n_left, sizes = self._n_unfoldings - t, [size]
        for need in needs:
            sizes.append(max(sizes[-1], min(len(self._steps.atoms), 16 * ceil(need / 16))))
        if self._forced:
            return min(len(needs), 3), sizes[min(len(needs), 3)]
        pull_cost = self._steps.cost - self._steps.push_cost

        def cost(n_back):
            inside = self.iteration(sizes[n_back], len(self._steps.x))
            return 2 * self.setup(sizes[n_back]) + n_left * inside - n_back * pull_cost

        n_back = min(range(len(sizes)), key=cost)
        return n_back, sizes[n_back]

    def best_length(self, counts, size):
        """Return how many iterations of a block to keep.

        ``counts`` are the numbers of samples for which one, two, ... are certified. More iterations
        share the cost of a dense product and of new working sets; other samples are done densely.
        """
        n_samples = len(self._steps.x)
        start = n_samples * (self._steps.push_cost + self.setup(size))

        def cost(length):  # of an iteration
            return self._rows(n_samples - counts[length - 1]) * self._steps.cost + start / length

        return min((n for n in range(len(counts), 0, -1) if counts[n - 1]), key=cost)

    def extend(self):
        """Take note that a block was certified by the first bound."""
        self.block_length = min(2 * self.block_length, _LONGEST_BLOCK)

    def finish(self, t, length, whole, need, size, n_rows):
        """Take note of a block and return whether to go on with its working sets.

        Parameters
        ----------
        t : int
            Where it ended.
        length : int
            How many iterations it had.
        whole : bool
            Whether all that were tried are certified for all samples.
        need, size, n_rows : int
            How many entries samples use at most by now, the size of working sets, their number.
        """
        n_left = self._n_unfoldings - t
        self._n_inside += length
        longer = length + ceil(length / 2) if whole else max(_FIRST_BLOCK, length)
        self.block_length = min(longer, _LONGEST_BLOCK)
        wasted, self._cost = self._cost, 0
        if wasted and not whole and length < _SHORT_BLOCK and not self._forced:
            self._budget -= wasted
            self.next_look, self._pause = t + self._pause, 3 * self._pause
            return False
        self._warm, self._pause = True, 4
        # others may be sparse by now, too
        self.next_look = t if n_rows == len(self._steps.x) else t + max(self._interval, 2 * length)
        smaller = self.size(need)
        saved = self.iteration(size, n_rows) - self.iteration(smaller, n_rows)
        return whole and n_left * saved < 2 * self._ways * self.setup(smaller)
