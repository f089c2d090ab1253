"""Convolutional dictionaries of counts and binary signals, and denoising of photons."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from naive import naive_shrink
from scipy import ndimage
from sklearn.datasets import load_sample_image
from torch.nn.functional import conv2d

from skpudle import ConvDenoiser, ConvPUDLEDictionaryLearning
from skpudle._data.batches import Samples
from skpudle._gradients import GRADIENT_RULES, differentiate
from skpudle._learners.convolutional import search as conv_search
from skpudle._learners.convolutional.model import ConvNetwork, RowLayout
from skpudle._learners.convolutional.values import ConvParameters
from skpudle._learners.models import Encoder
from skpudle._losses import Binomial, Gaussian, Poisson
from skpudle._operators._conv import ConvDictionary
from skpudle.pretrained import load_denoiser, save_denoiser
from skpudle.search._conv_epoch import ConvProblem

STRIDE, SHAPE = (2, 3), (4, 2, 5, 4)
FAST, STILL = (partial(torch.optim.Adam, lr=rate) for rate in (1e-2, 1e-12))
FAMILIES = {"poisson": Poisson(), "binomial": Binomial(5), "bernoulli": Binomial()}
SMALL = dict(atom_shape=7, stride=1, n_unfoldings=10, max_iter=2, tol=None, random_state=0)


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def loss(request):
    return request.param


def spikes(loss, n_signals=6, length=60, seed=0):
    """Return counts of signals in which one kernel comes now and then, (n, length, 1)."""
    rng = np.random.default_rng(seed)
    events = rng.uniform(3, 5, size=(n_signals, length - 6))
    events *= rng.random(events.shape) < 0.06
    kernel = np.sin(np.arange(1, 8) / 8 * np.pi) / 2
    natural = np.stack([np.convolve(row, kernel) for row in events]) - 1
    if isinstance(loss, Poisson):
        return rng.poisson(np.exp(natural)).astype(float)[..., None]
    n_trials = int(loss.n_trials)
    return rng.binomial(n_trials, 1 / (1 + np.exp(-natural))).astype(float)[..., None]


def learner_of(loss, n_components=2, **options):
    given = dict(loss="poisson")
    if isinstance(loss, Binomial):
        given = dict(loss="binomial", n_trials=loss.n_trials)
    return ConvPUDLEDictionaryLearning(n_components, **SMALL | given | options)


# ---------------------------------------------------------------------------- the adjoint


def draw_images(loss, generator, scale=1.0):
    natural = scale * torch.randn(3, 2, 13, 13, generator=generator, dtype=torch.float64)
    if isinstance(loss, Poisson):
        return torch.poisson(natural.exp(), generator=generator)
    trials = torch.rand(int(loss.n_trials), *natural.shape, generator=generator)
    return (trials < natural.sigmoid()).sum(0).to(natural.dtype)


def naive_network(rows, layout, x, encoder, step):
    """Return codes and natural parameters by one operation after the other."""
    loss, parameters = encoder.loss, layout.unpack(rows)
    atoms, alpha, offset = parameters.atoms, parameters.alpha, parameters.intercept[:, None, None]

    def natural(z):
        return torch.conv_transpose2d(z, atoms, stride=STRIDE) + offset

    def norm(values):
        return values.flatten(1).sum(1)[:, None, None, None]

    z = conv2d(x, atoms, stride=STRIDE) * 0
    bound = ConvDictionary(atoms, STRIDE).squared_norm_bound()
    largest = torch.maximum(x, loss.mean(natural(z))).flatten(1).amax(1)
    size = step if step is not None else (4 / (bound * largest)).detach()[:, None, None, None]
    for t in range(encoder.n_unfoldings):
        before = natural(z)
        v = z + size * conv2d(x - loss.mean(before), atoms, stride=STRIDE)
        level = alpha[t][:, None, None] * (1 if encoder.shrinkage == "hard" else size)
        code = naive_shrink(v, level, encoder.shrinkage, encoder.positive_code)
        if step is None:
            change = natural(code) - before
            weight = torch.maximum(loss.mean(before), loss.mean(before + change))
            counts = (norm(weight * change**2) * size <= norm((code - z) ** 2)).detach()
            moved = norm((code - z) ** 2) > 0
            code = torch.where(counts, code, z)
            size = torch.where(counts, torch.where(moved, 1.25 * size, size), size / 2).detach()
        z = code
    return z, natural(z)


@pytest.mark.parametrize("shrinkage", ["soft", "hard"])
@pytest.mark.parametrize("positive_code", [False, True])
@pytest.mark.parametrize("rule", ["ae-ls", "ae-lasso", "dec"])
@pytest.mark.parametrize("step", [None, 0.02], ids=["automatic", "given"])
def test_gradients_are_those_of_automatic_differentiation(
    rule, step, positive_code, shrinkage, loss, generator
):
    """In atoms, thresholds of all unfoldings and the intercept; steps that follow are constants."""
    atoms = 0.3 * torch.randn(*SHAPE, generator=generator, dtype=torch.float64)
    if step is None and isinstance(loss, Binomial):
        bound = float(ConvDictionary(atoms, STRIDE).squared_norm_bound())
        step = 1 / (bound * loss.curvature)
    n_unfoldings = 6
    alpha = 0.3 + 0.2 * torch.rand(n_unfoldings, 4, generator=generator, dtype=torch.float64)
    alpha = alpha * (0.05 if shrinkage == "hard" else 1.0)
    layout = RowLayout(
        SHAPE[1:], (0, 0, 0), n_unfoldings, None, False, False, None, 0.0, step, n_intercepts=2
    )
    intercept = torch.tensor([0.3, -0.4], dtype=torch.float64)
    rows = layout.pack(ConvParameters(atoms, alpha=alpha, intercept=intercept)).requires_grad_()
    x, encoder = draw_images(loss, generator), Encoder(n_unfoldings, shrinkage, positive_code)
    encoder = Encoder(n_unfoldings, shrinkage, positive_code, loss=loss)
    network = ConvNetwork(layout.unpack(rows), STRIDE, encoder)
    found, evaluation = differentiate(
        lambda *args, **options: GRADIENT_RULES[rule](*args, loss=loss, **options),
        network,
        rows,
        Samples(x, target=x),
        encoder=lambda network, x, mask=None: network.encode(x),
        penalty=0.3,
    )
    if rule == "dec":
        z, _ = naive_network(rows.detach(), layout, x, encoder, step)
        parameters = layout.unpack(rows)
        natural = torch.conv_transpose2d(z, parameters.atoms, stride=STRIDE)
        natural = natural + parameters.intercept[:, None, None]
    else:
        z, natural = naive_network(rows, layout, x, encoder, step)
    assert 0 < (z == 0).double().mean() < 1
    assert torch.equal(evaluation.codes != 0, z != 0)
    value = loss.half_deviance(natural, x).sum() / 3
    if rule == "ae-lasso":
        value = value + 0.3 * z.abs().sum() / 3
    (expected,) = torch.autograd.grad(value, rows)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_the_objective_does_not_rise(scale, loss, generator):
    atoms = torch.randn(*SHAPE, generator=generator, dtype=torch.float64)
    x = draw_images(loss, generator, scale)
    parameters = ConvParameters(atoms, alpha=0.3, intercept=torch.zeros(2).double())
    values = []
    for n_unfoldings in range(1, 25):
        network = ConvNetwork(parameters, STRIDE, Encoder(n_unfoldings, loss=loss))
        z = network.encode(x)
        losses = loss.half_deviance(network.synthesis(z), x).flatten(1).sum(1)
        values.append(losses + 0.3 * z.abs().flatten(1).sum(1))
    values = torch.stack(values)
    assert (values.diff(dim=0) <= 1e-12 * values[:-1]).all()
    assert (values[-1] < values[0]).all()


# ---------------------------------------------------------------------------- learning


@pytest.mark.parametrize("gradient", ["ae-ls", "dec"])
def test_one_kernel_is_learned_from_spikes(gradient):
    """From 100 events among noise, and a start at an angle of 24 degrees."""
    rng = np.random.default_rng(0)
    kernel = np.sin(np.arange(1, 8) / 4 * np.pi)
    kernel /= np.linalg.norm(kernel)
    events = rng.uniform(3, 5, size=(40, 94)) * (rng.random((40, 94)) < 0.03)
    rates = np.exp(np.stack([np.convolve(row, kernel) for row in events]) - 0.5)
    start = kernel + 0.25 * np.random.default_rng(1).normal(size=7)
    start /= np.linalg.norm(start)
    options = dict(dict_init=start[None, :, None], positive_code=True, alpha=3.0, n_unfoldings=15)
    options |= dict(gradient=gradient, optimizer=FAST, max_iter=15, batch_size=10)
    learner = learner_of(Poisson(), 1, **options).fit(rng.poisson(rates)[..., None])
    assert learner.loss_curve_[-1] < learner.loss_curve_[0]
    assert learner.components_[0, :, 0] @ kernel > 0.97 > 0.92 > start @ kernel
    assert (learner.transform(rng.poisson(rates)[..., None]) != 0).mean() < 0.04


@pytest.mark.parametrize("gradient", ["ae-ls", "ae-lasso", "dec"])
def test_what_is_fitted_encodes_scores_and_goes_on(gradient, loss):
    x = spikes(loss)
    learner = learner_of(loss, gradient=gradient).fit(x)
    codes = learner.transform(x)
    expected = learner.inverse_transform(codes)
    assert codes.shape == (6, 54, 2)
    assert expected.shape == x.shape
    assert expected.min() > 0
    assert expected.max() < (loss.largest or np.inf)
    assert np.isfinite(learner.score(x))
    assert learner.intercept_.shape == (1,)
    assert hasattr(learner, "step_size_") == (not isinstance(loss, Poisson))
    again = pickle.loads(pickle.dumps(learner)).partial_fit(x)
    np.testing.assert_array_equal(learner.partial_fit(x).components_, again.components_)
    same = learner_of(loss, gradient=gradient).fit(x.astype(np.float32))
    assert same.components_.dtype == same.intercept_.dtype == np.float32


@pytest.mark.filterwarnings("ignore:All codes of .* are zero:UserWarning")
def test_score_is_the_deviance_that_is_explained(loss):
    """Nothing is by atoms that no code uses, and their baseline is the mean."""
    x = spikes(loss)
    learner = learner_of(loss, alpha=1e6).fit(x)
    mean = torch.tensor(x.mean())
    learner.intercept_ = np.array([float(loss.natural(mean))])
    assert learner.score(x) == pytest.approx(0, abs=1e-10)
    assert learner_of(loss, alpha=0.3, max_iter=20, optimizer=FAST).fit(x).score(x) < 1


def test_integers_are_counts_and_rows_are_signals():
    x = spikes(Poisson())
    learner = learner_of(Poisson()).fit(x)
    expected = learner.transform(x)
    np.testing.assert_array_equal(learner.transform(x.astype(np.uint8)), expected)
    rows = learner_of(Poisson()).fit(x[..., 0])
    np.testing.assert_array_equal(rows.components_, learner.components_[..., 0])
    np.testing.assert_array_equal(rows.transform(x[..., 0]), expected.reshape(6, -1))


def test_what_is_missing_counts_for_nothing(loss):
    """Atoms side by side: the codes, the baseline and the updates are those of what is known."""
    known = spikes(loss, length=49)
    x = np.concatenate([known, np.full((6, 14, 1), np.nan)], axis=1)
    options = dict(stride=7, optimizer=STILL)
    learner = learner_of(loss, **options).fit(known)
    same = learner_of(loss, **options).fit(x)
    np.testing.assert_allclose(same.intercept_, learner.intercept_, rtol=1e-9)
    np.testing.assert_allclose(same.loss_curve_, learner.loss_curve_, rtol=1e-9)
    codes = learner.transform(x)
    np.testing.assert_allclose(codes[:, :7], learner.transform(known), rtol=1e-9, atol=1e-12)
    assert not codes[:, 7:].any()
    with pytest.raises(ValueError, match="NaN"):
        learner.score(x)


def best_correlations(learner, kernels):
    """Return that of each kernel with the atom like it, whatever its sign and shift."""
    atoms = learner.components_.reshape(len(kernels), -1)
    pairs = [[np.correlate(atom, kernel, "full") for atom in atoms] for kernel in kernels]
    return np.abs(pairs).max(axis=(1, 2))


@pytest.mark.parametrize(
    ("loss", "base", "size", "rate"),
    [(Poisson(), 1.0, (2, 4), 0.01), (Binomial(10), 0.5, (4, 6), 0.02)],
    ids=["poisson", "binomial"],
)
def test_kernels_are_found_in_data_alone(loss, base, size, rate):
    """By the search, in what counts are to least squares; the baseline is that of the loss."""
    rng, phase = np.random.default_rng(0), np.linspace(0, 1, 15)
    kernels = np.stack([np.sin(np.pi * phase), np.sin(2 * np.pi * phase)])
    kernels /= np.linalg.norm(kernels, axis=1, keepdims=True)
    natural = np.full((60, 240), base)
    for kernel in kernels:
        events = rng.uniform(*size, size=(60, 226)) * (rng.random((60, 226)) < rate)
        natural += np.stack([np.convolve(row, kernel) for row in events])
    if isinstance(loss, Poisson):
        x, given = rng.poisson(np.exp(natural)), dict(loss="poisson")
    else:
        x, given = rng.binomial(10, 1 / (1 + np.exp(-natural))), dict(loss="binomial", n_trials=10)
    x = x.astype(float)[..., None]
    learner = ConvPUDLEDictionaryLearning(2, atom_shape=15, stride=1, random_state=0, **given)
    codes = learner.fit_transform(x)
    assert learner.ended_by_ == "search"
    assert best_correlations(learner, kernels).min() > 0.85
    expected = learner.inverse_transform(codes)
    np.testing.assert_allclose(expected.mean(), x.mean(), rtol=2e-3)


def odd_signals(largest):
    """Return signals at the borders of a domain, (4, 40, 1) each."""
    rng = np.random.default_rng(0)
    end = largest or 1e4
    plain = rng.poisson(1.5, (4, 40, 1)).clip(0, end).astype(float)
    huge = plain.copy()
    huge[1] = end
    return {
        "clipped": ((plain > 1) * end).clip(1e-6 * end, (1 - 1e-6) * end),
        "rare": (rng.random((4, 40, 1)) < 0.02).astype(float),
        "rare others": end - (rng.random((4, 40, 1)) < 0.02),
        "constant": np.ones((4, 40, 1)),
        "all zero": np.zeros((4, 40, 1)),
        "all at the end": np.full((4, 40, 1), end),
        "heavy tails": rng.poisson(np.exp(2 * rng.normal(size=(4, 40, 1)))).clip(0, end),
        "one huge signal": huge,
    }


# lassos of constant signals have many solutions, on the way between which they stop
@pytest.mark.filterwarnings("ignore:The codes of:sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("kind", odd_signals(None))
@pytest.mark.parametrize("family", [*FAMILIES.values(), Gaussian()], ids=[*FAMILIES, "gaussian"])
@pytest.mark.parametrize(
    "options", [{}, dict(gradient="ae-ls", max_iter=5, tol=None)], ids=["search", "ae-ls"]
)
def test_the_objective_is_at_most_that_of_the_baseline(options, family, kind):
    """As of rows, and of ae-ls without the penalty; half an event makes the mean rate finite."""
    x = np.asarray(odd_signals(getattr(family, "n_trials", None))[kind], float)
    counts = not isinstance(family, Gaussian)
    given = dict(debias=0.0)  # codes that minimise the objective
    if counts:
        given = dict(loss="poisson" if isinstance(family, Poisson) else "binomial")
    if isinstance(family, Binomial):
        given["n_trials"] = family.n_trials
    learner = ConvPUDLEDictionaryLearning(2, atom_shape=5, stride=1, random_state=0, **given)
    codes = torch.tensor(learner.set_params(**options).fit(x).transform(x)).mT
    atoms = torch.tensor(learner.components_).mT
    natural, data = torch.conv_transpose1d(codes, atoms), torch.tensor(x).mT
    baseline = torch.zeros(())
    if counts:
        natural = natural + float(learner.intercept_[0])
        baseline = family.natural((data.sum() + 0.5) / (data.numel() + 1))
    objective = family.half_deviance(natural, data).sum()
    if not options:
        objective = objective + learner.alpha_ * codes.abs().sum()
    assert objective <= family.half_deviance(baseline, data).sum() * (1 + 1e-9)


def test_data_outside_of_the_domain_are_refused(loss):
    x = spikes(loss)
    learner = learner_of(loss).fit(x)
    for method in ("fit", "partial_fit", "transform", "score"):
        with pytest.raises(ValueError, match="Negative values"):
            getattr(learner, method)(-1 - x)
    if isinstance(loss, Binomial):
        with pytest.raises(ValueError, match="above n_trials"):
            learner.transform(x + loss.n_trials)
    tags = learner.__sklearn_tags__().input_tags
    assert tags.positive_only
    assert not tags.sparse


def test_counts_are_not_solved_for():
    with pytest.raises(ValueError, match=r"solved for .* with loss='poisson' pass n_unfoldings"):
        learner_of(Poisson(), n_unfoldings=None, gradient="dec").fit(spikes(Poisson()))


# ---------------------------------------------------------------------------- photons

IMAGES = dict(
    atom_shape=(5, 4), stride=2, n_unfoldings=3, separate_atoms="unfolding", alpha=0.4,
    learn_threshold="unfolding", atom_norm=None, max_iter=2, tol=None, random_state=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def light():
    """What is expected, and what was counted."""
    rng = np.random.default_rng(0)
    expected = rng.uniform(0, 4, size=(4, 13, 16))
    return expected, rng.poisson(expected).astype(float)


def root(x):
    return 2 * np.sqrt(x + 3 / 8)


def test_a_network_for_photons_is_one_for_roots(light):
    """The same updates for pairs, and the same results."""
    expected, counts = light
    photons = ConvDenoiser(6, **IMAGES, noise_std="poisson", flip=False)
    roots = ConvDenoiser(6, **IMAGES, noise_std=0.0, flip=False)
    photons.fit(counts, expected)
    roots.fit(root(counts), root(expected))
    np.testing.assert_allclose(photons.components_, roots.components_, rtol=1e-10)
    codes = photons.transform(counts)
    np.testing.assert_allclose(codes, roots.transform(root(counts)), rtol=1e-9, atol=1e-12)
    decoded = np.maximum((np.maximum(roots.inverse_transform(codes), 0) / 2) ** 2 - 3 / 8, 0)
    np.testing.assert_allclose(photons.inverse_transform(codes), decoded, rtol=1e-9, atol=1e-12)
    denoised = photons.denoise(counts)
    np.testing.assert_array_equal(
        photons.denoise(counts.astype(np.uint16)), photons.denoise(counts)
    )
    error = np.square(denoised - expected).mean(axis=(1, 2))
    psnr = np.mean(10 * np.log10(16 / error))
    assert photons.score(counts, expected, peak=4.0) == pytest.approx(psnr)


def test_counts_are_drawn_anew(light):
    """Two epochs of one image see other counts: the loss of no update is that of the image."""
    expected, counts = light
    learner = ConvDenoiser(6, **IMAGES | dict(noise_std="poisson", flip=False))
    learner.set_params(learning_rate=1e-12, max_iter=6).fit(expected)
    assert len(set(learner.loss_curve_)) == 6
    of_pairs = learner.partial_fit(counts, expected).loss_curve_[-1]
    np.testing.assert_allclose(learner.loss_curve_, of_pairs, rtol=0.3)
    assert learner.score(expected) == learner.score(expected)


def test_a_denoiser_of_photons_is_kept(light, tmp_path):
    expected, counts = light
    learner = ConvDenoiser(6, **IMAGES, noise_std="poisson")
    learner.fit(expected.astype(np.float32))
    save_denoiser(learner, tmp_path / "photons.npz")
    same = load_denoiser(tmp_path / "photons.npz", shift_average=False)
    assert same.noise_std == "poisson"
    np.testing.assert_array_equal(same.denoise(counts), learner.denoise(counts))


def test_what_is_no_photon_is_refused(light):
    expected, counts = light
    learner = ConvDenoiser(6, **IMAGES, noise_std="poisson").fit(expected)
    for call in (learner.fit, learner.denoise, lambda x: learner.fit(counts, x)):
        with pytest.raises(ValueError, match="Negative values"):
            call(-1 - counts)
    with pytest.raises(ValueError, match="Leave noise_std=None"):
        learner.denoise(counts, noise_std=1.0)
    with pytest.raises(ValueError, match="3 channels"):
        learner.denoise(np.stack([counts] * 3, axis=-1))


def decibels(image, expected):
    return -10 * np.log10(np.square(image - expected).mean())


def test_the_penalty_of_photons_is_next_to_their_noise(light):
    """As for roots, whose noise is 1."""
    expected, counts = light
    options = dict(atom_shape=(5, 5), stride=2, flip=False, max_iter=2, tol=None, random_state=0)
    photons = ConvDenoiser(3, **options, noise_std="poisson").fit(counts, expected)
    roots = ConvDenoiser(3, **options, noise_std=1.0, alpha=1.6).fit(root(counts), root(expected))
    np.testing.assert_allclose(photons.components_, roots.components_, rtol=1e-9, atol=1e-12)
    assert photons.alpha_ == 1.6


@pytest.mark.parametrize("peak", [1, 4])
def test_the_packaged_network_denoises_photons(peak):
    image = load_sample_image("flower.jpg").mean(axis=2)[100:180, 200:290]
    expected = peak * image / image.max()
    counts = np.random.default_rng(0).poisson(expected)
    learner = load_denoiser("poisson", shift_average=False)
    smoothed = ndimage.gaussian_filter(counts.astype(float), 2)
    assert learner.score([counts], [expected]) > 0.5 + decibels(smoothed, expected)


# ---------------------------------------------------------------------------- channels


def counted(loss, shape):
    rng = np.random.default_rng(0)
    if isinstance(loss, Gaussian):
        return rng.normal(size=shape)
    rates = np.abs(rng.normal(size=shape)) * np.arange(1, 1 + shape[-1])
    if isinstance(loss, Poisson):
        return rng.poisson(rates).astype(float)
    return rng.binomial(int(loss.n_trials), rates / (1 + rates)).astype(float)


ALL = pytest.mark.parametrize("loss", [Gaussian(), *FAMILIES.values()], ids=["gaussian", *FAMILIES])


def colour_learner(loss, n_components, kernel, **options):
    given = {} if isinstance(loss, Gaussian) else learner_of(loss).get_params()
    given = {name: given[name] for name in ("loss", "n_trials") if name in given}
    return ConvPUDLEDictionaryLearning(
        n_components, atom_shape=kernel, random_state=0, **given | options
    )


@pytest.mark.parametrize("n_images", [2, 3])
def test_the_search_sees_each_channel_without_its_baseline(loss, n_images, monkeypatch):
    """Images of the mean of their channel are zero, also for as many images as channels."""
    seen = []

    def noted(x, *given, unit, **options):
        seen.append(x * unit)
        return ConvProblem(x, *given, unit=unit, **options)

    monkeypatch.setattr(conv_search, "ConvProblem", noted)
    rates = np.array([0.1, 0.5, 0.9]) * loss_size(loss)
    images = np.broadcast_to(rates, (n_images, 25, 26, 3))
    colour_learner(loss, 2, (4, 4), stride=2).fit(images)
    assert seen[0].abs().max() < 0.02


def loss_size(loss):
    return loss.n_trials if isinstance(loss, Binomial) else 20


@pytest.mark.parametrize("n_components", [2, "auto"])
@pytest.mark.parametrize("shape", [(2, 12, 11, 3), (3, 20, 2), (2, 12, 11, 1)], ids=str)
@ALL
def test_several_channels_pass_through_every_method(loss, shape, n_components):
    kernel = (4, 3)[: len(shape) - 2]
    learner = colour_learner(loss, n_components, kernel, stride=1)
    X = counted(loss, shape)
    codes = learner.fit(X).transform(X)
    assert learner.components_.shape == (learner.n_components_, *kernel, shape[-1])
    back = learner.inverse_transform(codes)
    assert back.shape == shape
    assert np.square(X - back).sum() < np.square(X - X.mean(tuple(range(X.ndim - 1)))).sum()
    if not isinstance(loss, Gaussian):
        assert np.isfinite(learner.score(X))
    X[np.random.default_rng(1).random(shape) < 0.1] = np.nan
    assert np.isfinite(learner.partial_fit(X).transform(X)).all()
