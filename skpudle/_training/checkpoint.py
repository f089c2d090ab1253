"""Checkpoints of training: who writes them when, and which fit may go on from them."""

import json
import os
import time
import warnings

import torch

from skpudle._data.callers import users_level
from skpudle._training.archive import (
    named_checkpoint,
    pack,
    read_checkpoint,
    remove_parts,
    unpack,
    write_checkpoint,
)
from skpudle._training.identity import data_of, parameters_of, plain
from skpudle._training.lock import FileLock
from skpudle._training.state import TrainingState
from skpudle.initialization import SearchState

__all__ = ["Checkpoint", "Recorder"]

# Parameters that may change between an interrupted fit and the one that goes on.
_FREE = {
    "device",
    "max_iter",
    "n_iter_no_change",
    "random_state",  # is compared where it is a number
    "split_sign",
    "tol",
    "transform_algorithm",
    "transform_alpha",
    "transform_n_nonzero_coefs",
    "transform_tol",
    "verbose",
}

_STORED = {"identity", "seed", "finished", "rule", "shared", "own"}


def _moved(tree, device):
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {name: _moved(value, device) for name, value in tree.items()}
    return [_moved(value, device) for value in tree] if isinstance(tree, list) else tree


def _check(state, atoms):
    """Raise ValueError if a state of training holds what training never makes."""
    states = [state["atoms"]] if state["finite"] is None else [state["atoms"], state["finite"][0]]
    if not all(torch.isfinite(found).all() for found in states):
        raise ValueError("its atoms are not finite")
    progress = state["progress"]
    counters = [state["n_updates"], progress["n_batches"], progress["n_samples"]]
    if not all(isinstance(n, int) and n >= 0 for n in counters):
        raise ValueError(f"its counters {counters} are not all natural numbers")
    if progress["unused"].shape != atoms.shape[:1]:
        raise ValueError(f"it counts the use of {len(progress['unused'])} of {len(atoms)} atoms")
    for generator in (state["generator"], progress["plan_state"]):
        if generator is not None:
            torch.Generator().set_state(generator.cpu())


class Checkpoint:
    """Write the state of training to a file, and go on from it.

    A callback for ``learner.set_callbacks(Checkpoint("fit.npz"))``. If the file exists, `fit` goes
    on from it, to the same bits as a fit that was never interrupted; after the end `fit` returns
    what was learned without training.

    Parameters
    ----------
    path : str or path-like
        The file, in a directory that exists. A link is followed, and a mode is kept.
    every_n_updates : int, default=None
        Write after at least so many updates; rounded up to rounds of training, which have ten.
    every_seconds : float, default=60.0
        Write after at least so many seconds. Whichever comes first counts; None is never.
    resume : bool, default=True
        Whether `fit` goes on from an existing file. Otherwise it replaces it.

    Notes
    -----
    The file is refused, with a ValueError that names it, if it is damaged, or if it belongs to
    another learner, other parameters or other data. ``max_iter``, ``tol`` and ``n_iter_no_change``
    may change, to train longer, and so may what is no part of training. Data are compared by a
    checksum of their values and of which are missing: of an array, all; of a large memory map or a
    dataset, the rows, at most 16384 or 64 MiB, that initial atoms are chosen from; of a stream,
    the first batches up to that size, and the size of the first. An array, a memory map, a dataset
    and a stream of the same rows are different data. So are those of another number of processes;
    each compares its own.

    A file is that of one fit at a time. While one is training, another that is given the same file
    is refused before it trains. The operating system lets the lock go when a process ends, however
    that ends; over NFS it needs a server that keeps locks. A search makes many fits, of other
    parameters or other data, so that its second one is refused: search without.

    Of several processes the first one's `Checkpoint` counts; the others need none.

    Learners that write no checkpoints, such as that of SPORCO, refuse this callback.

    It is written once more at the end, and after Ctrl-C. If it cannot be written, because the disk
    is full for example, there is a warning, the file before stays, and training goes on.

    Nothing in it is executed: it holds arrays and JSON, and no pickled objects.

    Examples
    --------
    >>> import os, tempfile
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import Checkpoint, PUDLEDictionaryLearning
    >>> X = load_digits().data
    >>> learner = PUDLEDictionaryLearning(32, max_iter=2, tol=None, random_state=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     checkpoint = Checkpoint(os.path.join(folder, "digits.npz"), every_n_updates=10)
    ...     learner = learner.set_callbacks(checkpoint).fit(X)
    ...     sorted(os.listdir(folder))
    ['digits.npz']
    """

    def __init__(self, path, *, every_n_updates=None, every_seconds=60.0, resume=True):
        self.path, self.resume = path, resume
        self.every_n_updates, self.every_seconds = every_n_updates, every_seconds

    # scikit-learn's protocol of callbacks, which sees epochs; updates are between them
    def setup(self, estimator, context):
        """Refuse what would write nothing."""
        if not getattr(estimator, "_writes_checkpoints", False):
            raise ValueError(
                f"{type(estimator).__name__} writes no checkpoints. Give the callback to a learner "
                "of skpudle, in a pipeline to the learner inside; SPORCO's has none, and the many "
                "fits of a search cannot share a file."
            )

    def teardown(self, estimator, context):
        """Do nothing."""

    def on_fit_task_begin(self, estimator, context):
        """Do nothing."""

    def on_fit_task_end(self, estimator, context):
        """Do nothing."""


