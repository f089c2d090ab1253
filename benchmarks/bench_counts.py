"""Learn dictionaries of counts: recovery from data alone, held-out deviance, time of an update.

    python benchmarks/bench_counts.py recovery
    python benchmarks/bench_counts.py deviance
    python benchmarks/bench_counts.py update

Recovery: data of 50 atoms in 40 dimensions, 3 in use with amplitudes from 1.5 to 3 and any sign:
counts of expectation ``exp(D z + 1)``, and 20 trials with the odds ``exp(D z)``.

Deviance: held-out samples are thinned, every event into one of two halves at random. Codes are
inferred from one half and evaluated by the deviance of the other: its explained share, against the
means of the columns times the total of the sample.
"""

import argparse
import time
from functools import partial

import numpy as np
import torch
from scipy.special import xlogy
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF

from skpudle import PUDLEDictionaryLearning
from skpudle._data.batches import Samples
from skpudle._gradients import ae_ls
from skpudle._losses import Binomial, Gaussian, Poisson
from skpudle._operators._atoms import DenseDictionary
from skpudle.encoding import encode


def make_counts(loss, n_samples=6000, n_features=40, n_components=50, n_nonzero=3, seed=0):
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(n_components, n_features))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    codes = np.zeros((n_samples, n_components))
    for row in codes:
        support = rng.choice(n_components, n_nonzero, replace=False)
        row[support] = rng.uniform(1.5, 3, n_nonzero) * rng.choice([-1, 1], n_nonzero)
    natural = codes @ atoms
    if loss == "poisson":
        return rng.poisson(np.exp(natural + 1)).astype(float), atoms
    return rng.binomial(20, 1 / (1 + np.exp(-natural))).astype(float), atoms


def report_recovery(name, learner, X, atoms):
    start = time.process_time()
    learner.fit(X)
    seconds = time.process_time() - start
    found = learner.components_ / np.linalg.norm(learner.components_, axis=1, keepdims=True)
    cosine = np.abs(found @ atoms.T).max(0)
    print(
        f"{name:34s} {seconds:5.1f} s  found {np.mean(cosine > 0.95):.2f}  "
        f"error (1 - cosine) {np.mean(1 - cosine):.4f}  "
        f"codes used {np.mean(learner.transform(X[:1000]) != 0):.3f}",
        flush=True,
    )


def recovery(seeds):
    for seed in seeds:
        for loss in ("poisson", "binomial"):
            X, atoms = make_counts(loss, seed=seed)
            make = partial(PUDLEDictionaryLearning, 50, random_state=seed)
            report_recovery(loss, make(loss=loss, n_trials=20), X, atoms)
            Y = np.log1p(X) if loss == "poisson" else np.log((X + 0.5) / (20.5 - X))
            Y -= Y.mean(0)
            name = "gaussian, log(1 + x)" if loss == "poisson" else "gaussian, logit"
            report_recovery(name, make(), Y, atoms)
            norm = np.sqrt((Y**2).sum(1).mean())
            for share in (0.15, 0.2, 0.3):
                report_recovery(f"{name}, alpha {share} |x|", make(alpha=share * norm), Y, atoms)


def deviance(x, mean):
    return 2 * float((xlogy(x, x) - xlogy(x, np.maximum(mean, 1e-10)) - x + mean).sum())


def glm_pca(train, half, exposure, given, n_components, ridge, n_steps=15):
    """Return codes of a Poisson model without sparsity, by alternating Newton steps, and means.

    F. W. Townes et al., "Feature selection and dimension reduction for single-cell RNA-Seq based
    on a multinomial model", Genome Biology, 2019.
    """

    def solve(x, loadings, offset, codes, n_steps=1):  # a regression for each row of x
        for _ in range(n_steps):
            mean = np.exp(np.minimum(codes @ loadings.T + offset, 15))
            slope = (x - mean) @ loadings - ridge * codes
            curvature = np.einsum("nf,fp,fq->npq", mean, loadings, loadings, optimize=True)
            curvature += ridge * np.eye(loadings.shape[1])
            step = np.linalg.solve(curvature, slope[..., None])[..., 0]
            longest = np.abs(step @ loadings.T).max(1, keepdims=True)
            codes = codes + step / np.maximum(longest, 1)  # at most a factor e an entry
        return codes

    base = np.log((train.sum(0) + 0.5) / exposure.sum())
    rng = np.random.default_rng(0)
    loadings = 0.1 * rng.normal(size=(train.shape[1], n_components))
    codes = np.zeros((len(train), n_components))
    offset = base + np.log(exposure)[:, None]
    for _ in range(n_steps):
        codes = solve(train, loadings, offset, codes)
        loadings = solve(train.T, codes, offset.T, loadings)
    offset = base + np.log(given)[:, None]
    codes = solve(half, loadings, offset, np.zeros((len(half), n_components)), 20)
    return codes, np.exp(np.minimum(codes @ loadings.T + offset, 15))


def load(name):
    if name == "digits":
        return load_digits().data
    from lda.datasets import load_reuters

    X = load_reuters().astype(float)
    return X[:, np.argsort(-X.sum(0))[:1000]]


