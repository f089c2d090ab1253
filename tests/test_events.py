"""Events: codes become a table of signals, times, atoms and amplitudes."""

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skpudle import ConvPUDLEDictionaryLearning, PUDLEDictionaryLearning
from skpudle.events import find_events

TIME = np.arange(16)
WAVE = np.exp(-(((TIME - 5) / 2.0) ** 2)) - 0.4 * np.exp(-(((TIME - 10) / 3.0) ** 2))
WAVE /= np.linalg.norm(WAVE)
EVENTS = [
    (0, 20, 1.0),
    (0, 80, 1.5),
    (0, 130, 0.8),
    (1, 40, 1.2),
    (1, 90, -1.0),
    (2, 10, 0.9),
]


def signals_with_events(n_channels=1, noise=0.01):
    rng = np.random.default_rng(0)
    pattern = np.linspace(1, 2, n_channels)
    pattern /= np.linalg.norm(pattern)
    signals = noise * rng.normal(size=(3, 160, n_channels))
    for signal, start, amplitude in EVENTS:
        signals[signal, start : start + 16] += amplitude * np.outer(WAVE, pattern)
    return signals


def learner_of(**options):
    return ConvPUDLEDictionaryLearning(
        1, **dict(atom_shape=16, random_state=0) | options
    )


@pytest.mark.parametrize(
    ("n_channels", "offset"), [(1, 0.0), (4, 0.0), (1, 0.6), (4, -2.0)]
)
def test_planted_events_are_found_at_their_peaks(n_channels, offset):
    signals = signals_with_events(n_channels) + offset
    learner = learner_of(rank=1 if n_channels > 1 else None).fit(signals)
    back = learner.inverse_transform(learner.transform(signals))
    np.testing.assert_allclose(np.median(back, axis=(0, 1)), offset, atol=0.01)
    table = find_events(learner, signals)
    assert table["signal"].tolist() == [signal for signal, *_ in EVENTS]
    assert table["time"].tolist() == [start + 5 for _, start, _ in EVENTS]
    found = table["amplitude"] * np.sign(table["amplitude"][0])
    np.testing.assert_allclose(found, [amplitude for *_, amplitude in EVENTS], atol=0.1)
    assert list(pd.DataFrame(table).columns) == ["signal", "time", "atom", "amplitude"]
    seconds = find_events(learner, signals, sampling_rate=50)
    np.testing.assert_allclose(seconds["time"], table["time"] / 50)


@pytest.mark.parametrize("kind", ["list", "rows", "first", "pipeline"])
def test_every_form_of_signals_has_the_same_events(kind):
    signals = signals_with_events()
    expected = find_events(learner_of(alpha=0.1).fit(signals), signals)
    given, learner = (
        list(signals),
        learner_of(alpha=0.1, channels_first=kind == "first"),
    )
    if kind == "rows":
        given = signals[..., 0]
    elif kind == "first":
        given = np.moveaxis(signals, 2, 1)
    elif kind == "pipeline":
        given, learner = (
            signals / 2,
            make_pipeline(FunctionTransformer(lambda X: 2 * X), learner),
        )
    table = find_events(learner.fit(given), given)
    for name in ("signal", "time", "atom"):
        np.testing.assert_array_equal(table[name], expected[name])
    np.testing.assert_allclose(table["amplitude"], expected["amplitude"])
    if kind == "first":  # the only signal of a recording is its first
        one = table[table["signal"] == 1]
        np.testing.assert_array_equal(
            find_events(learner, given[1])["time"], one["time"]
        )


def test_the_smallest_events_are_a_share_of_the_typical_one():
    signals = signals_with_events()
    learner = learner_of().fit(signals)
    all_events = np.abs(find_events(learner, signals, least=0)["amplitude"])
    energy = (
        np.minimum(np.sort(all_events), np.quantile(all_events, 0.98, method="lower"))
        ** 2
    )
    typical = np.sort(all_events)[np.searchsorted(energy.cumsum(), energy.sum() / 2)]
    for least in (0.2, 0.7, 1.0):
        found = np.abs(find_events(learner, signals, least=least)["amplitude"])
        assert len(found) == np.count_nonzero(all_events >= least * typical) > 0


@pytest.mark.parametrize("size", [8, 60])
def test_an_artefact_deletes_no_event(size):
    signals = signals_with_events()
    learner = learner_of().fit(signals)
    expected = find_events(learner, signals)[:-1]
    signals[2, 10:26, 0] += size * WAVE  # on the last event
    found = find_events(learner, signals)
    assert found[found["signal"] < 2].tolist() == expected.tolist()
    assert (2, 15) in found[["signal", "time"]].tolist()


@pytest.mark.parametrize(
    ("noise", "drift", "positive"), [(0.05, 0.5, False), (0.1, 0.15, True)]
)
def test_drift_makes_no_events(noise, drift, positive):
    clean = np.tile(signals_with_events(noise=noise), (2, 4, 1))
    both = clean, clean + 1 + drift * np.sin(np.arange(640) / 100)[:, np.newaxis]
    expected, found = (
        find_events(learner_of(positive_code=positive).fit(x), x) for x in both
    )
    np.testing.assert_array_equal(found["signal"], expected["signal"])
    np.testing.assert_allclose(found["time"], expected["time"], atol=1)


def test_wrong_calls_are_refused():
    signals = signals_with_events()
    learner = learner_of(alpha=0.1).fit(signals)
    for name, value in [
        ("least", 2),
        ("least", np.nan),
        *zip(["sampling_rate"] * 2, (0, np.inf)),
    ]:
        with pytest.raises(ValueError, match=f"{name}={value!r} is not a .* Pass a "):
            find_events(learner, signals, **{name: value})
    rows = np.random.default_rng(0).normal(size=(30, 5))
    with pytest.raises(ValueError, match="has no sparse codes of signals"):
        find_events(PUDLEDictionaryLearning(3, random_state=0).fit(rows), rows)