class Recorder:
    """The checkpoint of one fit, if its estimator has one among its callbacks.

    To be used as a context, which keeps the file from other fits.

    Parameters
    ----------
    estimator : estimator
        Asked for its callbacks and parameters.
    """

    def __init__(self, estimator):
        found = [c for c in getattr(estimator, "_skl_callbacks", []) if isinstance(c, Checkpoint)]
        self._checkpoint = found[0] if found else None
        self._estimator = estimator
        self._team = self._lock = self._stored = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._lock is not None:
            self._lock.release()

    def open(self, generator, team=None):
        """Take hold of the file, and seed the generator as the fit in it did, if there is one.

        Parameters
        ----------
        generator : torch.Generator
            What the fit draws from.
        team : Team, default=None
            Processes that train together; the first of them reads and writes.

        Raises
        ------
        ValueError
            If the file is damaged, cannot be written, or is that of a fit which is training.
        """
        self._team, error = team, None
        if self._checkpoint is not None and self._rank == 0:
            self._path = os.path.realpath(self._checkpoint.path)
            try:
                self._stored = self._take_hold()
            except (ValueError, OSError) as caught:
                error = caught
        if team is not None:
            error = self._share(error)
        if error is not None:
            raise error
        if self._stored is not None:
            generator.manual_seed(self._stored["seed"])

    def _take_hold(self):  # -> the state in the file, None if there is none to go on from
        path = self._checkpoint.path
        self._lock = FileLock(self._path)
        try:
            free = self._lock.acquire()
        except OSError as error:
            raise ValueError(
                f"The checkpoint {path} cannot be written: {error.strerror}. Make its directory, "
                "or pass another path."
            ) from error
        if not free:
            raise ValueError(
                f"The checkpoint {path} is that of another fit, which is training. Wait for its "
                "end, stop it, or pass another path."
            )
        remove_parts(self._path)
        if not (self._checkpoint.resume and os.path.exists(self._path)):
            return None
        stored = read_checkpoint(path)
        with named_checkpoint(path):
            if stored.keys() != _STORED:
                raise ValueError(f"it holds {sorted(stored)}, expected {sorted(_STORED)}")
            if not isinstance(stored["identity"], dict):
                raise ValueError("it does not say whose it is")
            if not (isinstance(stored["seed"], int) and 0 <= stored["seed"] < 2**63):
                raise ValueError(f"its seed is {stored['seed']!r:.50}")
        return stored

    def _share(self, error):  # -> the first process's error
        """Take over what the first process has: its settings, what it read, or its error."""
        has_one = self._checkpoint is not None
        mine = []
        if has_one and self._team.rank == 0:
            settings = vars(self._checkpoint) | {"path": str(self._checkpoint.path)}
            text = None if error is None else str(error)
            mine = [pack({"settings": settings, "stored": self._stored, "error": text})]
        (someone,) = self._team.any(has_one)
        first = self._team.first(mine)
        if not first:
            text = "Give the Checkpoint to the first of the processes, which writes it."
            return ValueError(text) if someone else None
        first = unpack(first[0], "what the first process sent")
        self._checkpoint, self._stored = Checkpoint(**first["settings"]), first["stored"]
        return error or (first["error"] and ValueError(first["error"]))

    @property
    def _rule(self):
        return [plain(self._estimator.tol), int(self._estimator.n_iter_no_change)]

    @property
    def finished(self):
        """Whether the fit that goes on had stopped by itself, by the rule that still holds."""
        return bool(self._stored and self._stored["finished"] and not self._rule_changed)

    @property
    def _rule_changed(self):
        return self._stored["rule"] != self._rule

    def recognise(self, source, sample, mask=None, *, seed):
        """Compare the fit in the file with this one.

        Parameters
        ----------
        source : source of batches
            This process's data.
        sample : Tensor of shape (n_samples, n_features), or iterable of Tensor
            The same, or what stands for them.
        mask : Tensor of shape (n_samples, n_features), default=None
            0 where they are missing.
        seed : int
            Seed of this fit's generator.

        Raises
        ------
        ValueError
            If the file belongs to a fit of something else.
        """
        if self._checkpoint is None:
            return
        self._seed, self._written = seed, (0, time.monotonic())
        self._identity = self._identify(data_of(source, sample, mask))
        if self._stored is not None:
            self._compare()

    def _found(self):  # -> what this process has in the file, by name
        return self._stored["shared"] | self._stored["own"][self._rank]

    @property
    def _rank(self):
        return 0 if self._team is None else self._team.rank

    def found_search(self):
        """Return the state of the search in the file; None if there is none, or it has ended."""
        if self._stored is None or "search" not in self._stored["shared"]:
            return None
        with named_checkpoint(self._checkpoint.path):
            return SearchState.from_dict(self._found()["search"] | self._found()["codes"])

    def in_training(self):
        """Return whether the file is that of a fit whose search, if it has one, has ended."""
        return self._stored is not None and "search" not in self._stored["shared"]

    def begin(self, trainer, stopping):
        """Bring training to where the file left it.

        Raises
        ------
        ValueError
            If the file was made by somebody else.
        """
        if self._checkpoint is None:
            return
        if self.in_training():
            with named_checkpoint(self._checkpoint.path):
                atoms, state = trainer.optimizer.atoms, self._found()
                _check(state, atoms)
                trainer.load(TrainingState.from_dict(_moved(state, atoms.device)), stopping)
            if self._rule_changed:
                stopping.forgive()
        try:
            pack(trainer.optimizer.fresh_state())
        except ValueError as error:
            raise ValueError(
                f"No checkpoint can be written of optimizer={self._estimator.optimizer!r}: {error}."
            ) from error
        self._written = trainer.n_steps, time.monotonic()

    def _identify(self, data):  # -> the first process's, which compares for all
        parameters = parameters_of(self._estimator)
        parts = [data.encode()] if self._team is None else self._team.gather_bytes(data.encode())
        random_state = parameters["random_state"]
        identity = {name: text for name, text in parameters.items() if name not in _FREE} | {
            "learner": type(self._estimator).__name__,
            "processes": len(parts),
            "data": "; ".join(part.decode() for part in parts),
        }
        if random_state.isdigit():
            identity["random_state"] = random_state
        if self._team is None:
            return identity
        return json.loads(self._team.first([json.dumps(identity).encode()])[0])

    def at_round(self, trainer):
        """Write the state of the last round of training if it is time."""
        if self._is_due(trainer.n_steps):
            self.end(trainer, finished=False)

    def at_search_epoch(self, state):
        """Write the state of a search if it is time; an epoch of it counts for a round."""
        if self._is_due(10 * state.epoch):
            self.end_search(state)

    def end(self, trainer, *, finished):
        """Write the state of the last round of training."""
        if self._checkpoint is None:
            return
        shared = trainer.state.as_dict()
        own = {name: shared.pop(name) for name in ("progress", "generator")}
        self._write(shared, own, trainer.n_steps, finished=finished)

    def end_search(self, state):
        """Write the state of a search."""
        if self._checkpoint is None:
            return
        search = state.as_dict()
        codes = {name: search.pop(name) for name in ("codes", "best_codes")}
        self._write({"search": search}, {"codes": codes}, 10 * state.epoch, finished=False)

    def _is_due(self, n_updates):
        if self._checkpoint is None:
            return False
        last_update, last_time = self._written
        n, seconds = self._checkpoint.every_n_updates, self._checkpoint.every_seconds
        due = n is not None and abs(n_updates - last_update) >= n  # divergence takes updates back
        due = due or (seconds is not None and time.monotonic() - last_time >= seconds)
        return due if self._team is None else self._team.any(due)[0]

    def _write(self, shared, own, n_updates, *, finished):
        everyone = [own]
        if self._team is not None:
            packed = self._team.gather_bytes(pack(own))
            everyone = [unpack(part, self._checkpoint.path) for part in packed]
        state = {"identity": self._identity, "seed": self._seed}
        state |= {"finished": finished, "rule": self._rule}
        self._written = n_updates, time.monotonic()
        if self._rank > 0:
            return
        try:
            write_checkpoint(self._path, state | {"shared": shared, "own": everyone})
        except (OSError, ValueError) as error:
            warnings.warn(
                f"The checkpoint of update {n_updates} could not be written: {error}. "
                "Training goes on; an older checkpoint is as it was.",
                RuntimeWarning,
                stacklevel=users_level(),
            )

    def _compare(self):
        stored, present = self._stored["identity"], self._identity
        differ = [name for name in present if present[name] != stored.get(name)]
        if differ:
            pairs = "; ".join(f"{name}: {stored.get(name)}, now {present[name]}" for name in differ)
            raise ValueError(
                f"The checkpoint {self._checkpoint.path} belongs to another fit ({pairs}). Use "
                "another path, remove the file to train from the start, or pass resume=False to "
                "replace it."
            )
