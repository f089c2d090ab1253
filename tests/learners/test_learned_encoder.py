"""Learned encoders: a few unfoldings with matrices of their own, for a dictionary that stays."""

import sys

import numpy as np
import pytest
import torch
from naive import normal, unit
from sklearn.datasets import load_digits
from small import EndsTheFit, ctrl_c

from skpudle import PUDLEDictionaryLearning
from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding import EncoderModule, encode, learn_encoder
from skpudle.encoding._learned import LearnedEncoder
from skpudle.encoding._unfold import default_step
from skpudle.lasso import solve_lasso

TRAIN, TEST = np.split(
    load_digits().data[np.random.default_rng(0).permutation(900)], [600]
)
KINDS = [True, "unfolding"]
PLAIN = dict(noise="equal", fit_intercept=False)


def learner_of(separate="unfolding", **params):
    small = dict(n_unfoldings=3, max_iter=10, random_state=0) | PLAIN
    return PUDLEDictionaryLearning(24, separate_atoms=separate, **small | params)


def objective(atoms, x, z, alpha):
    return float(
        (x - z @ atoms).square().sum(1).mean() / 2 + alpha * z.abs().sum(1).mean()
    )


@pytest.fixture(scope="module")
def problem():
    learner = PUDLEDictionaryLearning(40, random_state=0, debias=0.0).fit(TRAIN)
    atoms, x = torch.tensor(learner.components_), torch.tensor(TRAIN)
    return atoms, x, learner.search_alpha_


def test_with_the_matrices_of_the_dictionary_it_is_the_unfolded_encoder(generator):
    atoms, x = unit(generator, 12, 8), normal(generator, 20, 8)
    step, alpha = default_step(DenseDictionary(atoms)), 0.3
    for positive in (False, True):
        expected = encode(atoms, x, alpha=alpha, n_unfoldings=4, positive_code=positive)
        levels = (step * alpha).expand(4, 12), positive
        shared = LearnedEncoder(step * atoms[None], atoms[None], *levels, True)
        own = LearnedEncoder(
            step * atoms.repeat(4, 1, 1), atoms.repeat(3, 1, 1), *levels
        )
        for encoder in (shared, own):
            torch.testing.assert_close(
                encoder.encode(x), expected, rtol=1e-12, atol=1e-14
            )


@pytest.mark.parametrize(("separate", "n_unfoldings"), [(False, 1), (True, 3)])
def test_training_lowers_the_objective_towards_that_of_the_lasso(
    problem, separate, n_unfoldings
):
    atoms, x, alpha = problem
    exact = objective(atoms, x, solve_lasso(atoms, x, alpha)[0], alpha)
    plain = encode(DenseDictionary(atoms), x, alpha=alpha, n_unfoldings=n_unfoldings)
    excess = [objective(atoms, x, plain, alpha) / exact - 1]
    for n_updates in (0, 400):
        how = dict(n_unfoldings=n_unfoldings, separate=separate, n_updates=n_updates)
        codes = learn_encoder(atoms, x, alpha, **how).encode(x)
        excess.append(objective(atoms, x, codes, alpha) / exact - 1)
    assert 0 < excess[2] < 0.7 * excess[1] < 0.7 * excess[0]


