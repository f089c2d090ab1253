"""Files of denoisers: what is none is refused by its name, in no more memory than it has bytes."""

import errno
import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from skpudle import ConvDenoiser
from skpudle.pretrained import load_denoiser, save_denoiser


@pytest.fixture(scope="module")
def learner():
    """Six atoms of 5 x 4 pixels with everything that a file may hold, and noise of any level."""
    images = np.random.default_rng(0).uniform(size=(4, 13, 16)).astype(np.float32)
    learner = ConvDenoiser(
        6,
        atom_shape=(5, 4),
        stride=2,
        n_unfoldings=3,
        separate_atoms="unfolding",
        learn_threshold="unfolding",
        atom_norm=None,
        noise_std=(0.05, 0.5),
        max_iter=2,
        tol=None,
        random_state=0,
    )
    return learner.fit(images)


@pytest.fixture
def file(learner, tmp_path):
    save_denoiser(learner, tmp_path / "denoiser.npz")
    return tmp_path / "denoiser.npz"


def arrays_of(file):
    with np.load(file) as stored:
        return dict(stored)


def assert_refused(file, reason=""):
    with pytest.raises(ValueError, match=rf"{file} is no denoiser: .*{reason}.*save_denoiser"):
        load_denoiser(file)


def test_an_older_file_stays_until_the_new_one_is_whole(learner, file, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            save_denoiser(learner, file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]
    save_denoiser(learner, file.with_suffix(""))  # ".npz" is appended
    assert file.read_bytes() == before


def test_a_denoiser_goes_into_an_open_file(learner, file):
    opened = io.BytesIO()
    save_denoiser(learner, opened)
    opened.seek(0)
    np.testing.assert_array_equal(
        load_denoiser(opened).components_, load_denoiser(file).components_
    )


CHANGES = {
    "not finite": dict(components_=np.full((6, 5, 4), np.nan, np.float32)),
    "threshold not finite": dict(alpha_=np.full((3, 6), np.inf)),
    "one row for all": dict(analysis_components_=np.ones((3, 1, 5, 4), np.float32)),
    "no layers": dict(analysis_components_=np.ones((6, 5, 4), np.float32)),
    "too many layers": dict(synthesis_components_=np.ones((3, 6, 5, 4), np.float32)),
    "one threshold for some": dict(alpha_=np.ones(5)),
    "negative thresholds": dict(alpha_=-np.ones(6)),
    "slopes for some": dict(alpha_slope_=np.ones((3, 5))),
    "slopes for one noise": dict(noise_std=np.array(0.1)),
    "atoms of another size": dict(atom_shape=np.array([5, 5])),
    "no atoms": dict(components_=np.ones((0, 5, 4), np.float32)),
    "numbers for atoms": dict(components_=np.ones(6)),
    "text for atoms": dict(components_=np.array("atoms")),
    "unfoldings": dict(n_unfoldings=np.array(-1)),
    "many unfoldings": dict(n_unfoldings=np.array([3, 3])),
    "stride": dict(stride=np.array([3, 3, 3])),
    "stride of nothing": dict(stride=np.array(0)),
    "step": dict(step_size_=np.array(-0.1)),
    "decay": dict(lambda_decay_=np.array(2.0)),
    "noise": dict(noise_std=np.array(-1.0)),
    "shrinkage": dict(shrinkage=np.array("other")),
    "a deep network": dict(n_unfoldings=np.array(10**8)),
    "a part of an unfolding": dict(n_unfoldings=np.array(2.7)),
    "a part of a pixel": dict(stride=np.array(1.5)),
    "a stride larger than atoms": dict(stride=np.array([2, 5])),
    "a huge stride": dict(stride=np.array(10**9)),
    "half a sign": dict(positive_code=np.array(0.5)),
    "a step that diverges": dict(step_size_=np.array(1e30)),
    "a step beyond float32": dict(step_size_=np.array(1e300)),
    "a peak beyond float32": dict(peak_=np.array(1e300)),
    "a peak of nothing": dict(peak_=np.array(1e-300)),
    "no decay": dict(lambda_decay_=np.array(0.0)),
    "noise beyond float32": dict(noise_std=np.array([0.1, 1e300])),
    "noise in another order": dict(noise_std=np.array([0.5, 0.1])),
    "three levels of noise": dict(noise_std=np.array([0.1, 0.2, 0.3])),
    "thresholds beyond float32": dict(alpha_=np.full(6, 1e300)),
    "one threshold for a range of noise": dict(alpha_=np.array(0.1), alpha_slope_=np.array(0.1)),
    "hard thresholds that were learned": dict(shrinkage=np.array("hard")),
    "huge atoms": dict(analysis_components_=np.full((3, 6, 5, 4), 1e38, np.float32)),
    "atoms of whole numbers": dict(components_=np.ones((6, 5, 4), int)),
    "atoms of truth values": dict(components_=np.ones((6, 5, 4), bool)),
    "something else": dict(other=np.ones(3)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_arrays_of_no_denoiser_are_refused(change, file):
    np.savez(file, **arrays_of(file) | CHANGES[change])
    assert_refused(file)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_unfoldings": 1001}, "n_unfoldings"),
        ({"stride": 6}, "leaves gaps"),
        ({"peak_": 0.0}, "peak_"),
        ({"components_": np.full((2, 4, 4), 1e39)}, "components_"),
    ],
    ids=str,
)
def test_a_denoiser_that_could_not_be_read_is_not_written(changes, reason, tmp_path):
    images = np.random.default_rng(0).uniform(size=(2, 8, 8))
    params = dict(atom_shape=(4, 4), stride=2, n_unfoldings=2, noise_std=0.1, max_iter=1, tol=None)
    learner = ConvDenoiser(2, random_state=0, **params).fit(images)
    vars(learner).update(changes)
    with pytest.raises(ValueError, match=f"{reason}.*cannot be stored"):
        save_denoiser(learner, tmp_path / "denoiser.npz")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["components_", "alpha_", "stride", "shrinkage", "step_size_"])
