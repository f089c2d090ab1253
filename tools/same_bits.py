"""Compare the results of two checkouts bit by bit: a change of structure moves no result.

``python tools/same_bits.py BASE`` runs the cases below in BASE, a directory or a revision of git,
and in this checkout, each in a process of its own with one thread. It prints a line for each case,
and exits with 1 unless all are equal. ``--only WORD`` runs the cases whose names contain a word.

No result is stored: both checkouts run on the same machine, at the same time. Source of a revision
is unpacked once into ``build/``, where its compiled loops stay for the next comparison.
"""

import argparse
import pickle
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from checkouts import ROOT, check_place, start, unpack

UNTIMED = {"fit_seconds_"}  # attributes whose values are no results

# ------------------------------------------------------------------------- data


def draw_rows(n=300, m=16, p=12, seed=0):
    """Return sparse combinations of atoms, with noise."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((p, m))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = (
        rng.uniform(1, 2, (n, p))
        * rng.choice([-1, 1], (n, p))
        * (rng.random((n, p)) < 0.2)
    )
    return codes @ atoms + 0.05 * rng.standard_normal((n, m))


def draw_gaps():
    """Return rows with missing entries."""
    X = draw_rows()
    return np.where(np.random.default_rng(1).random(X.shape) < 0.1, np.nan, X)


def draw_mixtures():
    """Return mixtures of three spectra."""
    rng = np.random.default_rng(2)
    channel, centres = np.arange(40)[None], rng.uniform(4, 36, (3, 3, 1))
    spectra = np.exp(-(((channel - centres) / rng.uniform(2, 5, (3, 3, 1))) ** 2)).sum(
        1
    )
    X = rng.dirichlet(np.ones(3), 200) @ spectra
    return np.maximum(X + 0.01 * rng.standard_normal(X.shape), 0)


def draw_counts(n_trials=None):
    """Return counts with a logarithm or log-odds that few atoms make."""
    natural = 0.8 * draw_rows(200, 12, 8)
    rng = np.random.default_rng(3)
    if n_trials is None:
        return rng.poisson(np.exp(natural)).astype(float)
    return rng.binomial(n_trials, 1 / (1 + np.exp(-natural))).astype(float)


def draw_images(n=4, size=24, seed=4, gaps=False, counts=False):
    """Return images of few shapes at random places, with missing pixels, or as photons."""
    rng = np.random.default_rng(seed)
    shapes, images = (
        rng.standard_normal((2, 5, 5)),
        0.05 * rng.standard_normal((n, size, size)),
    )
    for image in images:
        for i, j, shape in zip(
            *rng.integers(0, size - 5, (2, 8)), rng.integers(0, 2, 8)
        ):
            image[i : i + 5, j : j + 5] += shapes[shape]
    if counts:
        return rng.poisson(np.abs(4 * images)).astype(float)
    return np.where(rng.random(images.shape) < 0.1, np.nan, images) if gaps else images


def draw_channels():
    """Return signals in four channels of unequal noise, (n, length, 4)."""
    rng = np.random.default_rng(7)
    noise = rng.standard_normal((6, 80, 4)) * [0.05, 0.1, 0.1, 0.2]
    return draw_signals() * rng.standard_normal(4) + noise


def draw_signals(counts=False):
    """Return signals in which one kernel comes now and then, (n, length, 1)."""
    rng = np.random.default_rng(5)
    events = rng.uniform(3, 5, (6, 74)) * (rng.random((6, 74)) < 0.06)
    natural = np.stack(
        [np.convolve(row, np.sin(np.arange(1, 8) / 8 * np.pi) / 2) for row in events]
    )
    if counts:
        return rng.poisson(np.exp(natural - 1)).astype(float)[..., None]
    return (natural + 0.1 * rng.standard_normal(natural.shape))[..., None]


class Stream:
    """Batches that can be read again."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


# ------------------------------------------------------------------------- cases


def read_attributes(learner):
    """Return the fitted attributes that are numbers, arrays, or records of them."""
    found = {}
    for name, value in vars(learner).items():
        if not name.endswith("_") or name.startswith("_") or name in UNTIMED:
            continue
        parts = value.items() if isinstance(value, dict) else [("", value)]
        for part, one in parts:
            one = np.asarray(getattr(one, "numpy", lambda one=one: one)())
            if one.dtype.kind in "biufUS":
                found[f"{name}.{part}".rstrip(".")] = one
    return found