@pytest.mark.parametrize("separate", KINDS)
def test_the_dictionary_is_that_of_the_search(separate):
    learner = learner_of(separate).fit(TRAIN)
    search = PUDLEDictionaryLearning(24, random_state=0, **PLAIN).fit(TRAIN)
    assert learner.search_alpha_ == search.search_alpha_
    np.testing.assert_allclose(
        learner.components_, search.components_, rtol=1e-12, atol=1e-14
    )
    assert list(learner.phases_) == ["search", "encoder"]
    assert learner.phases_["encoder"] == 10
    given = learner_of(
        separate, dict_init=search.components_, alpha=learner.alpha_
    ).fit(TRAIN)
    np.testing.assert_allclose(
        given.components_, search.components_, rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        given.transform(TEST), learner.transform(TEST), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("separate", KINDS)
def test_partial_fit_changes_dictionary_and_encoder(separate):
    learner = learner_of(separate).partial_fit(TRAIN[:300])
    before = learner.components_, learner.analysis_components_
    codes = learner.transform(TEST)
    learner.partial_fit(TRAIN[300:600])
    assert not np.array_equal(learner.components_, before[0])
    assert not np.array_equal(learner.analysis_components_, before[1])
    exact = learner.set_params(transform_algorithm="lasso").transform(TEST)
    assert np.square(codes).sum() > 0.1 * np.square(exact).sum()


MODULES = [
    dict(separate_atoms=True, noise="features", fit_intercept=True),
    dict(separate_atoms="unfolding", split_sign=True),
    dict(separate_atoms="unfolding", positive_code=True),
    dict(separate_atoms=False, noise="features", fit_intercept=True),
    dict(separate_atoms=False, lambda_decay=0.9, split_sign=True),
    dict(separate_atoms=False, shrinkage="hard"),
    dict(separate_atoms=False, transform_alpha=2.0),
]


def quick(params):
    rule = {} if params["separate_atoms"] else {"tol": None}  # no stalling to wait for
    return learner_of(max_iter=2, **rule).set_params(**params)


@pytest.mark.parametrize("params", MODULES, ids=str)
def test_a_module_has_the_codes_of_transform(params):
    learner = quick(params).fit(TRAIN)
    module = learner.to_module()
    assert isinstance(module, EncoderModule)
    codes = module(torch.tensor(TEST))
    np.testing.assert_allclose(
        codes.detach(), learner.transform(TEST), rtol=1e-9, atol=1e-9
    )
    rows = module.decode(codes).detach()
    np.testing.assert_allclose(
        rows, learner.inverse_transform(codes.detach().numpy()), atol=1e-9
    )


@pytest.mark.parametrize("params", MODULES[:2], ids=str)
def test_a_module_can_be_exported(params):
    learner = quick(params).fit(TRAIN.astype(np.float32))
    x = torch.tensor(TEST, dtype=torch.float32)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(
        learner.to_module(), (x,), dynamic_shapes={"x": {0: batch}}
    )
    codes = program.module()(x[:7]).detach()
    np.testing.assert_allclose(
        codes, learner.transform(x[:7].numpy()), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("params", [MODULES[1], MODULES[5]], ids=str)
def test_onnx_runs_the_encoder(params, tmp_path, caplog):
    """One file, names of its input and output, any number of rows, and not a word of torch's."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    if torch.__version__.startswith("2.4."):
        with pytest.raises(ImportError, match="needs PyTorch 2.5"):
            quick(params).fit(TRAIN).to_module().to_onnx(str(tmp_path / "encoder.onnx"))
        return
    learner = quick(params).fit(TRAIN.astype(np.float32))
    x, path = TEST.astype(np.float32), str(tmp_path / "encoder.onnx")
    learner.to_module().to_onnx(path)
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"]
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (1, 9):
        (codes,) = session.run(["codes"], {"x": x[:n]})
        expected = learner.transform(x[:n])
        np.testing.assert_allclose(codes, expected, atol=1e-5 * np.abs(expected).max())


def test_missing_onnx_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    learner = PUDLEDictionaryLearning.from_components(
        np.eye(3), alpha=1.0, n_unfoldings=2
    )
    with pytest.raises(ImportError, match=r"pip install skpudle\[onnx\]"):
        learner.to_module().to_onnx("encoder.onnx")


@pytest.mark.parametrize("separate", [False, *KINDS])
def test_one_unfolding_is_a_sparse_autoencoder(separate):
    params = {"separate_atoms": separate, "n_unfoldings": 1, "positive_code": True}
    learner = quick(params).fit(TRAIN)
    module = learner.to_module()
    x = torch.tensor(TEST, dtype=module.decoder.dtype)
    codes = (
        torch.relu(x @ module.analysis[0].mT - module.thresholds[0]).detach().numpy()
    )
    np.testing.assert_allclose(codes, learner.transform(TEST), atol=1e-9)
    rows = codes @ module.decoder.detach().numpy()
    np.testing.assert_allclose(rows, learner.inverse_transform(codes), atol=1e-9)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"n_unfoldings": None}, "separate_atoms=.* n_unfoldings=None.* Pass"),
        ({"gradient": "dec"}, "separate_atoms=.* gradient=.dec.* Pass"),
        ({"shrinkage": "hard"}, "separate_atoms=.* shrinkage=.hard.* Pass"),
    ],
)
def test_contradictions_are_refused(params, text):
    with pytest.raises(ValueError, match=text):
        learner_of(**params).fit(TRAIN)


@pytest.mark.parametrize("separate", KINDS)
def test_an_interrupted_search_leaves_the_initial_encoder(separate, handler):
    learner = learner_of(separate).set_callbacks(
        EndsTheFit("epoch of the search", 1, ctrl_c)
    )
    with pytest.raises(KeyboardInterrupt, match="interrupted after: search, epoch 1"):
        learner.fit(TRAIN)
    assert learner.ended_by_ == "interrupt"
    assert learner.phases_ == {"search": 1}
    given = torch.tensor(learner.components_), torch.tensor(TRAIN), learner.alpha_
    first = learn_encoder(*given, separate=separate == "unfolding", n_updates=0)
    expected = first.encode(torch.tensor(TEST))
    np.testing.assert_allclose(learner.transform(TEST), expected, rtol=1e-9, atol=1e-9)
    assert np.isfinite(learner.score(TEST))


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"separate_atoms": True}, "transform_alpha"),
        ({"transform_algorithm": "lasso"}, "transform_n_nonzero_coefs"),
    ],
    ids=str,
)
def test_a_parameter_of_codes_that_they_do_not_use_is_named(params, named):
    learner = PUDLEDictionaryLearning(4, random_state=0, **params).fit(TRAIN[:50])
    codes = learner.transform(TEST)
    learner.set_params(**{named: 3})
    with pytest.warns(UserWarning, match=f"no effect on these codes: {named}"):
        np.testing.assert_array_equal(learner.transform(TEST), codes)
    with pytest.warns(UserWarning, match=f"no effect on these codes: {named}"):
        learner.score(TEST)
