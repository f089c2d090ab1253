"""Compare dictionary learners across fields: recovery, explained variance, and time.

    python benchmarks/bench_learners.py                      # resumes where it was interrupted
    python benchmarks/bench_learners.py --only digits faces  # these again

Data are real, from installed packages (nothing is downloaded), or of the generative model. Each is
fitted by every learner in one process, at its defaults, for at most a minute of the processor.
SPAMS, SPORCO and methods named "cd", which need a penalty, get the one with which a
search of `PUDLEDictionaryLearning` begins: the common alpha. Nothing is tuned for a data set.
All dictionaries, with atoms of unit norm, are then evaluated alike on held-out rows: by the lasso
at the common alpha (solved exactly), and by the variance that few atoms explain, chosen by
scikit-learn's orthogonal matching pursuit (OMP). A data set is stored when all learners are
through, so that its times are of one run.
"""

import signal
import warnings
from functools import partial

import numpy as np
import torch
from common import Report, halves, parse, spams_atoms, timed, unit
from sklearn.base import BaseEstimator, clone
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_sample_images,
    load_wine,
)
from sklearn.decomposition import MiniBatchDictionaryLearning
from sklearn.feature_extraction.image import extract_patches_2d
from sklearn.linear_model import orthogonal_mp_gram
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from skpudle import PUDLEDictionaryLearning, SporcoDictionaryLearning
from skpudle._initialization import initial_atoms
from skpudle.datasets import extract_patches, make_dictionary_data
from skpudle.lasso import solve_lasso
from skpudle.metrics import dictionary_error, recovery_rate
from skpudle.search import Problem, auto_alpha, search

N_PATCHES, N_HELD_OUT = 10_000, 2000
# rows in which to count atoms that the lasso never uses
N_COUNTED = 5000
# of the processor, of a fit: a learner that takes longer has no entry
LIMIT_SECONDS = 60


# ---------------------------------------------------------------------------- data


def columns_standardised(X):
    train, test = halves(X)
    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def columns_centred(X):
    train, test = halves(X)
    mean = train.mean(axis=0)
    return train - mean, test - mean


def patches(images, size, n=N_PATCHES):
    """Return patches without their own means, all divided by their standard deviation."""
    options = dict(n_patches=n + N_HELD_OUT, normalize=False, random_state=0)
    X = extract_patches(images, (size, size), **options)
    X /= X.std()
    return halves(X, n / len(X))


def photographs(size):
    return patches(
        [image.mean(axis=2) / 255 for image in load_sample_images().images], size
    )


def pictures(*names):
    from skimage import data
    from skimage.color import rgb2gray

    images = [getattr(data, name)() for name in names]
    return patches([rgb2gray(x) if x.ndim == 3 else x / 255 for x in images], 8)


def colour_patches():
    n = (N_PATCHES + N_HELD_OUT) // 2
    X = np.concatenate(
        [
            extract_patches_2d(image, (6, 6), max_patches=n, random_state=0).reshape(
                n, -1
            )
            for image in load_sample_images().images
        ]
    )
    X = X - X.mean(axis=1, keepdims=True)
    return halves(X / X.std(), N_PATCHES / len(X))


def faces():
    from skimage.data import lfw_subset

    return columns_centred(lfw_subset().reshape(200, -1))  # half of them show no face


def heartbeats():
    """Return windows of an electrocardiogram; its last quarter is held out."""
    from pywt.data import ecg

    signal_ = ecg().astype(float)
    windows = np.lib.stride_tricks.sliding_window_view
    parts = [windows(part, 64) for part in np.split(signal_, [768])]
    parts = [part - part.mean(axis=1, keepdims=True) for part in parts]
    return tuple(part / parts[0].std() for part in parts)


def spectra():
    """Return near-infrared spectra of a fermentation, each standardised, as is usual for them."""
    from chemotools.datasets import load_fermentation_test

    X = load_fermentation_test()[0].to_numpy()[:, ::5]
    X = X[X.std(axis=1) > 0]
    X = (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True)
    return columns_centred(X)


REAL = {  # name: number of atoms, data
    "digits": (100, lambda: columns_centred(load_digits().data)),
    "digits, standardised": (100, lambda: columns_standardised(load_digits().data)),
    "photographs, 8 x 8": (100, partial(photographs, 8)),
    "photographs, 12 x 12": (100, partial(photographs, 12)),
    "colour patches, 6 x 6": (150, colour_patches),
    "pictures, 8 x 8": (
        100,
        partial(pictures, "astronaut", "camera", "coins", "moon", "rocket"),
    ),
    "textures, 8 x 8": (100, partial(pictures, "brick", "grass", "gravel")),
    "heartbeats": (64, heartbeats),
    "breast cancer": (40, lambda: columns_standardised(load_breast_cancer().data)),
    "wine": (20, lambda: columns_standardised(load_wine().data)),
    "faces": (50, faces),
    "spectra": (50, spectra),
}