def test_what_is_missing_is_named(name, file):
    arrays = arrays_of(file)
    del arrays[name]
    np.savez(file, **arrays)
    assert_refused(file, f"lacks.*{name}")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_refused(share, file):
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    assert_refused(file)


@pytest.mark.parametrize("kind", ["compressed", "overlapping", "objects", "a claim", "text"])
def test_a_file_that_could_swell_or_run_something_is_refused(kind, file):
    arrays = arrays_of(file)
    if kind == "compressed":
        np.savez_compressed(file, **arrays, other=np.zeros(10**6))
    elif kind == "objects":
        np.savez(file, **arrays | {"components_": np.array([print], dtype=object)})
    elif kind == "text":
        file.write_text("text")
    elif kind == "a claim":  # of a size that no memory has
        npy = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            npy, dict(descr="<f4", fortran_order=False, shape=(2**60,))
        )
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("other.npy", npy.getvalue())
    else:  # two members that are the same bytes
        with zipfile.ZipFile(file, "a") as archive:
            twin = archive.getinfo("analysis_components_.npy")
            archive.filelist += [twin] * 3
            archive._didModify = True
    assert_refused(file)


def test_a_file_object_is_read_and_named(file):
    with file.open("rb") as opened:
        assert load_denoiser(opened).noise_std == (0.05, 0.5)
    file.write_bytes(b"nothing")
    with file.open("rb") as opened, pytest.raises(ValueError, match=f"{file} is no denoiser"):
        load_denoiser(opened)
    with pytest.raises(FileNotFoundError):
        load_denoiser(f"{file}.gone")


# ---------------------------------------------------------------------------- as a module of torch