def held_out(n_components, names, seed):
    for name in names:
        X = load(name)
        rng = np.random.default_rng(seed)
        X = X[rng.permutation(len(X))]
        n_test = len(X) // 4
        train, test = X[n_test:], X[:n_test]
        half = rng.binomial(test.astype(int), 0.5).astype(float)
        other = test - half
        shares = train.sum(0) / train.sum()
        total = half.sum(1, keepdims=True)
        null = deviance(other, total * shares)
        print(f"{name}: {X.shape}, mean {X.mean():.3f}, deviance of the means {null:.0f}")

        def say(method, seconds, mean, codes, other=other, null=null):
            explained = 1 - deviance(other, mean) / null
            used = np.mean(np.abs(codes) > 1e-6)
            print(f"  {method:34s} {seconds:5.1f} s  explained {explained:.4f}  used {used:.3f}",
                  flush=True)  # fmt: skip

        for alpha in (0.0, 0.01, 0.1):
            start = time.process_time()
            nmf = NMF(n_components, beta_loss="kullback-leibler", solver="mu", max_iter=500,
                      alpha_W=alpha, init="nndsvda", random_state=seed)  # fmt: skip
            nmf.fit(train)
            codes = nmf.transform(half)
            say(f"NMF(KL), alpha_W={alpha}", time.process_time() - start,
                codes @ nmf.components_, codes)  # fmt: skip
        exposure = train.sum(1) / train.sum(1).mean()
        given = np.maximum(half.sum(1), 1) / train.sum(1).mean()
        for ridge in (1, 10, 100):
            start = time.process_time()
            codes, mean = glm_pca(train, half, exposure, given, n_components, ridge)
            say(f"GLM-PCA, ridge {ridge}", time.process_time() - start, mean, codes)
        alpha = "auto"
        for positive in (False, True):
            for share in (1, 0.5, 0.25):
                start = time.process_time()
                learner = PUDLEDictionaryLearning(
                    n_components,
                    loss="poisson",
                    positive_code=positive,
                    alpha=alpha if alpha == "auto" else share * alpha,
                    random_state=seed,
                ).fit(train, exposure=exposure)
                alpha = learner.alpha_ if alpha == "auto" else alpha
                codes = learner.transform(half, exposure=given)
                mean = given[:, None] * learner.inverse_transform(codes)
                label = f"poisson, alpha {learner.alpha_:.2f}" + (", positive" if positive else "")
                say(label, time.process_time() - start, mean, codes)


def update(shapes):
    generator = torch.Generator().manual_seed(0)
    for n, m, p in shapes:
        atoms = torch.randn(p, m, generator=generator, dtype=torch.float64)
        atoms = torch.nn.functional.normalize(atoms).requires_grad_()
        codes = torch.randn(n, p, generator=generator, dtype=torch.float64)
        codes *= 3 * (torch.rand(n, p, generator=generator) < 3 / p)
        natural = codes @ atoms.detach() + 1
        noise = torch.randn(n, m, generator=generator, dtype=torch.float64)
        data = {
            "gaussian, dense": (Gaussian(), natural - 1 + noise),
            "gaussian": (Gaussian(), natural - 1 + noise),
            "poisson": (Poisson(), torch.poisson(natural.exp(), generator=generator)),
            "binomial": (Binomial(20), (20 * natural.sigmoid()).round()),
        }
        times = {name: [] for name in data}
        for _ in range(5):
            for name, (loss, x) in data.items():
                # a mask keeps least squares from the Gram matrix and from working sets
                mask = torch.ones_like(x) if name == "gaussian, dense" else None
                offset = None if loss == Gaussian() else torch.ones(m, dtype=torch.float64)
                # twice the noise, as "auto": codes of all losses are equally sparse
                alpha = 2 * float(loss.variance(x.mean())) ** 0.5
                encoder = partial(encode, alpha=alpha, n_unfoldings=100, loss=loss)
                options = dict(encoder=encoder, penalty=alpha, loss=loss)
                batch = Samples(x, mask, offset)
                start = time.process_time()
                evaluation = ae_ls(DenseDictionary(atoms), batch, **options)
                torch.autograd.grad(evaluation.surrogate, atoms)
                times[name].append(time.process_time() - start)
        best = {name: min(values) for name, values in times.items()}
        ratios = (f"{k} {v / best['gaussian, dense']:.2f}" for k, v in best.items())
        print(f"n={n} m={m} p={p}: {1e3 * best['gaussian, dense']:.0f} ms,", ", ".join(ratios))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["recovery", "deviance", "update"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--data", nargs="+", default=["digits", "reuters"])
    parser.add_argument("--n-components", type=int, default=32)
    arguments = parser.parse_args()
    if arguments.what == "recovery":
        recovery(arguments.seeds)
    elif arguments.what == "deviance":
        for seed in arguments.seeds:
            held_out(arguments.n_components, arguments.data, seed)
    else:
        update([(256, 64, 32), (256, 64, 128), (256, 256, 512), (64, 1000, 1500)])
