"""Checkpoints: a fit that was cut off ends with the bits of one that was not."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from skpudle import (
    Checkpoint,
    ConvPUDLEDictionaryLearning,
    NOODLDictionaryLearning,
    PUDLEDictionaryLearning,
)
from skpudle._training.loop import Trainer
from skpudle.checkpoint import read_checkpoint, write_checkpoint
from skpudle.optimizers import GradientOptimizer

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROWS = np.random.default_rng(0).normal(size=(120, 6))
ROWS[3, 2] = np.nan
IMAGES = np.random.default_rng(0).normal(size=(24, 12, 12))
FIXED = dict(n_unfoldings=5, random_state=0)


class Killed(BaseException):
    """Stands for SIGKILL: nobody catches it."""


class Given:
    def __init__(self, parts):
        self.parts = parts

    def __iter__(self):
        return iter(self.parts)


def shuffled_loader():
    data = torch.utils.data.TensorDataset(torch.from_numpy(ROWS))
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(data, batch_size=8, shuffle=True, generator=generator)


CASES = {
    "adam": (PUDLEDictionaryLearning(10, batch_size=8, max_iter=4, **FIXED), lambda: ROWS),
    "sgd": (
        PUDLEDictionaryLearning(
            10,
            batch_size=8,
            max_iter=4,
            optimizer="sgd",
            optimizer_params={"momentum": 0.9},
            **FIXED,
        ),
        lambda: ROWS,
    ),
    "surrogate": (
        PUDLEDictionaryLearning(10, batch_size=8, max_iter=4, optimizer="surrogate", **FIXED),
        lambda: ROWS,
    ),
    "staircase": (
        PUDLEDictionaryLearning(10, batch_size=8, max_iter=4, lambda_decay=(1.0, 0.9), **FIXED),
        lambda: ROWS,
    ),
    "stops": (
        PUDLEDictionaryLearning(10, batch_size=4, tol=0.5, n_iter_no_change=5, **FIXED),
        lambda: ROWS,
    ),
    "unused atoms": (
        PUDLEDictionaryLearning(40, alpha=3.0, batch_size=8, max_iter=4, **FIXED),
        lambda: ROWS,
    ),
    "diverges once": (
        PUDLEDictionaryLearning(
            10, batch_size=8, max_iter=4, optimizer="sgd", atom_norm=None, step_size=0.1,
            learning_rate=6.0, **FIXED,
        ),
        lambda: ROWS,
    ),
    "noodl": (NOODLDictionaryLearning(10, batch_size=8, max_iter=4, **FIXED), lambda: ROWS[4:]),
    "batches": (
        PUDLEDictionaryLearning(10, max_iter=4, **FIXED),
        lambda: Given(np.split(ROWS, 15)),
    ),
    "loader": (PUDLEDictionaryLearning(10, max_iter=4, **FIXED), shuffled_loader),
    "convolution": (
        ConvPUDLEDictionaryLearning(
            5, atom_shape=(3, 3), stride=2, alpha=0.1, noise_std=0.1, n_train_shifts=2,
            crop_size=9, batch_size=2, max_iter=3, **FIXED,
        ),
        lambda: IMAGES,
    ),
}  # fmt: skip


def attributes(learner):
    names = [name for name in vars(learner) if name.endswith("_") and name != "n_features_in_"]
    return {name: getattr(learner, name) for name in sorted(names)}


def assert_same(found, expected):
    found, expected = attributes(found), attributes(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_array_equal(found[name], value, err_msg=name)


def clone_with(learner, *callbacks):
    return clone(learner).set_callbacks(*callbacks)


def kill_after(monkeypatch, n_updates):
    """Let the update after so many, in this process, be the last one that is begun."""
    update, n_done = Trainer._update, 0

    def counted(self, batch):
        nonlocal n_done
        n_done += 1
        if n_done > n_updates:
            raise Killed
        return update(self, batch)

    monkeypatch.setattr(Trainer, "_update", counted)


@pytest.mark.parametrize("case", CASES)
def test_a_fit_that_is_cut_off_again_and_again_ends_with_the_same_bits(case, tmp_path, monkeypatch):
    learner, data = CASES[case]
    expected = clone_with(learner).fit(data())
    path, n_cuts = tmp_path / "fit.npz", 0
    while True:
        found = clone_with(learner, Checkpoint(path, every_n_updates=1))
        with monkeypatch.context() as patch:
            kill_after(patch, 33 if case == "diverges once" else 17)
            try:
                found.fit(data())
            except Killed:
                n_cuts += 1
                continue
        break
    assert n_cuts >= (1 if case == "diverges once" else 2)
    assert_same(found, expected)


def test_a_case_diverges_once():
    """So that the table above has the case that it names."""
    halved = []
    halve = GradientOptimizer.halve_learning_rate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            GradientOptimizer,
            "halve_learning_rate",
            lambda self: halved.append(1) or halve(self),
        )
        learner, data = CASES["diverges once"]
        clone_with(learner).fit(data())
    assert len(halved) == 1


@pytest.mark.parametrize("case", ["adam", "batches", "convolution"])
def test_writing_changes_nothing(case, tmp_path):
    learner, data = CASES[case]
    found = clone_with(learner, Checkpoint(tmp_path / "fit.npz", every_n_updates=1))
    assert_same(found.fit(data()), clone_with(learner).fit(data()))


def test_after_the_end_nothing_is_trained(tmp_path, monkeypatch):
    learner, data = CASES["adam"]
    recording = Checkpoint(tmp_path / "fit.npz")
    expected = clone_with(learner, recording).fit(data())
    kill_after(monkeypatch, 0)
    assert_same(clone_with(learner, recording).fit(data()), expected)


def test_a_finished_fit_goes_on_for_more_epochs(tmp_path):
    learner, data = CASES["unused atoms"]
    recording = Checkpoint(tmp_path / "fit.npz")
    clone_with(learner, recording).set_params(max_iter=2).fit(data())
    found = clone_with(learner, recording).fit(data())
    assert_same(found, clone_with(learner).fit(data()))


def test_numbers_of_numpy_are_parameters_like_others(tmp_path):
    learner, data = CASES["adam"]
    recording = Checkpoint(tmp_path / "fit.npz")
    expected = clone_with(learner, recording).fit(data())
    same = clone_with(learner, recording).set_params(batch_size=np.int64(8))
    assert_same(same.fit(data()), expected)
    other = clone_with(learner, recording).set_params(batch_size=np.int64(16))
    with pytest.raises(ValueError, match="batch_size: 8, now 16"):
        other.fit(data())


def test_a_fit_that_had_converged_goes_on_by_a_stricter_rule(tmp_path):
    learner, data = CASES["adam"]
    learner = clone_with(learner, Checkpoint(tmp_path / "fit.npz"))
    learner.set_params(tol=0.9, n_iter_no_change=1, max_iter=6).fit(data())
    assert learner.n_iter_ < 6
    assert learner.fit(data()).n_iter_ < 6
    assert learner.set_params(tol=None).fit(data()).n_iter_ == 6


def test_without_a_seed_the_fit_that_goes_on_is_the_one_that_was_begun(tmp_path, monkeypatch):
    """Initial atoms, and with them alpha, come from the seed that was drawn at first."""
    learner = PUDLEDictionaryLearning(
        10, batch_size=8, max_iter=4, n_unfoldings=5, random_state=np.random.RandomState(3)
    )
    recording = Checkpoint(tmp_path / "fit.npz", every_n_updates=1)
    learner.set_callbacks(recording)
    with monkeypatch.context() as patch:
        kill_after(patch, 25)
        with pytest.raises(Killed):
            learner.fit(ROWS)
    begun = read_checkpoint(tmp_path / "fit.npz")
    found = learner.fit(ROWS)
    assert read_checkpoint(tmp_path / "fit.npz")["seed"] == begun["seed"]
    expected = PUDLEDictionaryLearning(
        10, batch_size=8, max_iter=4, n_unfoldings=5, random_state=np.random.RandomState(3)
    )
    assert_same(found, expected.fit(ROWS))


def test_without_resume_the_file_is_replaced(tmp_path):
    learner, data = CASES["adam"]
    path = tmp_path / "fit.npz"
    clone_with(learner, Checkpoint(path)).fit(data())
    again = clone_with(learner, Checkpoint(path, resume=False)).set_params(alpha=0.2).fit(data())
    assert_array_equal(read_checkpoint(path)["shared"]["atoms"], again.components_)


# ---------------------------------------------------------------------------- files


@pytest.fixture
def file(tmp_path):
    learner, data = CASES["adam"]
    clone_with(learner, Checkpoint(tmp_path / "fit.npz")).fit(data())
    return tmp_path / "fit.npz"


def fit_from(path):
    learner, data = CASES["adam"]
    return clone_with(learner, Checkpoint(path)).fit(data())


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {
        "n": 3, "x": 0.1, "infinite": float("inf"), "none": None, "flag": True, "text": "é",
        "scalar": torch.tensor(2.5), "bytes": torch.arange(5, dtype=torch.uint8),
        "nested": {"list": [torch.ones(2, 3), {"deep": torch.zeros(0, 4)}]},
    }  # fmt: skip
    write_checkpoint(tmp_path / "state.npz", state)
    found = read_checkpoint(tmp_path / "state.npz")
    assert found.keys() == state.keys()
    for name in ("n", "x", "infinite", "none", "flag", "text"):
        assert found[name] == state[name]
    for name in ("scalar", "bytes"):
        assert found[name].dtype == state[name].dtype
        assert torch.equal(found[name], state[name])
    assert torch.equal(found["nested"]["list"][0], torch.ones(2, 3))
    assert found["nested"]["list"][1]["deep"].shape == (0, 4)
    assert os.listdir(tmp_path) == ["state.npz"]


def test_a_file_is_an_archive_of_arrays(file):
    """Whoever has numpy can look into it, without trusting it."""
    assert zipfile.is_zipfile(file)
    with np.load(file, allow_pickle=False) as stored:
        assert "header" in stored
        assert all(stored[name].dtype != object for name in stored)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.999])
def test_a_file_that_was_cut_off_is_refused_by_name(share, file):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=f"{file}.* is no whole checkpoint.*remove it"):
        fit_from(file)


@pytest.mark.parametrize("where", [0, 100, -1, -20, -39, -41, -100, None])
def test_a_file_with_one_changed_bit_is_refused_by_name(where, file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2 if where is None else where] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f"{file}.* is no whole checkpoint"):
        fit_from(file)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [(dict(alpha=0.3), "alpha"), (dict(dict_init=np.eye(10, 6) + 1), "dict_init")],
)
def test_a_file_of_other_parameters_is_refused(parameters, named, file):
    learner, data = CASES["adam"]
    other = clone_with(learner, Checkpoint(file)).set_params(**parameters)
    with pytest.raises(ValueError, match=rf"{file} belongs to another fit \({named}"):
        other.fit(data())
    assert not hasattr(other, "components_")


def test_a_file_of_other_data_is_refused(file):
    learner, _ = CASES["adam"]
    with pytest.raises(ValueError, match=r"belongs to another fit \(data"):
        clone_with(learner, Checkpoint(file)).fit(2 * ROWS)


class Learned:
    """What offers its atoms as a learner of SPORCO does."""

    def __init__(self, atoms):
        self.atoms = atoms

    def getdict(self):
        return self.atoms.T


def test_a_file_of_one_other_row_is_refused(tmp_path):
    rows, file = np.random.default_rng(0).normal(size=(5000, 4)), tmp_path / "fit.npz"
    learner = PUDLEDictionaryLearning(4, max_iter=1, n_unfoldings=2, tol=None, random_state=0)
    clone_with(learner, Checkpoint(file)).fit(rows)
    rows[1] += 1
    with pytest.raises(ValueError, match=r"belongs to another fit \(data: 5000 samples"):
        clone_with(learner, Checkpoint(file)).fit(rows)


@pytest.mark.draws_from_numpy
def test_a_file_of_another_seed_is_refused_and_no_seed_is_that_of_the_file(tmp_path):
    file = tmp_path / "fit.npz"
    learner = PUDLEDictionaryLearning(4, max_iter=1, n_unfoldings=2, tol=None, random_state=0)
    clone_with(learner, Checkpoint(file)).fit(ROWS)
    with pytest.raises(ValueError, match=r"belongs to another fit \(random_state: 0, now 1"):
        clone_with(learner, Checkpoint(file)).set_params(random_state=1).fit(ROWS)
    file.unlink()
    learner.random_state = None
    first = clone_with(learner, Checkpoint(file)).fit(ROWS)
    again = clone_with(learner, Checkpoint(file)).fit(ROWS)
    np.testing.assert_array_equal(again.components_, first.components_)


@pytest.mark.parametrize("kind", [pd.DataFrame, Learned])
def test_a_file_of_other_initial_atoms_is_refused(kind, tmp_path):
    checkpoint = Checkpoint(tmp_path / "fit.npz")
    settings = dict(max_iter=1, n_unfoldings=2, random_state=0)
    first, other = (
        PUDLEDictionaryLearning(6, dict_init=kind(atoms), tol=None, **settings)
        for atoms in (np.eye(6) + 1, np.eye(6) + 2)
    )
    first.set_callbacks(checkpoint).fit(ROWS)
    with pytest.raises(ValueError, match=r"belongs to another fit \(dict_init"):
        other.set_callbacks(checkpoint).fit(ROWS)


@pytest.mark.parametrize("other", ["images", "number of images", "targets"])
def test_a_file_of_other_images_is_refused(other, tmp_path):
    learner, _ = CASES["convolution"]
    file, changed = tmp_path / "fit.npz", IMAGES.copy()
    changed[1:] *= 2
    X = {"images": changed, "number of images": IMAGES[:-1]}.get(other, IMAGES)
    y = changed if other == "targets" else X
    clone_with(learner, Checkpoint(file)).fit(IMAGES, IMAGES)
    with pytest.raises(ValueError, match=r"belongs to another fit \(data"):
        clone_with(learner, Checkpoint(file)).fit(X, y)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "state.npz"
    write_checkpoint(path, {"n": 1})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_checkpoint(path, {"n": 2})
    assert read_checkpoint(path) == {"n": 1}
    assert os.listdir(tmp_path) == ["state.npz"]


def test_a_full_disk_warns_and_training_goes_on(tmp_path):
    learner, data = CASES["adam"]
    found = clone_with(learner, Checkpoint(tmp_path / "no" / "such" / "folder", every_n_updates=20))
    with pytest.warns(RuntimeWarning, match="could not be written.*Training goes on"):
        found.fit(data())
    assert_same(found, clone_with(learner).fit(data()))


# ---------------------------------------------------------------------------- Ctrl-C


@pytest.fixture
def handler():
    """Install Python's handler, for a shell lets background jobs ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


