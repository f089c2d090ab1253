"""Files of denoisers: what is none is refused by its name, and nothing is run."""

import copy
import errno
import io
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from skpudle import ConvDenoiser
from skpudle.pretrained import load_denoiser, save_denoiser


@pytest.fixture(scope="module")
def learner():
    """Six atoms of 5 x 4 pixels, and noise of any level."""
    images = np.random.default_rng(0).uniform(size=(4, 13, 16)).astype(np.float32)
    options = dict(atom_shape=(5, 4), stride=2, n_unfoldings=3, noise_std=(0.05, 0.5))
    return ConvDenoiser(6, **options, max_iter=2, tol=None, random_state=0).fit(images)


@pytest.fixture
def file(learner, tmp_path):
    save_denoiser(learner, tmp_path / "denoiser.pt")
    return tmp_path / "denoiser.pt"


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((3, 14, 13, 3), dict(atom_shape=(5, 4), stride=(3, 2))),
        ((3, 30, 2), dict(atom_shape=7, stride=1)),
    ],
    ids=["colour", "two-channel signals"],
)
@pytest.mark.parametrize("noise_std", [0.1, (0.05, 0.5)])
@pytest.mark.filterwarnings("ignore:The noise of an image")
def test_a_denoiser_is_loaded_as_it_was_saved(shape, sizes, noise_std, tmp_path):
    noisy = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    options = dict(
        n_unfoldings=3, max_iter=1, tol=None, random_state=0, noise_std=noise_std
    )
    learner = ConvDenoiser(6, **sizes, **options).fit(noisy)
    save_denoiser(learner, tmp_path / "denoiser")  # ".pt" is appended
    loaded = load_denoiser(tmp_path / "denoiser.pt")
    for name in ("atom_shape", "noise_std", "n_unfoldings"):
        assert loaded.get_params()[name] == learner.get_params()[name]
    np.testing.assert_array_equal(loaded.denoise(noisy), learner.denoise(noisy))
    again = loaded.set_params(random_state=0).partial_fit(noisy)
    assert (again.network_.synthesis != learner.network_.synthesis).any()


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


def test_a_denoiser_goes_into_an_open_file(learner, file):
    opened = io.BytesIO()
    save_denoiser(learner, opened)
    opened.seek(0)
    loaded = load_denoiser(opened).network_.synthesis
    torch.testing.assert_close(loaded, learner.network_.synthesis, rtol=0, atol=0)
    file.write_bytes(b"nothing")
    with (
        file.open("rb") as opened,
        pytest.raises(ValueError, match=f"{file} is not a denoiser"),
    ):
        load_denoiser(opened)
    with pytest.raises(FileNotFoundError, match="gone"):
        load_denoiser(f"{file}.gone")


EXTRA = dict(stride=(2, 2), noise_std=(0.05, 0.5), peak=1.0)


def change(**numbers):
    return lambda file: torch.save(torch.load(file, weights_only=True) | numbers, file)


SPOIL = {
    "not finite": change(synthesis=torch.full((3, 6, 1, 5, 4), torch.nan)),
    "a part of a pixel": change(_extra_state=EXTRA | dict(stride=(1.5, 1))),
    "no numbers": change(_extra_state={}),
    "huge atoms": change(analysis=torch.full((3, 6, 1, 5, 4), 1e38)),
    "empty": lambda file: file.write_bytes(b""),
    "cut off": lambda file: file.write_bytes(
        file.read_bytes()[: file.stat().st_size // 2]
    ),
    "runs something": lambda file: torch.save({"analysis": print}, file),
    "text": lambda file: file.write_text("text"),
}


@pytest.mark.parametrize("name", SPOIL)
def test_what_is_no_denoiser_is_refused(name, file):
    SPOIL[name](file)
    with pytest.raises(
        ValueError, match=rf"(?s){file} is not a denoiser: .*save_denoiser"
    ):
        load_denoiser(file)


def test_a_denoiser_that_could_not_be_read_is_not_written(learner, tmp_path):
    learner = copy.deepcopy(learner)
    learner.network_.analysis.data += 1e39
    with pytest.raises(ValueError, match="not a denoiser that a file can hold"):
        save_denoiser(learner, tmp_path / "denoiser.pt")
    assert not os.listdir(tmp_path)


# ---------------------------------------------------------------------------- as a module of torch


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
    module = load_denoiser("gaussian-small").network_
    with torch.no_grad():
        restored = deepinv.optim.DPIR(sigma=sigma, denoiser=module)(blurred, physics)
    before, after = (float((x - clean).square().mean()) for x in (blurred, restored))
    assert after < 0.85 * before


def test_a_denoiser_is_loaded_without_the_search():
    code = (
        "import sys; from skpudle.pretrained import load_denoiser; "
        "load_denoiser('gaussian-small'); "
        "print([name for name in sys.modules if name.startswith('skpudle.search')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
