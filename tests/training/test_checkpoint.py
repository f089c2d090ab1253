"""Checkpoints: a fit that was cut off ends with the bits of one that was not."""

import errno
import os
import signal
import threading

import numpy as np
import pytest
import torch
from fits import KINDS, FromData, Killed, assert_equal, counts, kill, signals
from numpy.testing import assert_array_equal
from sklearn.base import clone
from small import EndsTheFit, ctrl_c

from skpudle import (
    Checkpoint,
    ConvPUDLEDictionaryLearning,
    CountDictionaryLearning,
    NOODLDictionaryLearning,
    PoissonNMF,
)
from skpudle._fit.run import load_record
from skpudle._fit.train import Trainer

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

ROWS = np.random.default_rng(0).normal(size=(120, 6))
ROWS[3, 2] = np.nan
FIXED = dict(n_unfoldings=5, batch_size=8, max_iter=4, random_state=0)


def shuffled_loader():
    data = torch.utils.data.TensorDataset(torch.from_numpy(ROWS))
    generator = torch.Generator().manual_seed(0)
    return torch.utils.data.DataLoader(
        data, batch_size=8, shuffle=True, generator=generator
    )


CASES = {
    "adam": (FromData(10, **FIXED), lambda: ROWS),
    "counts": (
        CountDictionaryLearning(4, dict_init="data", **FIXED | {"max_iter": 6}),
        counts,
    ),
    "surrogate": (
        FromData(10, optimizer="surrogate", noise="both", fit_intercept=True, **FIXED),
        lambda: ROWS + 3,
    ),
    "unused atoms": (FromData(40, alpha=3.0, **FIXED), lambda: ROWS),
    "noodl": (NOODLDictionaryLearning(10, **FIXED), lambda: ROWS[4:]),
    "loader": (FromData(10, **FIXED), shuffled_loader),
    "signals": (
        ConvPUDLEDictionaryLearning(
            2,
            atom_shape=5,
            dict_init="random",
            **FIXED | {"batch_size": 1, "max_iter": 8},
        ),
        signals,
    ),
}


def clone_with(learner, *callbacks):
    return clone(learner).set_callbacks(*callbacks)


def act_after(monkeypatch, n_updates, act):
    """Do something at the beginning of the update after so many, in this process."""
    update, n_done = Trainer._update, 0

    def counted(self, batch):
        nonlocal n_done
        n_done += 1
        if n_done == n_updates + 1:
            act()
        return update(self, batch)

    monkeypatch.setattr(Trainer, "_update", counted)


@pytest.mark.parametrize("case", CASES)
def test_a_fit_that_is_cut_off_again_and_again_ends_with_the_same_bits(
    case, tmp_path, monkeypatch
):
    learner, data = CASES[case]
    expected = clone_with(learner).fit(data())
    path, n_cuts = tmp_path / "fit.npz", 0
    while True:
        found = clone_with(learner, Checkpoint(path, every_seconds=0))
        with monkeypatch.context() as patch:
            act_after(patch, 17, kill)  # more updates than an epoch has
            try:
                found.fit(data())
            except Killed:
                n_cuts += 1
                continue
        break
    assert n_cuts >= 2
    assert_equal(found, expected)


SPECTRA = PoissonNMF(4, max_iter=8, random_state=0), counts


@pytest.mark.parametrize("case", [*CASES, "spectra"])
def test_a_finished_fit_goes_on_for_more_epochs(case, tmp_path):
    """Whatever was drawn between its epochs, and however often nothing was left to train."""
    learner, data = CASES.get(case, SPECTRA)
    learner = clone(learner).set_params(tol=None)
    recording = Checkpoint(tmp_path / "fit.npz")
    for _ in range(2):
        clone_with(learner, recording).set_params(max_iter=2).fit(data())
    found = clone_with(learner, recording).fit(data())
    assert_equal(found, clone_with(learner).fit(data()))


def test_a_fit_that_had_converged_goes_on_by_a_stricter_rule(tmp_path):
    learner, data = CASES["adam"]
    learner = clone_with(learner, Checkpoint(tmp_path / "fit.npz"))
    learner.set_params(tol=0.9, max_iter=12).fit(data())
    assert learner.n_iter_ < 12
    assert learner.fit(data()).n_iter_ < 12
    learner.set_params(tol=None)
    assert learner.fit(data()).n_iter_ == 12