def fit(learner, X, *args):
    """Return the attributes of a fit, and codes."""
    learner.fit(X, *args)
    return read_attributes(learner) | encode(learner, X)


def encode(learner, X):
    """Return the result of `transform`."""
    codes = learner.transform(X)
    return {
        "codes": codes.toarray() if hasattr(codes, "toarray") else np.asarray(codes)
    }


def fit_rows(draw=draw_rows, n_components=12, **params):
    """Fit the main learner to rows."""
    from skpudle import PUDLEDictionaryLearning

    return fit(PUDLEDictionaryLearning(n_components, random_state=0, **params), draw())


def learner_of_counts(n_components, **params):
    """Return the learner of counts, which was the main learner with a loss once."""
    import skpudle

    kind = getattr(skpudle, "CountDictionaryLearning", skpudle.PUDLEDictionaryLearning)
    return kind(n_components, random_state=0, **params)


def fit_counts(draw=draw_counts, **params):
    """Fit to counts."""
    return fit(learner_of_counts(8, max_iter=2, **params), draw())


def score_counts():
    """Score held-out entries of new counts."""
    X = draw_counts()
    learner = learner_of_counts(8, loss="poisson", max_iter=2).fit(X[:150])
    return {"score": np.asarray(learner.score(X[150:]))}


def fit_images(draw=draw_images, n_components=3, **params):
    """Fit the convolutional learner to images or signals."""
    from skpudle import ConvPUDLEDictionaryLearning

    params = dict(atom_shape=(5, 5), random_state=0) | params
    return fit(ConvPUDLEDictionaryLearning(n_components, **params), draw())


def fit_counts_that_add():
    """Fit counts whose expectations are sums of atoms."""
    import skpudle

    known = partial(skpudle.PUDLEDictionaryLearning, loss="kullback-leibler")
    learner = getattr(skpudle, "PoissonNMF", known)(4, max_iter=10, random_state=0)
    return fit(learner, draw_counts())


def fit_denoiser(draw=draw_images, more=False, **params):
    """Train a convolutional denoiser, and denoise; with ``more`` go on by `partial_fit`."""
    from skpudle import ConvDenoiser

    params = (
        dict(noise_std=0.1, max_iter=2, n_unfoldings=3, crop_size=15, random_state=0)
        | params
    )
    learner = ConvDenoiser(3, **dict(atom_shape=(5, 5)) | params)
    pairs = [draw()]
    if params["noise_std"] == 0:  # clean images
        pairs.append(
            pairs[0] + 0.1 * np.random.default_rng(6).standard_normal(pairs[0].shape)
        )
        pairs.reverse()
    learner.fit(*pairs)
    if more:
        learner.set_params(learning_rate=3e-3).partial_fit(*pairs)
    found = {
        "denoised": learner.denoise(pairs[0]),
        "score": np.asarray(learner.score(*pairs)),
    }
    state = getattr(learner, "network_", learner).state_dict()
    return {
        name: value.numpy() for name, value in state.items() if hasattr(value, "numpy")
    } | found


def denoise_by(name):
    """Denoise a picture by a packaged network."""
    from skpudle.pretrained import load_denoiser

    image = draw_images(1, 40)[0]
    image = (
        np.abs(image.round())
        if name == "poisson"
        else (image - image.min()) / np.ptp(image)
    )
    return {"denoised": load_denoiser(name).denoise(image)}


def fit_tensor():
    """Fit to a tensor of torch."""
    import torch

    return fit_rows(lambda: torch.from_numpy(draw_rows()))


def fit_memory_map():
    """Fit to rows in a file."""
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/X.npy", draw_rows())
        return fit_rows(lambda: np.load(f"{folder}/X.npy", mmap_mode="r"))


def fit_sparse_counts():
    """Fit to counts in a sparse array."""
    from scipy.sparse import csr_array

    return fit_counts(lambda: csr_array(draw_counts()), loss="poisson")


def fit_stream(**params):
    """Fit to a stream with more rows than the sample that the search sees."""
    from skpudle import PUDLEDictionaryLearning

    batches = np.array_split(draw_rows(20_000, 8, 6), 20)
    learner = PUDLEDictionaryLearning(6, random_state=0, **params).fit(Stream(batches))
    return read_attributes(learner) | encode(learner, batches[0])


