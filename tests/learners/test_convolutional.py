"""What convolutional learners share: images of any form go in, and results have the same form."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skpudle import ConvDenoiser, ConvPUDLEDictionaryLearning
from skpudle._data.images import read_images
from skpudle._denoiser.estimator import Training
from skpudle._learners.convolutional.phases import ImagePhases

SMALL = dict(atom_shape=(5, 4), stride=(2, 3), random_state=0)
OF_TRAINING = dict(n_unfoldings=4, max_iter=2, tol=None, batch_size=16)
# atoms that fit into rows, which are lines
LINES = dict(atom_shape=(1, 4), stride=(1, 3))


@pytest.fixture(params=[ConvPUDLEDictionaryLearning, ConvDenoiser])
def kind(request):
    return request.param


def learner_of(kind=ConvPUDLEDictionaryLearning, n_components=6, **options):
    more = OF_TRAINING if kind is ConvDenoiser else {}
    return kind(n_components, **SMALL | more | options)


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 13, 16))


def stop(error):
    """Return an epoch that ends by an error."""

    def run_epoch(*arguments):
        raise error

    return run_epoch


@pytest.fixture
def frame(images):
    return pd.DataFrame(images.reshape(5, -1)).add_prefix("pixel ")


@pytest.mark.parametrize("channels", [(), (2,)], ids=str)
def test_signals_have_one_axis(channels, kind):
    signals = np.random.default_rng(0).normal(size=(4, 30, 2))[
        ..., : 2 if channels else 1
    ]
    X = [signal if channels else signal[:, 0] for signal in signals]
    options = dict(atom_shape=7, stride=2)
    learner = learner_of(kind, **options).fit(signals if channels else signals[..., 0])
    if kind is ConvDenoiser:
        assert [x.shape for x in learner.denoise([x[:11] for x in X])] == [
            (11, *channels)
        ] * 4
        return
    assert learner.components_.shape == (6, 7, *channels)
    assert learner.transform([X[0][:12]])[0].shape == (4, 6)


def test_a_list_is_its_images_one_by_one(images, kind):
    learner, several = learner_of(kind).fit(images), [images[0], images[1][:9, :7]]
    use = learner.denoise if kind is ConvDenoiser else learner.transform
    together = use(images)
    np.testing.assert_allclose(use(list(images)), together, atol=1e-12)
    np.testing.assert_allclose(use(several)[0], together[0], atol=1e-12)
    learner.fit(several)


@pytest.mark.parametrize("container", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("n_bits", [8, 16, 32, 64])
def test_the_largest_value_of_any_unsigned_integer_is_one(n_bits, container):
    pixels = np.array([[[0, 2 ** (n_bits - 1), 2**n_bits - 1]]], dtype=f"uint{n_bits}")
    (read,) = read_images(container(pixels), 2).tensors
    assert read.dtype == torch.float32
    np.testing.assert_allclose(read.flatten(), [0, 0.5, 1], atol=0.01)
    (signed,) = read_images(container((pixels >> 1).astype(f"int{n_bits}")), 2).tensors
    assert signed.max() == pytest.approx(2 ** (n_bits - 1) - 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_type_of_the_input(dtype, images, kind):
    learner = learner_of(kind).fit(images.astype(dtype))
    if kind is ConvDenoiser:
        assert learner.denoise(images.astype(dtype)).dtype == dtype
        return
    assert learner.components_.dtype == dtype
    assert learner.transform(images.astype(dtype)).dtype == dtype


@pytest.mark.parametrize("first", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("then", [np.float32, np.float64, np.uint8])
def test_training_goes_on_with_images_of_another_dtype(first, then):
    images = np.random.default_rng(0).integers(256, size=(3, 13, 16), dtype=np.uint8)
    converted = [
        (images / 255).astype(d) if d is not np.uint8 else images for d in (first, then)
    ]
    learner = learner_of(ConvDenoiser).fit(converted[0])
    dtype = learner.network_.analysis.dtype
    learner.partial_fit(converted[1])
    assert learner.network_.analysis.dtype == dtype
    assert learner.n_steps_ == 3


def test_pipelines_and_searches_take_rows(images, kind):
    rows, options = images.reshape(5, -1), dict(atom_shape=5, stride=2)
    search = GridSearchCV(learner_of(kind, **options), {"alpha": [0.1, 0.5]}, cv=2)
    assert np.isfinite(search.fit(rows).cv_results_["mean_test_score"]).all()
    if kind is ConvDenoiser:
        return
    pipeline = make_pipeline(FunctionTransformer(), learner_of(kind, **options))
    codes = pipeline.fit_transform(rows)
    names = pipeline[-1].get_feature_names_out()
    assert codes.shape == (5, len(names)) == (5, 103 * 6)
    assert pipeline.inverse_transform(codes).shape == rows.shape


def test_wrong_images_are_refused(images, kind):
    learner = learner_of(kind).fit(images)
    use = learner.score if kind is ConvDenoiser else learner.transform
    with pytest.raises(ValueError, match="fitted on images. Pass one image as"):
        use(images[0])
    with pytest.raises(ValueError, match="5 channels, but .* fitted on 1"):
        use(np.zeros((2, 13, 16, 5)))
    with pytest.raises(ValueError, match="same number of channels"):
        use([images[0], np.zeros((13, 16, 2))])
    with pytest.raises(ValueError, match=r"one signal of 16 samples.*pass \[X\]"):
        learner_of(kind, atom_shape=5, stride=1).fit(images[0, 0])
    with pytest.raises(ValueError, match="Images of 2 axes are expected"):
        use(np.zeros((2, 3, 4, 5, 6)))
    with pytest.warns(UserWarning, match=r"or X\.reshape"):
        learner_of(kind).fit(images.reshape(5, -1))


@pytest.mark.filterwarnings("ignore:The noise of an image")
@pytest.mark.parametrize("how", ["fit", "interrupted"])
def test_nothing_is_left_of_an_earlier_fit(how, images, frame, monkeypatch):
    """Neither slopes that there are no more, nor the names of features that images have not."""
    learner = learner_of(ConvDenoiser, **LINES, noise_std=(0.1, 0.5)).fit(frame)
    learner.set_params(noise_std=0.1)
    if how == "interrupted":
        run = Training.run_epoch

        def press(training, interrupts):
            interrupts.pending = True
            return run(training, interrupts)

        monkeypatch.setattr(Training, "run_epoch", press)
        with pytest.raises(KeyboardInterrupt, match="interrupted after: epoch 1"):
            learner.fit(images)
        assert learner.ended_by_ == "interrupt"
    else:
        learner.fit(images)
        fresh = clone(learner).fit(images)
        np.testing.assert_array_equal(learner.denoise(images), fresh.denoise(images))
    assert learner.network_.slopes is None
    assert not {"n_features_in_", "feature_names_in_"} & vars(learner).keys()


def test_a_fit_that_fails_changes_nothing(images, frame, kind, monkeypatch):
    learner = learner_of(kind, **LINES).fit(frame)
    before = dict(vars(learner))
    monkeypatch.setattr(Training, "run_epoch", stop(RuntimeError("out of luck")))
    monkeypatch.setattr(ImagePhases, "first", stop(RuntimeError("out of luck")))
    for X in (images, frame.rename(columns=str.upper).iloc[:, ::-1]):
        with pytest.raises(RuntimeError, match="out of luck"):
            learner.fit(X)
        after = vars(learner)
        assert all(
            after[name] is value for name, value in before.items() if name.endswith("_")
        )
    assert not [name for name in after.keys() - before.keys() if name.endswith("_")]


@pytest.mark.parametrize("n_components", [2, "auto"])
@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        ((2, 12, 11), (4, 3)),
        ((2, 12, 11, 1), (4, 3)),
        ((2, 12, 11, 3), (4, 3)),
        ((3, 20, 2), (4,)),
    ],
    ids=str,
)
def test_channels_pass_through_every_method_if_they_came_in(
    shape, kernel, n_components
):
    channels = shape[1 + len(kernel) :]
    learner = ConvPUDLEDictionaryLearning(
        n_components, atom_shape=kernel, stride=1, random_state=0
    )
    X = np.random.default_rng(0).normal(size=shape)
    codes = learner.fit(X).transform(X)
    assert learner.components_.shape == (learner.n_components_, *kernel, *channels)
    back = learner.inverse_transform(codes)
    assert back.shape == shape
    assert (
        np.square(X - back).sum()
        < np.square(X - X.mean(tuple(range(1 + len(kernel))))).sum()
    )
    X[np.random.default_rng(1).random(shape) < 0.1] = np.nan
    assert np.isfinite(learner.fit(X).transform(X)).all()


# ---------------------------------------------------------------------------- from the data alone


@pytest.fixture
def traces():  # (20, 80), of one shape at random times
    rng = np.random.default_rng(0)
    shape = np.sin(np.linspace(0, 3 * np.pi, 10)) * np.hanning(10)
    traces = 0.01 * rng.normal(size=(20, 80))
    for trace in traces:
        for start in rng.integers(70, size=2):
            trace[start : start + 10] += rng.uniform(1, 2) * shape
    return traces


def test_codes_after_a_search_satisfy_the_optimality_condition(traces):
    """Of the lasso: correlations with the residual are alpha where codes are, and at most alpha."""
    learner = learner_of(n_components=2, atom_shape=10, stride=1, alpha=0.1).fit(traces)
    codes = learner.transform(traces)
    rest = traces - learner.inverse_transform(codes)
    slopes = [[np.correlate(row, atom) for atom in learner.components_] for row in rest]
    slopes = np.swapaxes(slopes, 1, 2).reshape(codes.shape)
    used = codes != 0
    np.testing.assert_allclose(
        slopes[used], 0.1 * np.sign(codes[used]), rtol=0, atol=1e-6
    )
    assert np.abs(slopes).max() <= 0.1 + 1e-6


def test_a_search_with_gaps_fills_them(traces):
    missing = np.random.default_rng(1).random(traces.shape) < 0.2
    gaps = np.where(missing, np.nan, traces)
    learner = learner_of(n_components=1, atom_shape=10, stride=1, alpha=0.1).fit(gaps)
    error = learner.inverse_transform(learner.transform(gaps)) - traces
    assert np.square(error[missing]).sum() < 0.2 * np.square(traces[missing]).sum()


def test_black_images_have_a_search_too():
    learner = learner_of(n_components=2, atom_shape=3, stride=1).fit(np.zeros((3, 12)))
    assert not learner.transform(np.zeros((3, 12))).any()


# ---------------------------------------------------------------------------- axes

RGB = np.random.default_rng(0).random((21, 18, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "image", [RGB, torch.tensor(RGB), RGB.tolist()], ids=["array", "tensor", "lists"]
)
def test_one_colour_image_is_not_many_grey_ones(image):
    """Without an error it was: 21 images of 18 x 3 pixels."""
    grey = learner_of(ConvDenoiser).fit([RGB[..., 0]])
    for method in (grey.fit, grey.partial_fit, grey.score):
        with pytest.raises(
            ValueError, match=r"21 images of .* Pass one image as \[image\]"
        ):
            method(image)


def test_one_colour_image_is_one_for_a_learner_of_colours():
    learner = learner_of(ConvDenoiser).fit([RGB])
    expected = learner.denoise([RGB])[0]
    assert expected.shape == RGB.shape
    np.testing.assert_array_equal(learner.denoise(RGB), expected)
    np.testing.assert_array_equal(learner.denoise(torch.tensor(RGB)), expected)
    assert learner.score(RGB, RGB) == learner.score([RGB], [RGB])
    dictionary = learner_of().fit([RGB])
    codes = dictionary.transform(RGB)
    np.testing.assert_array_equal(codes, dictionary.transform([RGB])[0])
    back = dictionary.inverse_transform(codes)
    np.testing.assert_array_equal(back, dictionary.inverse_transform(codes[None])[0])


@pytest.mark.parametrize("n_channels", [1, 3])
def test_channels_that_come_first_are_refused(n_channels):
    images = np.random.default_rng(0).normal(size=(5, n_channels, 13, 16))
    learner = learner_of(ConvDenoiser).fit(np.moveaxis(images, 1, -1))
    for wrong in (images, list(images), torch.tensor(images)):
        for method in (learner.fit, learner.denoise):
            with pytest.raises(
                ValueError, match="channels_first=True if they are its first"
            ):
                method(wrong)
    if n_channels > 1:
        with pytest.raises(ValueError, match="channels are the last axis"):
            learner.denoise(images[0])


def test_one_grey_image_is_not_silently_rows():
    with pytest.warns(
        UserWarning, match=r"image of \(1, 18\).* one image as \[image\]"
    ):
        learner_of(ConvDenoiser).fit(RGB[..., 0])