def generative(n, m=None, p=None, s=5, *, scale=1.0, **model):
    """Return data of a random dictionary, held-out data of the same one, and the dictionary."""
    train, truth, _ = make_dictionary_data(n, m, p, s, random_state=0, **model)
    held_out = dict(n_nonzero=s, dictionary=truth, random_state=1)
    test = make_dictionary_data(1000, **held_out, **model)[0]
    return scale * train, scale * test, truth


def concepts(n, p, s=10):
    """Return sums of a few concepts with weights of 0 to 1, in barely enough dimensions."""
    m = int(np.ceil(2 * s * np.log(p / s)))
    return generative(n, m, p, s, amplitude=(1e-9, 1.0), sign=None)


NOISY = dict(snr_db=20)
SYNTHETIC = {
    "20 dB: 3000 x 50, 60 atoms": partial(generative, 3000, 50, 60, 3, **NOISY),
    "20 dB: 1500 x 20, 50 atoms": partial(generative, 1500, 20, 50, 3, **NOISY),
    "20 dB: 10,000 x 100, 150 atoms": partial(generative, 10_000, 100, 150, **NOISY),
    "10 dB: 20,000 x 100, 200 atoms": partial(generative, 20_000, 100, 200, snr_db=10),
    "no noise: 3000 x 50, 60 atoms": partial(generative, 3000, 50, 60, 3),
    "no noise: 1000 x 100, 150 atoms": partial(generative, 1000),
    "no noise: 5000 x 64, 100 atoms": partial(generative, 5000, 64, 100),
    "the same, times 100": partial(generative, 5000, 64, 100, scale=100.0),
    "concepts: 2500 x 47, 100": partial(concepts, 2500, 100),
    "concepts: 2500 x 60, 200": partial(concepts, 2500, 200),
}


def load(name):
    """Return training and held-out rows, the number of atoms, and the truth or None."""
    if name in REAL:
        n_atoms, make = REAL[name]
        (train, test), truth = make(), None
    else:
        train, test, truth = SYNTHETIC[name]()
        n_atoms = len(truth)
    return np.ascontiguousarray(train), np.ascontiguousarray(test), n_atoms, truth


# ---------------------------------------------------------------------------- learners


class AtThePenalty(BaseEstimator):
    """A function that learns atoms for the lasso, behind the interface of scikit-learn."""

    def __init__(self, n_components, learn, *, alpha, positive_code=False):
        self.n_components, self.learn = n_components, learn
        self.alpha, self.positive_code = alpha, positive_code

    def fit(self, X):
        self.components_ = self.learn(
            X, self.n_components, self.alpha, positive=self.positive_code
        )
        return self

    def transform(self, X):
        return lasso_codes(self.components_, X, self.alpha, self.positive_code)


def searched_atoms(X, n_components, alpha, *, positive):
    """Return the atoms of the search that begins a fit, which minimises the lasso objective."""
    x, generator = torch.tensor(X), torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(
        initial_atoms(x, n_components, "data", generator)
    )
    return search(Problem(x, alpha, positive_code=positive), atoms).atoms.numpy()


def scikit_learn(k, alpha, positive, *, learner, common_alpha=False):
    params = dict(alpha=alpha) if common_alpha else {}
    if common_alpha or positive:  # which "lars" does not support
        params |= dict(
            fit_algorithm="cd", transform_algorithm="lasso_cd", positive_code=positive
        )
    return learner(k, random_state=0, **params)


def at_the_penalty(k, alpha, positive, *, learn):
    return AtThePenalty(k, learn, alpha=alpha, positive_code=positive)


def ours(k, alpha, positive):
    return PUDLEDictionaryLearning(k, positive_code=positive, random_state=0)


def sporco(k, alpha, positive):
    return SporcoDictionaryLearning(k, alpha=alpha, random_state=0)


def k_svd(k, alpha, positive):
    import dictlearn

    return dictlearn.DictionaryLearning(k, random_state=0)