def fit_parts(streamed=False, **params):
    """Call `partial_fit` for block after block, from another population in the end."""
    from skpudle import PUDLEDictionaryLearning

    learner = PUDLEDictionaryLearning(8, random_state=0, **params)
    for number in range(4):
        X = draw_rows(400, 12, 8, seed=number // 3)
        learner.partial_fit(Stream(np.array_split(X, 3)) if streamed else X)
    return read_attributes(learner) | encode(learner, X)


def fit_then_go_on():
    """Go on by `partial_fit` after a fit."""
    from skpudle import PUDLEDictionaryLearning

    learner = PUDLEDictionaryLearning(12, random_state=0).fit(draw_rows())
    return read_attributes(learner.partial_fit(draw_rows(seed=1)))


def resume(task="epoch of the search", **params):
    """Kill a fit in its third epoch, and resume it from its checkpoint."""
    from sklearn.callback import FitCallback

    from skpudle import Checkpoint, PUDLEDictionaryLearning

    class Killed(BaseException):
        pass

    class Kill(FitCallback):
        n_epochs = 3

        def on_fit_task_end(self, estimator, context):
            self.n_epochs -= context.task_name == task
            if self.n_epochs == 0:
                raise Killed

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint(f"{folder}/fit.npz", every_seconds=0)
        learner = PUDLEDictionaryLearning(12, random_state=0, **params)
        try:
            learner.set_callbacks(checkpoint, Kill()).fit(draw_rows())
        except Killed:
            pass
        else:
            raise RuntimeError(
                f"No task {task!r} ended three times, so that the fit was not cut."
            )
        return fit(learner.set_callbacks(checkpoint), draw_rows())


def search_with_a_twin():
    """Search as one of two processes, the other of which has the same rows."""
    import torch

    from skpudle.search import Problem, search
    from skpudle.search.held_out import hold_out

    def total(*sums):
        return [2 * one for one in sums]

    x = torch.from_numpy(draw_rows())
    found = search(hold_out(Problem(x, 0.3, total=total)), x[:12])
    return {
        name: np.asarray(getattr(found, name)) for name in ("atoms", "alpha", "losses")
    }


def choose_alpha(**options):
    """Choose the penalty of given atoms."""
    from skpudle import PUDLEDictionaryLearning

    positive = options.get("criterion") == "support"
    X = np.abs(draw_rows(600)) if positive else draw_rows()
    atoms = X[::25] + 0.1 * np.random.default_rng(0).standard_normal(X[::25].shape)
    learner = PUDLEDictionaryLearning.from_components(
        atoms, alpha=0.5, positive_code=positive
    )
    learner.set_params(alpha="auto", debias="auto").choose_alpha(X, **options)
    return read_attributes(learner) | encode(learner, X)


def score_rows(draw=draw_rows, **params):
    """Score held-out entries of new rows, with and without gaps."""
    from skpudle import PUDLEDictionaryLearning

    X = draw()
    learner = PUDLEDictionaryLearning(8, random_state=0, **params).fit(X[:150])
    found = {"score": np.asarray(learner.score(X[150:]))}
    X[150::7, 2] = np.nan
    return found | {"score with gaps": np.asarray(learner.score(X[150:]))}


def score_images(**params):
    """Score hidden pixels of images or counts."""
    from skpudle import ConvPUDLEDictionaryLearning

    counts = "loss" in params
    X = draw_signals(counts=True) if counts else draw_images()
    shape = 7 if counts else (5, 5)
    learner = ConvPUDLEDictionaryLearning(
        2, atom_shape=shape, random_state=0, **params
    ).fit(X)
    return {"score": np.asarray(learner.score(X))}


def fit_task(kind):
    """Fit a classifier or a regressor."""
    import skpudle

    X, y = draw_rows(), draw_rows()[:, 0] + draw_rows()[:, 1]
    y = y > 0 if kind == "PUDLEClassifier" else y
    learner = getattr(skpudle, kind)(8, random_state=0, max_iter=3)
    return fit(learner, X, y) | {"predictions": learner.predict(X)}


def fit_noodl():
    """Fit NOODL."""
    from skpudle import NOODLDictionaryLearning

    learner = NOODLDictionaryLearning(12, n_unfoldings=20, max_iter=3, random_state=0)
    return fit(learner, draw_rows())


def fit_consensus():
    """Fit several replicates and agree."""
    from skpudle import ConsensusDictionary, PUDLEDictionaryLearning

    learner = PUDLEDictionaryLearning(6)
    return fit(ConsensusDictionary(learner, 4, random_state=0), draw_rows())


def fill_gaps():
    """Fill gaps."""
    from skpudle import DictionaryImputer, PUDLEDictionaryLearning

    learner = DictionaryImputer(PUDLEDictionaryLearning(6, random_state=0))
    return {"filled": learner.fit_transform(draw_gaps())}


def fit_few_rows():
    """Fit rows that are too few to hold any out."""
    return fit_rows(lambda: draw_rows(15, 6, 4), 4)


SHORT = dict(n_unfoldings=5, max_iter=2)
CASES = {
    "default": fit_rows,
    "default, one atom for two features": partial(fit_rows, n_components=4),
    "default, alpha": partial(fit_rows, alpha=0.3),
    "default, few rows": fit_few_rows,
    "sizes": partial(fit_rows, n_components="auto"),
    "missing entries": partial(fit_rows, draw_gaps),
    "sizes with missing entries": partial(fit_rows, draw_gaps, "auto"),
    "positive codes": partial(fit_rows, positive_code=True),
    "positive codes and atoms": partial(fit_rows, lambda: np.abs(draw_rows()), 12,
                                        positive_code=True, positive_dict=True),
    "mixtures": partial(fit_rows, draw_mixtures, 3, positive_code=True, positive_dict=True),
    "mixtures from vertices": partial(fit_rows, draw_mixtures, 3, positive_code=True,
                                      positive_dict=True, dict_init="vertices"),
    "float32": partial(fit_rows, lambda: draw_rows().astype(np.float32)),
    "tensor": fit_tensor,
    "memory map": fit_memory_map,
    "sparse counts": fit_sparse_counts,
    "stream": fit_stream,
    "stream, ae-ls": partial(fit_stream, gradient="ae-ls", n_unfoldings=3, max_iter=1),
    "decoder": partial(fit_rows, gradient="dec", **SHORT),
    "ae-lasso": partial(fit_rows, gradient="ae-lasso", **SHORT),
    "ae-ls": partial(fit_rows, gradient="ae-ls", **SHORT),
    "Adam from data": partial(fit_rows, gradient="ae-ls", optimizer="adam", dict_init="data",
                              **SHORT),
    "hard shrinkage": partial(fit_rows, gradient="ae-ls", shrinkage="hard", **SHORT),
    "decay": partial(fit_rows, gradient="ae-ls", lambda_decay=0.9, **SHORT),
    "decay that is annealed": partial(fit_rows, gradient="dec", lambda_decay=(1.0, 0.9), **SHORT),
    "learned encoder": partial(fit_rows, separate_atoms=True, **SHORT),
    "learned unfoldings": partial(fit_rows, separate_atoms="unfolding", **SHORT),
    "pursuit": partial(fit_rows, transform_algorithm="omp"),
    "poisson": partial(fit_counts, loss="poisson"),
    "binomial": partial(fit_counts, partial(draw_counts, 10), loss="binomial", n_trials=10),
    "counts that add": fit_counts_that_add,
    "images": fit_images,
    "images, sizes": partial(fit_images, lambda: draw_images(4, 20), "auto"),
    "signals": partial(fit_images, draw_signals, 2, atom_shape=7),
    "images with gaps": partial(fit_images, partial(draw_images, gaps=True)),
    "signals in one pattern": partial(fit_images, draw_channels, 2, atom_shape=7, rank=1),
    "signals of unequal noise": partial(fit_images, draw_channels, 2, atom_shape=7,
                                        channel_noise="auto"),
    "denoiser": fit_denoiser,
    "denoiser with more epochs": partial(fit_denoiser, more=True),
    "denoiser of pairs": partial(fit_denoiser, noise_std=0.0),
    "denoiser of photons": partial(fit_denoiser, partial(draw_images, counts=True),
                                   noise_std="poisson", alpha=1.0),
    "denoiser of signals": partial(fit_denoiser, draw_signals, atom_shape=7, stride=2),
    "denoiser of any noise": partial(fit_denoiser, noise_std=(0.05, 0.3), more=True),
    "packaged denoiser": partial(denoise_by, "gaussian-small"),
    "packaged denoiser of photons": partial(denoise_by, "poisson"),
    "classifier": partial(fit_task, "PUDLEClassifier"),
    "regressor": partial(fit_task, "PUDLERegressor"),
    "NOODL": fit_noodl,
    "partial_fit": fit_parts,
    "partial_fit of streams": partial(fit_parts, streamed=True),
    "partial_fit by gradients": partial(fit_parts, gradient="ae-ls", n_unfoldings=3),
    "partial_fit after fit": fit_then_go_on,
    "resumed search": resume,
    "resumed training": partial(resume, "epoch", gradient="ae-ls", n_unfoldings=5, max_iter=5,
                                tol=None),
    "two processes": search_with_a_twin,
    "penalty by prediction": choose_alpha,
    "penalty by l0": partial(choose_alpha, l0=2),
    "penalty by support": partial(choose_alpha, criterion="support"),
    "score": score_rows,
    "score of counts": score_counts,
    "score of images": score_images,
    "consensus": fit_consensus,
    "imputer": fill_gaps,
}  # fmt: skip


# ------------------------------------------------------------------------- comparison


def run_case(case):
    """Return the values of a case, or a text: the error that it raised."""
    try:
        return case()
    except (ImportError, TypeError) as error:
        is_unknown = isinstance(error, ImportError) or "unexpected keyword" in str(
            error
        )
        return (
            f"{'unknown' if is_unknown else 'failed'}: {type(error).__name__}: {error}"
        )
    except Exception as error:
        return f"failed: {type(error).__name__}: {error}"


def run_cases(only):
    """Return the results of the cases whose names contain a word, from the package on the path."""
    warnings.simplefilter("ignore")
    return {name: run_case(case) for name, case in CASES.items() if only in name}


def describe_difference(one, other):
    """Return a text about the difference of two arrays; empty if their bits are equal."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return f"{one.dtype}{one.shape} became {other.dtype}{other.shape}"
    if one.tobytes() == other.tobytes():
        return ""
    if one.dtype.kind not in "iuf":
        return "other values"
    apart = np.abs(other.astype(float) - one.astype(float))
    scale = np.nanmax(np.abs(one.astype(float)), initial=0.0)
    return f"up to {np.nanmax(apart, initial=0.0):.1e} of {scale:.1e}"


def compare(base, present, removed=()):
    """Return whether the values of a case in two checkouts are equal, and a text.

    A case that one checkout does not know, an attribute that is new and one that is ``removed`` on
    purpose are no differences.
    """
    if isinstance(base, str) or isinstance(present, str):
        texts = {"base": base, "here": present}
        texts = [
            f"{where} {text}" for where, text in texts.items() if isinstance(text, str)
        ]
        return all(" unknown: " in text for text in texts) and len(
            texts
        ) == 1, "; ".join(texts)
    found = [
        f"{name} {text}"
        for name in base.keys() & present.keys()
        if (text := describe_difference(base[name], present[name]))
    ]
    found += [f"{name} is gone" for name in base.keys() - present.keys() - {*removed}]
    new = "".join(f" ({name} is new)" for name in sorted(present.keys() - base.keys()))
    return not found, ("; ".join(sorted(found)) or "equal") + new


def run_checkouts(checkouts, only=""):
    """Return the results of both checkouts, from processes that run at the same time."""
    with tempfile.TemporaryDirectory() as folder:
        targets = [Path(folder) / name for name in ("base", "present")]
        pairs = list(zip(checkouts, targets, strict=True))
        processes = [
            start(__file__, checkout, "--write", target, "--only", only)
            for checkout, target in pairs
        ]
        codes = [process.wait() for process in processes]
        if any(codes):
            raise SystemExit("A checkout does not run.")
        found = [pickle.loads(target.read_bytes()) for target in targets]
    for checkout, (where, _) in zip(checkouts, found, strict=True):
        check_place(where, checkout)
    return [values for _, values in found]


def main():
    """Run both checkouts, print a line for each case, and exit with 1 if results differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", nargs="?", help="directory or revision to compare with")
    parser.add_argument(
        "--only", default="", help="run cases whose names contain this word"
    )
    parser.add_argument(
        "--removed", default="", help="attributes that the change removes: a_,b_"
    )
    parser.add_argument("--write", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        import skpudle

        values = skpudle.__file__, run_cases(options.only)
        Path(options.write).write_bytes(pickle.dumps(values))
        return
    if options.base is None:
        parser.error("Got no BASE. Pass a directory or a revision of git.")
    base, present = run_checkouts([unpack(options.base), ROOT], options.only)
    if not base:
        raise SystemExit(
            f"No case has {options.only!r} in its name. Pass a part of one."
        )
    differ = False
    for name in base:
        is_equal, text = compare(base[name], present[name], options.removed.split(","))
        differ |= not is_equal
        print(f"{name}: {text}")
    raise SystemExit(int(differ))


if __name__ == "__main__":
    main()
