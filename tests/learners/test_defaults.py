"""`PUDLEDictionaryLearning(k).fit(X)`: the dictionary from the data alone, whatever happens."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from small import EndsTheFit, ctrl_c

from skpudle import PUDLEDictionaryLearning
from skpudle.datasets import make_dictionary_data
from skpudle.metrics import dictionary_error, recovery_rate


def make_data(seed=0, *, n=600, snr_db=26, sign="entry"):
    how = dict(snr_db=snr_db, sign=sign, random_state=seed)
    return make_dictionary_data(n, 16, 20, 3, **how)[:2]


X, ATOMS = make_data()


def learner_of(**params):
    return PUDLEDictionaryLearning(**dict(n_components=20, random_state=0) | params)


def found(learner, atoms=ATOMS):
    return recovery_rate(learner.components_, atoms, threshold=0.95)


@pytest.fixture(scope="module")
def fitted():
    return learner_of().fit(X)


def test_a_known_dictionary_is_found(fitted):
    """Without a warning, by sparse codes, and closer than alternation alone comes."""
    assert found(fitted) == 1
    assert (fitted.transform(X) != 0).mean() < 0.4
    start = {"dict_init": "data", "gradient": "dec"}
    alternation = learner_of(**start, max_iter=1, tol=None).fit(X)
    ours, theirs = (one.components_ for one in (fitted, alternation))
    how = dict(match=True)
    assert dictionary_error(ours, ATOMS, **how) < dictionary_error(theirs, ATOMS, **how)


def test_a_number_of_epochs_alone_asks_for_no_training(fitted):
    """It is at most so many epochs of whatever trains, and says where nothing does."""
    with pytest.warns(
        UserWarning, match=r"no effect in this fit: max_iter\. .*gradient"
    ):
        learner = learner_of(max_iter=3).fit(X)
    np.testing.assert_array_equal(learner.components_, fitted.components_)
    assert (learner.n_steps_, learner.ended_by_) == (0, "search")
    trained = learner_of(max_iter=3, gradient="ae-ls", batch_size=200, tol=None).fit(X)
    assert trained.n_steps_ == 9
    assert (trained.components_ != fitted.components_).any()


@pytest.mark.parametrize(
    ("named", "rule"),
    [
        (dict(gradient="dec"), "dec"),
        (dict(gradient="ae-lasso"), "ae-lasso"),
        (dict(gradient="ae-ls"), "ae-ls"),
        (dict(n_unfoldings=5), "ae-ls"),
        (dict(n_unfoldings=5, gradient="dec"), "dec"),
        (dict(shrinkage="hard"), "ae-ls"),
        (dict(lambda_decay=0.98), "ae-ls"),
        (dict(lambda_decay=(1.0, 0.98)), "ae-ls"),
        (dict(alpha=0.0), "ae-ls"),
    ],
    ids=str,
)
def test_what_is_named_happens(named, rule, fitted, capsys):
    """A gradient trains, and so does an encoder that is not that of the search."""
    learner = learner_of(**named, verbose=1).fit(X)
    assert learner.n_steps_ > 0
    assert list(learner.phases_) == ["search", rule]
    assert sum(learner.phases_.values()) == learner.n_iter_
    assert (learner.components_ != fitted.components_).any()
    assert f"{rule}, epoch 1/" in capsys.readouterr().out


@pytest.mark.parametrize("n_unfoldings", [3, 10])
def test_training_through_few_unfoldings_explains_more_by_fewer_codes(n_unfoldings):
    """Of rows that were not trained on, at the default max_iter."""
    data, _ = make_data(n=900)
    train, test = data[:600], data[600:]
    trained = learner_of(n_unfoldings=n_unfoldings).fit(train)
    searched = learner_of().fit(train).set_params(n_unfoldings=n_unfoldings)
    searched.set_params(transform_alpha=trained.alpha_)

    def outcome(learner):
        codes = learner.transform(test)
        return np.square(test - learner.inverse_transform(codes)).sum(), (
            codes != 0
        ).mean()

    assert all(now < before for now, before in zip(outcome(trained), outcome(searched)))


@pytest.mark.parametrize(
    "constraint", [dict(positive_code=True), dict(n_unfoldings=50), {}]
)
@pytest.mark.parametrize("shrinkage", ["soft", "hard"])
def test_what_constrains_the_learner_holds_and_lets_it_find(shrinkage, constraint):
    data, atoms = make_data(sign=None)
    data = data.astype(np.float32)
    learner = learner_of(shrinkage=shrinkage, **constraint).fit(data)
    assert found(learner, atoms) >= 0.95
    if learner.positive_code:
        assert learner.transform(data).min() >= 0


# ---------------------------------------------------------------- what happens during the search


ends_search = partial(EndsTheFit, "epoch of the search")


def test_training_goes_on_from_a_search_that_a_callback_ended():
    learner = learner_of(gradient="ae-ls", max_iter=2, tol=None)
    learner.set_callbacks(ends_search(3)).fit(X)
    assert learner.phases_ == {"search": 3, "ae-ls": 2}


def ended_early(n_epochs, act, noiseless):
    learner = learner_of(alpha=0.1).set_callbacks(ends := ends_search(n_epochs, act))
    try:
        learner.fit(noiseless)
    except KeyboardInterrupt:
        assert act is ctrl_c
    assert learner.ended_by_ == ("interrupt" if act is ctrl_c else "callback")
    return learner, ends


@pytest.mark.parametrize("act", [ctrl_c, lambda: True], ids=["Ctrl-C", "callback"])
def test_a_search_that_is_ended_late_has_no_bias_either(act, handler):
    """The last step, without the lasso's bias, is made from wherever the search is."""
    noiseless, atoms = make_data(snr_db=None)
    n_epochs = len(learner_of(alpha=0.1).fit(noiseless).loss_curve_)
    learner, ends = ended_early(n_epochs - 3, act, noiseless)
    biased, unbiased = (
        np.abs(found @ atoms.T).max(0).min()
        for found in (ends.seen[-1], learner.components_)
    )
    assert biased < 0.9999
    assert unbiased > 1 - 1e-6


@pytest.mark.parametrize("act", [ctrl_c, lambda: True], ids=["Ctrl-C", "callback"])
def test_a_search_that_is_ended_at_once_has_learned(act, handler):
    """The present dictionary is the result."""
    learner, ends = ended_early(5, act, X)
    assert all((a != b).any() for a, b in pairwise(ends.seen))
    np.testing.assert_array_equal(learner.components_, ends.seen[-1])
    start = learner_of(dict_init="data", optimizer="adam", max_iter=1, tol=None)
    start.set_params(learning_rate=1e-12).fit(X)
    assert learner.score(X) > start.score(X)