BOTH_SIGNS = "SPORCO", "dictlearn K-SVD"  # no non-negative codes of atoms of any sign
LEARNERS = {
    "skpudle": ours,
    "skpudle, search alone": partial(at_the_penalty, learn=searched_atoms),
    "scikit-learn MiniBatch": partial(
        scikit_learn, learner=MiniBatchDictionaryLearning
    ),
    "scikit-learn MiniBatch, cd": partial(
        scikit_learn, learner=MiniBatchDictionaryLearning, common_alpha=True
    ),
    "SPAMS": partial(at_the_penalty, learn=spams_atoms),
    "SPORCO": sporco,
    "dictlearn K-SVD": k_svd,
}


def stop(*of_signal):
    raise TimeoutError(f"stopped after {LIMIT_SECONDS} s")


def timed_fit(learner, X):
    """Return a fitted learner and the time, without compilation and imports.

    Raises
    ------
    TimeoutError
        If the fit has taken `LIMIT_SECONDS` of the processor.
    """
    first = clone(learner)
    if "max_iter" in learner.get_params():
        first.set_params(max_iter=1)
    first.fit(X[: 2 * learner.n_components])
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    try:
        return timed(learner.fit, X)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


# ---------------------------------------------------------------------------- judgement


def lasso_codes(atoms, X, alpha, positive):
    codes, gaps = solve_lasso(*map(torch.tensor, (atoms, X)), alpha, positive=positive)
    if not float(gaps.max()) < 1e-4:  # relative to half the energy of a sample
        print(
            f"Some codes of the lasso have a duality gap of {float(gaps.max()):.1g}.",
            flush=True,
        )
    return codes.numpy()


def omp_r2(atoms, X, n_nonzero):
    """Return the share of the variance of X that ``n_nonzero`` atoms a row explain."""
    codes = orthogonal_mp_gram(
        atoms @ atoms.T,
        atoms @ X.T,
        n_nonzero_coefs=min(n_nonzero, len(atoms)),
        copy_Gram=False,
        copy_Xy=False,
    ).T
    return r2_score(X, codes @ atoms, multioutput="variance_weighted")


def judge(learner, train, test, truth, alpha, positive):
    """Return the figures of a fitted learner, except the time."""
    atoms = unit(np.ascontiguousarray(learner.components_, dtype=np.float64))
    codes = lasso_codes(atoms, test, alpha, positive)
    residual = np.square(test - codes @ atoms).sum()
    objective = (0.5 * residual + alpha * np.abs(codes).sum()) / len(test)
    used = lasso_codes(atoms, train[:N_COUNTED], alpha, positive).any(axis=0)
    row = {"held-out objective": float(objective)}
    # not all atoms, if m is large
    tenth = max(1, round(min(test.shape[1] / 10, len(atoms) / 5)))
    sizes = {"m/10": tenth, "2": 2, "5": 5}
    row |= {
        f"R2, {name} atoms": omp_r2(atoms, test, size) for name, size in sizes.items()
    }
    if truth is not None:
        for threshold in (0.95, 0.99):
            row[f"found, > {threshold}"] = recovery_rate(
                atoms, truth, threshold=threshold
            )
        row["matched error"] = dictionary_error(atoms, truth, match=True)
    row["density"] = float(np.mean(learner.transform(test) != 0))
    return row | {"dead atoms": int((~used).sum())}


def rows_of(name, learners):
    """Yield one row for each learner that supports these data; a failure becomes a row, too."""
    train, test, k, truth = load(name)
    positive, alpha = (
        name.startswith("concepts"),
        float(auto_alpha(torch.tensor(train))),
    )
    data = {"data": name, "size": " x ".join(map(str, train.shape)), "atoms": k}
    for learner_name in learners:
        row = data | {"learner": learner_name}
        if positive and learner_name in BOTH_SIGNS:
            continue
        try:
            learner, seconds = timed_fit(
                LEARNERS[learner_name](k, alpha, positive), train
            )
        except Exception as error:  # one failure does not end the comparison
            yield row | {"note": str(error)}
            continue
        row |= {"alpha": alpha} | judge(learner, train, test, truth, alpha, positive)
        yield row | {"seconds": seconds}


def main():
    names = [*REAL, *SYNTHETIC]
    choices = {"learners": LEARNERS, "only": names}
    options = parse(
        __doc__, "learners.json", choices=choices, only=[], learners=list(LEARNERS)
    )
    report = Report(options.out, "data", "learner", title="Dictionary learners")
    warnings.simplefilter("ignore")  # of convergence: evaluate the result anyway
    for name in names:
        if name in options.only:
            report.extend(rows_of(name, options.learners))
        elif not options.only:
            report.measure(partial(rows_of, learners=options.learners), name)


if __name__ == "__main__":
    main()
