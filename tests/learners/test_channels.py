"""Signals with many channels: atoms of rank one, channels first, and wrong calls."""

import numpy as np
import pytest
import torch

from skpudle import ConvDenoiser, ConvPUDLEDictionaryLearning

LENGTH = 12


def planted(n_channels=6, noise=0.05, seed=0):
    """Return signals (8, 150, n_channels), maps (2, n_channels) and waveforms (2, 12)."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(2, n_channels))
    maps /= np.linalg.norm(maps, axis=1, keepdims=True)
    time = np.arange(LENGTH) / LENGTH
    waves = np.stack(
        [np.sin(2 * np.pi * time) * time, np.exp(-(((time - 0.4) / 0.15) ** 2))]
    )
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    signals = noise * rng.normal(size=(8, 150, n_channels))
    for signal in signals:
        for k in range(2):
            for start in rng.choice(150 - LENGTH, 4, replace=False):
                signal[start : start + LENGTH] += rng.uniform(1, 2) * np.outer(
                    waves[k], maps[k]
                )
    return signals, maps, waves


def learner_of(n_components=2, **options):
    known = dict(atom_shape=LENGTH, rank=1, positive_code=True, random_state=0)
    return ConvPUDLEDictionaryLearning(n_components, **known | options)


def assert_products(learner):
    """Atoms are products of their maps and waveforms, whose largest excursions are positive."""
    maps, waveforms = learner.spatial_components_, learner.temporal_components_
    products = np.einsum("kc,kt->ktc", maps, waveforms)
    accuracy = 1e-6 if learner.components_.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(
        products, learner.components_.reshape(products.shape), atol=accuracy
    )
    np.testing.assert_allclose(np.linalg.norm(waveforms, axis=1), 1, atol=accuracy)
    assert (waveforms.max(1) == np.abs(waveforms).max(1)).all()


# ---------------------------------------------------------------- rank one


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("n_channels", [2, 6])
def test_maps_and_waveforms_are_found(n_channels, dtype):
    signals, maps, _ = planted(n_channels)
    learner = learner_of().fit(signals.astype(dtype))
    assert_products(learner)
    assert learner.components_.dtype == dtype
    cosines = np.abs(learner.spatial_components_ @ maps.T)
    assert sorted(cosines.argmax(1)) == [0, 1]
    assert cosines.max(1).min() > 0.99


@pytest.mark.parametrize(
    "options",
    [dict(n_components="auto"), dict(n_components=7), dict(stride=3)],
    ids=str,
)
def test_atoms_of_every_fit_are_products(options):
    signals, _, _ = planted()
    learner = learner_of(**options).fit(signals)
    assert_products(learner)


def test_a_source_is_not_found_twice():
    """A first search explains the events of one source by two shifted copies."""
    rng, time = np.random.default_rng(6), np.arange(40)
    waves = (
        np.sin(2 * np.pi * time / 13) * np.hanning(40),
        np.exp(-(((time - 10) / 3) ** 2)),
    )
    waves[1][:] -= 0.5 * np.exp(-(((time - 24) / 6) ** 2))
    maps, recordings = rng.normal(size=(2, 6)), 0.1 * rng.normal(size=(8, 6, 400))
    for recording in recordings:
        for start in range(0, 390, 65):
            place, k = start + rng.integers(20), start // 65 % 2
            recording[:, place : place + 40] += rng.uniform(0.7, 1.3) * np.outer(
                maps[k], waves[k]
            )
    learner = learner_of(atom_shape=40, channels_first=True, positive_code=False).fit(
        recordings
    )
    cosines = np.abs(learner.spatial_components_ @ maps.T) / np.linalg.norm(
        maps, axis=1
    )
    assert cosines.max(0).min() > 0.95


# ---------------------------------------------------------------- axes


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, list])
def test_channels_may_come_first(kind):
    signals, _, _ = planted()
    first = np.ascontiguousarray(np.moveaxis(signals, 2, 1))
    learner = learner_of().fit(signals)
    other = learner_of(channels_first=True).fit(kind(first))
    np.testing.assert_array_equal(other.components_, learner.components_)
    codes, expected = other.transform(kind(first)), learner.transform(signals)
    np.testing.assert_array_equal(np.stack([np.asarray(z) for z in codes]), expected)
    filled = np.stack([np.asarray(x) for x in other.inverse_transform(codes)])
    np.testing.assert_allclose(
        filled, np.moveaxis(learner.inverse_transform(expected), 2, 1)
    )
    assert other.score(kind(first)) == pytest.approx(learner.score(signals), rel=1e-12)


def test_one_recording_has_channels_and_times():
    signals, _, _ = planted()
    recording = signals[0].T
    learner = learner_of(channels_first=True).fit(recording)
    expected = learner_of().fit(signals[:1])
    np.testing.assert_array_equal(learner.components_, expected.components_)
    codes = learner.transform(recording)
    np.testing.assert_array_equal(codes, expected.transform(signals[:1])[0])
    assert (
        learner.inverse_transform(codes) == expected.inverse_transform(codes[None])[0].T
    ).all()


@pytest.mark.filterwarnings("ignore:The noise of an image")
def test_pictures_may_have_their_channels_first():
    pictures = np.random.default_rng(0).normal(size=(3, 11, 13, 2))
    params = dict(atom_shape=(5, 5), stride=2, n_unfoldings=3, max_iter=1, tol=None)
    params |= dict(random_state=0, noise_std=0.1)
    last = ConvDenoiser(4, **params).fit(pictures)
    first = ConvDenoiser(4, channels_first=True, **params)
    first.fit(np.moveaxis(pictures, 3, 1))
    torch.testing.assert_close(
        first.network_.synthesis, last.network_.synthesis, rtol=0, atol=0
    )
    denoised = first.denoise(np.moveaxis(pictures, 3, 1))
    np.testing.assert_allclose(denoised, np.moveaxis(last.denoise(pictures), 3, 1))
    single = first.denoise(np.moveaxis(pictures[0], 2, 0))
    np.testing.assert_allclose(single, denoised[0])


# ---------------------------------------------------------------- unequal noise


@pytest.mark.parametrize("rank", [None, 1])
def test_units_of_the_noise_are_units_of_the_data_divided_by_it(rank):
    """Atoms and reconstructions go back to the units of the data; codes have none."""
    signals, _, _ = planted(n_channels=4)
    noise = np.array([0.5, 1.0, 2.0, 4.0])
    plain = learner_of(rank=rank, channel_noise="auto").fit(signals)
    scaled = learner_of(rank=rank, channel_noise="auto").fit(signals * noise)
    np.testing.assert_allclose(scaled.channel_noise_, plain.channel_noise_ * noise)
    np.testing.assert_allclose(
        scaled.components_, plain.components_ * noise, atol=1e-10
    )
    codes, expected = scaled.transform(signals * noise), plain.transform(signals)
    np.testing.assert_allclose(codes, expected, atol=1e-8)
    reconstruction = plain.inverse_transform(expected) * noise
    np.testing.assert_allclose(
        scaled.inverse_transform(codes), reconstruction, atol=1e-8
    )
    assert scaled.score(signals * noise) == pytest.approx(plain.score(signals))
    if rank:
        maps = plain.spatial_components_ * noise
        np.testing.assert_allclose(scaled.spatial_components_, maps, atol=1e-10)
        assert_products(scaled)


def test_estimated_noise_follows_the_noise_of_each_channel():
    rng = np.random.default_rng(0)
    noise = np.array([0.3, 1.0, 3.0])
    X = noise * rng.normal(size=(5, 400, 3))
    X[0, 50:60] = np.nan
    learner = learner_of(channel_noise="auto").fit(X)
    np.testing.assert_allclose(learner.channel_noise_, noise, rtol=0.1)
    constant = X.copy()
    constant[..., 0] = 0
    floor = learner_of(channel_noise="auto").fit(constant).channel_noise_
    np.testing.assert_allclose(floor[0], 0.1 * np.median(floor))