def test_without_a_seed_the_fit_that_goes_on_is_the_one_that_was_begun(
    tmp_path, monkeypatch
):
    """Initial atoms, and with them alpha, come from the seed that was drawn at first."""
    learner, expected = (
        clone(CASES["adam"][0]).set_params(random_state=np.random.RandomState(3))
        for _ in range(2)
    )
    learner.set_callbacks(Checkpoint(tmp_path / "fit.npz", every_seconds=0))
    with monkeypatch.context() as patch:
        act_after(patch, 25, kill)
        with pytest.raises(Killed):
            learner.fit(ROWS)
    begun = load_record(tmp_path / "fit.npz")
    found = learner.fit(ROWS)
    assert load_record(tmp_path / "fit.npz")["seed"] == begun["seed"]
    assert_equal(found, expected.fit(ROWS))


def test_without_resume_the_file_is_replaced(tmp_path):
    learner, data = CASES["adam"]
    path = tmp_path / "fit.npz"
    clone_with(learner, Checkpoint(path)).fit(data())
    again = (
        clone_with(learner, Checkpoint(path, resume=False))
        .set_params(alpha=0.2)
        .fit(data())
    )
    assert_array_equal(load_record(path)["record"].atoms, again.components_)


# ---------------------------------------------------------------------------- files


@pytest.fixture
def file(tmp_path):
    learner, data = CASES["adam"]
    clone_with(learner, Checkpoint(tmp_path / "fit.npz")).fit(data())
    return tmp_path / "fit.npz"


def fit_from(path):
    learner, data = CASES["adam"]
    return clone_with(learner, Checkpoint(path)).fit(data())


def test_a_file_that_would_execute_code_is_refused(file):
    torch.save({"identity": threading.Thread}, file)
    with pytest.raises(
        ValueError, match=f"{file} is not a whole checkpoint: it holds more"
    ):
        fit_from(file)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_file_that_was_cut_off_is_refused_by_name(share, file):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ValueError, match=f"{file}.* is not a whole checkpoint.*remove it"
    ):
        fit_from(file)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        (dict(alpha=0.3), "alpha"),
        (dict(dict_init=np.eye(10, 6) + 1), "dict_init"),
        (dict(random_state=1), "random_state: 0, now 1"),
    ],
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


def test_a_full_disk_warns_and_training_goes_on(tmp_path, monkeypatch):
    learner, data = CASES["adam"]
    expected = clone_with(learner).fit(data())

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    found = clone_with(learner, Checkpoint(tmp_path / "fit.npz", every_seconds=0))
    with pytest.warns(RuntimeWarning, match="could not be written.*Training goes on"):
        found.fit(data())
    assert_equal(found, expected)
    assert not os.listdir(tmp_path)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / "fit.npz.part").write_text("half")
    fit_from(tmp_path / "fit.npz")
    assert os.listdir(tmp_path) == ["fit.npz"]


# ---------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_leaves_a_fitted_estimator_after_its_update(
    handler, tmp_path, monkeypatch
):
    learner, data = CASES["adam"]
    path = tmp_path / "fit.npz"
    found = clone_with(learner, Checkpoint(path))
    act_after(monkeypatch, 30, ctrl_c)
    with pytest.raises(KeyboardInterrupt, match="interrupted after: .*, epoch 3"):
        found.fit(data())
    assert found.n_steps_ == 31
    assert found.n_iter_ == len(found.loss_curve_) == 3
    assert np.isfinite(found.transform(data())).all()
    assert signal.getsignal(signal.SIGINT) is handler
    assert_equal(
        clone_with(learner, Checkpoint(path)).fit(data()),
        clone_with(learner).fit(data()),
    )


def test_ctrl_c_in_partial_fit(handler, monkeypatch):
    act_after(monkeypatch, 0, ctrl_c)
    learner = FromData(10, **FIXED)
    with pytest.raises(KeyboardInterrupt):
        learner.partial_fit(ROWS)
    assert learner.n_steps_ == 1
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("case", ["rows", "poisson"])
def test_a_search_that_a_callback_stopped_stays_stopped(case, tmp_path):
    learner, data = KINDS[case]
    recording = Checkpoint(tmp_path / "fit.npz")
    expected = clone_with(learner, recording, EndsTheFit("epoch of the search", 3)).fit(
        *data()
    )
    assert case == "poisson" or expected.ended_by_ == "callback"
    assert expected._fitted.stream.held.energy.all()
    assert_equal(clone_with(learner, recording).fit(*data()), expected)
