"""Images: denoise grey ones by patches, colour ones by networks, and fill in missing pixels.

    python benchmarks/bench_images.py patches --out benchmarks/results/denoise_patches.json
    python benchmarks/bench_images.py colour --out benchmarks/results/colour_denoising.json
    python benchmarks/bench_images.py inpainting --out benchmarks/results/inpainting.json
    python benchmarks/bench_images.py inpainting --widths 3 5 7 9

"patches": the two photographs that come with scikit-learn, with noise of 25/255. scikit-learn's
dictionary and one of this package are learned from the same noisy patches. Both are used with
orthogonal matching pursuit up to the error that the noise explains, as K-SVD does; cosines have a
hard threshold.

"colour": the packaged dictionary, for grey images, takes the channels one by one, or their mean and
two differences; it is given the noise or estimates it. BM3D is bm3d on PyPI, in colour. Non-local
means are scikit-image's: patches of 5 x 5 pixels within 6 pixels, and 0.8 times the noise as the
filter's strength, as in its gallery.

"inpainting": parts of grey photographs and textures that come with scikit-learn and scikit-image
lose a share of their pixels at random, or eight scratches of some pixels' width. The report has the
PSNR over the lost pixels, for a peak of 1.

Seconds are CPU time of one core.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from common import Report, parse, timed
from scipy.fft import dct
from scipy.interpolate import griddata
from scipy.ndimage import distance_transform_edt
from skimage import color, data
from skimage.draw import line
from skimage.metrics import peak_signal_noise_ratio
from skimage.restoration import denoise_nl_means, inpaint_biharmonic
from sklearn.datasets import load_sample_image, load_sample_images
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.linear_model import orthogonal_mp_gram

from skpudle import PUDLEDictionaryLearning
from skpudle.images import denoise_patches, extract, inpaint
from skpudle.pretrained import load_denoiser

# ---------------------------------------------------------------- patches

# pixels; of the error, and of cosines, in noise levels
SIDE, MARGIN, THRESHOLD = (
    8,
    1.1,
    2.8,
)
SIGMA, N_ATOMS, N_TRAINING = 25 / 255, 128, 20_000


@dataclass
class PursuitOfScikitLearn:
    """Codes of `orthogonal_mp_gram` up to a squared error, at least one atom for every patch."""

    components_: np.ndarray
    tol: float

    def transform(self, X):
        atoms = self.components_
        given = dict(norms_squared=np.square(X).sum(1), tol=self.tol)
        return orthogonal_mp_gram(atoms @ atoms.T, atoms @ X.T, **given).T


def learn(noisy):
    """Return the atoms of scikit-learn and of this package."""
    draw, pools = np.random.default_rng(0), [extract(image) for image in noisy]
    n_each = N_TRAINING // len(pools)
    patches = np.concatenate(
        [draw.choice(pool, n_each, replace=False) for pool in pools]
    )
    patches -= patches.mean(1, keepdims=True)
    options = dict(alpha=1.85 * SIGMA, random_state=0)
    theirs = MiniBatchDictionaryLearning(N_ATOMS, fit_algorithm="cd", **options)
    ours = PUDLEDictionaryLearning(N_ATOMS, **options)
    return theirs.fit(patches).components_, ours.fit(patches).components_


def coders(theirs, ours):
    """Map names to a coder and options of `denoise_patches`."""
    tol = SIDE**2 * (MARGIN * SIGMA) ** 2
    build = PUDLEDictionaryLearning.from_components

    def pursuit(atoms):
        return build(atoms, transform_algorithm="omp", transform_alpha=tol)

    waves = dct(np.eye(SIDE), norm="ortho", axis=0)
    hard = dict(
        shrinkage="hard", n_unfoldings=1, step_size=1.0, alpha=THRESHOLD * SIGMA
    )
    cosines = build(np.kron(waves, waves), **hard)
    equal, sparsity = dict(weights="equal"), dict(weights="sparsity")
    everywhere = sparsity | dict(stride=1)
    gram = "scikit-learn's atoms, orthogonal_mp_gram"
    own = "scikit-learn's atoms, OMP of skpudle"
    return {
        "cosines, hard threshold": (cosines, equal),
        "the same, weights by sparsity": (cosines, sparsity),
        gram: (PursuitOfScikitLearn(theirs, tol), equal),
        own: (pursuit(theirs), equal),
        f"{own}, weights by sparsity": (pursuit(theirs), sparsity),
        "skpudle's atoms, OMP of skpudle": (pursuit(ours), equal),
        "skpudle's atoms, OMP of skpudle, weights by sparsity": (pursuit(ours), sparsity),
        "the same, patches at every pixel": (pursuit(ours), everywhere),
        "cosines, by sparsity, patches at every pixel": (cosines, everywhere),
    }  # fmt: skip


def by_patches(given):
    """Yield the quality of each dictionary and coder."""
    clean = [
        image @ [0.299, 0.587, 0.114] / 255 for image in load_sample_images().images
    ]
    noise = np.random.default_rng(0)
    noisy = [image + SIGMA * noise.standard_normal(image.shape) for image in clean]

    def quality(images):
        pairs = zip(clean, images)
        return float(
            np.mean([peak_signal_noise_ratio(*pair, data_range=1) for pair in pairs])
        )

    yield {"name": "noisy", "PSNR (dB)": quality(noisy)}
    for name, (coder, options) in coders(*learn(noisy)).items():
        options = dict(stride=2) | options

        def denoise(coder=coder, options=options):
            return [denoise_patches(coder, image, **options) for image in noisy]

        denoise_patches(coder, noisy[0][:40, :40], **options)  # compiles
        images, seconds = timed(denoise)
        row = {"name": name, "stride": options["stride"], "PSNR (dB)": quality(images)}
        yield row | {"processor seconds": seconds}


# ---------------------------------------------------------------- colour

CORNER = 256  # pixels of the upper left corner along each axis: BM3D is slow


def colour_pictures():
    shipped = {
        name: getattr(data, name)() for name in ("astronaut", "coffee", "chelsea")
    }
    shipped |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {
        n: (p[:CORNER, :CORNER] / 255).astype(np.float32) for n, p in shipped.items()
    }


def denoisers(level):
    """Map names to functions that denoise a colour image."""
    from bm3d import bm3d_rgb

    learner = load_denoiser(shift_average=True)

    def by_channel(noisy):
        channels = learner.denoise(list(np.moveaxis(noisy, -1, 0)), noise_std=level)
        return np.stack(channels, axis=-1)

    def non_local(noisy):
        options = dict(patch_size=5, patch_distance=6, fast_mode=True, channel_axis=-1)
        return denoise_nl_means(noisy, h=0.8 * level, sigma=level, **options)

    return {
        "skpudle": lambda noisy: learner.denoise([noisy], noise_std=level)[0],
        "skpudle, noise estimated": lambda noisy: learner.denoise([noisy])[0],
        "skpudle, channel by channel": by_channel,
        "BM3D, colour": lambda noisy: bm3d_rgb(noisy, level),
        "non-local means": non_local,
    }


def of_colour(given):
    """Yield the quality of each method at each level of noise."""
    for level in given.levels:
        found, seconds = {}, {}
        for name, clean in colour_pictures().items():
            noise = np.random.default_rng(level).standard_normal(
                clean.shape, dtype=np.float32
            )
            noisy = clean + level / 255 * noise
            for method, denoise in denoisers(level / 255).items():
                image, taken = timed(denoise, noisy)
                value = peak_signal_noise_ratio(
                    clean, np.asarray(image, np.float32), data_range=1
                )
                seconds[method] = seconds.get(method, 0.0) + taken
                found.setdefault(method, {})[name] = round(value, 2)
        for method, values in found.items():
            mean = round(float(np.mean(list(values.values()))), 2)
            row = {"sigma": level, "method": method, "mean_psnr": mean} | values
            yield row | {"cpu_seconds": round(seconds[method] / len(values), 1)}


# ---------------------------------------------------------------- inpainting

SHARES = (0.3, 0.5, 0.8)
NAMES = (
    "astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "moon",
    "page", "rocket",
)  # fmt: skip


def pictures(side):
    """Return the parts of the example of inpainting, and the middles of scikit-image's pictures."""
    china, flower = (image.mean(axis=2) / 255 for image in load_sample_images().images)
    found = {"roof": china[60:220, 180:400], "flower": flower[140:300, 180:400]}
    for name in NAMES:
        image = getattr(data, name)()
        image = color.rgb2gray(image) if image.ndim == 3 else image / 255
        starts = [(n - side) // 2 for n in image.shape]
        found[name] = image[tuple(slice(first, first + side) for first in starts)]
    return found


def lose(shape, share, width, rng):
    """Return lost pixels: a share at random, or, of a width, eight scratches from edge to edge."""
    if not width:
        return rng.random(shape) < share
    middles = np.zeros(shape, dtype=bool)
    height, length = shape
    for number in range(8):
        ends = rng.integers((length, length) if number % 2 else (height, height))
        across = (0, ends[0], height - 1, ends[1])
        middles[line(*across if number % 2 else (ends[0], 0, ends[1], length - 1))] = (
            True
        )
    return distance_transform_edt(~middles) <= (width - 1) / 2


def interpolate(damaged, lost):
    """Interpolate an image linearly, and by the nearest pixels beyond the known ones."""
    image = damaged.copy()
    for method in ("linear", "nearest"):
        gaps = np.isnan(image)
        places = np.argwhere(~lost)
        image[gaps] = griddata(places, damaged[~lost], np.argwhere(gaps), method=method)
    return image


def of_missing_pixels(given):
    """Yield the PSNR of each method on each part of a picture."""
    methods = {
        "linear": interpolate,
        "biharmonic": lambda x, lost: inpaint_biharmonic(np.where(lost, 0, x), lost),
        "skpudle": lambda x, lost: inpaint(x),
    }
    losses = [(0, w) for w in given.widths] or [(share, 0) for share in SHARES]
    cases = product(enumerate(pictures(given.side).items()), losses)
    for (seed, (name, clean)), (share, width) in cases:
        lost = lose(clean.shape, share, width, np.random.default_rng(seed))
        damaged = np.where(lost, np.nan, clean)
        row, seconds = {"name": name, "missing": width or share}, {}
        for method, fill in methods.items():
            filled, seconds[f"seconds, {method}"] = timed(fill, damaged, lost)
            psnr = peak_signal_noise_ratio(clean[lost], filled[lost], data_range=1)
            row[f"{method} (dB)"] = psnr
        yield row | seconds


PARTS = {"patches": by_patches, "colour": of_colour, "inpainting": of_missing_pixels}
TITLES = {
    "patches": "Denoising by patches, sigma 25, mean of two photographs",
    "colour": "Colour denoising",
    "inpainting": "Inpainting",
}


def main():
    given = parse(
        __doc__, names=["what"], choices={"what": PARTS}, levels=[15, 25, 50],
        widths=[], side=128,
    )  # fmt: skip
    given.widths = [int(width) for width in given.widths]
    Report(given.out, title=TITLES[given.what]).extend(PARTS[given.what](given))


if __name__ == "__main__":
    main()