class PressesCtrlC:
    """A callback that stands for the user, in an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        if context.task_name == "epoch" and context.task_id == self.epoch:
            signal.raise_signal(signal.SIGINT)

    def on_fit_task_end(self, estimator, context):
        pass


def test_ctrl_c_leaves_a_fitted_estimator_after_one_more_update(handler, tmp_path):
    learner, data = CASES["adam"]
    path = tmp_path / "fit.npz"
    found = clone_with(learner, PressesCtrlC(2), Checkpoint(path))
    with pytest.raises(KeyboardInterrupt, match="interrupted after update 31"):
        found.fit(data())
    assert found.n_steps_ == 31
    assert found.n_iter_ == len(found.loss_curve_) == 3
    assert np.isfinite(found.transform(data())).all()
    assert signal.getsignal(signal.SIGINT) is handler
    assert_same(clone_with(learner, Checkpoint(path)).fit(data()), clone_with(learner).fit(data()))


def test_ctrl_c_in_partial_fit(handler, monkeypatch):
    update = Trainer._update
    monkeypatch.setattr(
        Trainer,
        "_update",
        lambda self, batch: (signal.raise_signal(signal.SIGINT), update(self, batch))[1],
    )
    learner = PUDLEDictionaryLearning(10, batch_size=8, **FIXED)
    with pytest.raises(KeyboardInterrupt, match="after update 1$"):
        learner.partial_fit(ROWS)
    assert learner.n_steps_ == 1
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_handler_that_somebody_installed_is_left_alone():
    noted = []
    before = signal.signal(signal.SIGINT, lambda *_: noted.append(1))
    try:
        learner, data = CASES["adam"]
        found = clone_with(learner, PressesCtrlC(1)).fit(data())
    finally:
        signal.signal(signal.SIGINT, before)
    assert noted == [1]
    assert found.n_iter_ == 4


def test_a_fit_in_another_thread_touches_no_handler(handler):
    learner, data = CASES["adam"]
    thread = threading.Thread(target=clone_with(learner).fit, args=(data(),))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_would_write_nothing_is_refused(tmp_path):
    pipeline = make_pipeline(PUDLEDictionaryLearning(10, max_iter=1, **FIXED))
    with pytest.raises(ValueError, match="Pipeline writes no checkpoints"):
        pipeline.set_callbacks(Checkpoint(tmp_path / "fit.npz")).fit(ROWS)


# ---------------------------------------------------------------------------- a killed process


def test_a_killed_process_goes_on_with_the_same_bits(tmp_path):
    script = tmp_path / "fit.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            import numpy as np
            from skpudle import Checkpoint, PUDLEDictionaryLearning
            from skpudle._training.loop import Trainer

            update = Trainer._update

            def dies(self, batch):
                if self.n_steps == 37:
                    os.kill(os.getpid(), signal.SIGKILL)
                return update(self, batch)

            Trainer._update = dies
            X = np.random.default_rng(0).normal(size=(120, 6))
            learner = PUDLEDictionaryLearning(
                10, n_unfoldings=5, batch_size=8, max_iter=4, tol=None, random_state=0
            )
            learner.set_callbacks(Checkpoint(sys.argv[1], every_n_updates=1)).fit(X)
            """
        )
    )
    path = tmp_path / "fit.npz"
    command = [sys.executable, script, path]
    assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    X = np.random.default_rng(0).normal(size=(120, 6))
    learner = PUDLEDictionaryLearning(10, batch_size=8, max_iter=4, tol=None, **FIXED)
    found = clone_with(learner, Checkpoint(path)).fit(X)
    assert read_checkpoint(path)["shared"]["n_updates"] == found.n_steps_ == 60
    assert_same(found, learner.fit(X))