@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("sigma", [0.1, None])
def test_the_module_denoises_as_the_learner(n_channels, sigma):
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.uniform(size=(2, n_channels, 24, 26)))
    learner = load_denoiser("gaussian-small", shift_average=False)
    module = learner.to_module()
    given = list(x.movedim(1, -1).numpy())
    expected = np.stack(learner.denoise(given, noise_std=sigma))
    np.testing.assert_allclose(module(x, sigma).movedim(1, -1), expected, atol=1e-12)
    if sigma is not None:
        levels = torch.tensor([0.1, 0.2], dtype=x.dtype)
        np.testing.assert_allclose(module(x, levels)[:1], module(x[:1], 0.1), atol=1e-12)


def test_the_module_is_differentiable_in_the_image():
    module = load_denoiser("gaussian-small", shift_average=False).to_module()
    x = torch.from_numpy(np.random.default_rng(0).uniform(size=(1, 1, 9, 10))).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, 0.1), x, atol=1e-4, rtol=1e-3)

    flat = torch.full((1, 1, 9, 10), 0.5, requires_grad=True)
    module(flat, 0.0).sum().backward()
    assert torch.isfinite(flat.grad).all()


def test_the_module_moves_and_is_saved_as_any_other():
    module = load_denoiser("gaussian-small", shift_average=False).to_module()
    assert not [*module.parameters()]
    assert module.to(torch.float64).atoms.dtype == torch.float64
    other = load_denoiser("gaussian-small", shift_average=False).to_module()
    other.atoms.zero_()
    other.load_state_dict(module.state_dict())
    x = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(other(x, 0.1), module(x, 0.1), atol=1e-6)


def test_model_cards_have_the_measured_figures():
    root = Path(__file__).parents[1]
    card = (root / "docs" / "guide" / "model_cards.rst").read_text(encoding="utf-8")
    results = {
        name: json.loads((root / f"benchmarks/results/denoisers/{name}.json").read_text())
        for name in ("any-noise", "any-noise-small", "low-light")
    }
    for name, result in results.items():
        assert f"{result['n_parameters']:,}" in card
        assert f"{result['crops']:,} crops" in card
        for kind in ("one_grid", "all_grids", "noise_estimated"):
            figures = dict(result.get(kind, {}))
            figures.pop("cpu_seconds_an_image", None)
            if name == "low-light":
                figures = {peak: measured["first_12"] for peak, measured in figures.items()}
            row = "".join(f"     - {figure:.2f}\n" for figure in figures.values())
            assert row in card, (name, kind)


def test_counts_have_no_module():
    with pytest.raises(ValueError, match="no noise level that a module would take. Call denoise"):
        load_denoiser("poisson").to_module()


@pytest.mark.filterwarnings("ignore")
def test_plug_and_play_of_deepinv_restores_a_blurred_photograph():
    """By its own loop, which lowers the level of noise; repeated at one level it need not end."""
    deepinv = pytest.importorskip("deepinv")
    from sklearn.datasets import load_sample_image

    clean = load_sample_image("china.jpg")[100:164, 200:264] / 255
    clean = torch.from_numpy(clean).float().movedim(-1, 0)[None]
    sigma = 7.65 / 255
    axis = torch.arange(-4.0, 5.0)
    bell = torch.exp(-0.5 * (axis / 1.5) ** 2)
    kernel = (bell[:, None] * bell)[None, None] / bell.sum() ** 2
    physics = deepinv.physics.BlurFFT(img_size=(3, 64, 64), filter=kernel)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    blurred = physics.A(clean) + sigma * noise
    module = load_denoiser("gaussian-small", shift_average=False).to_module()
    with torch.no_grad():
        restored = deepinv.optim.DPIR(sigma=sigma, denoiser=module)(blurred, physics)
    before, after = (float((x - clean).square().mean()) for x in (blurred, restored))
    assert after < 0.85 * before


@pytest.mark.parametrize("unit", [1.0, 255.0])
def test_images_of_any_unit_bring_no_warning_where_nobody_told_their_noise(learner, unit):
    """A network for a range of levels estimates the noise in the units of the image."""
    image = np.random.default_rng(1).uniform(size=(13, 16))
    np.testing.assert_allclose(
        learner.denoise([unit * image])[0], unit * learner.denoise([image])[0], rtol=1e-5
    )
