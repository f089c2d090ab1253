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

from functools import partial
from itertools import product

import numpy as np
import torch
from common import Report, parse, timed, unit
from scipy.special import xlogy
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF

from skpudle import CountDictionaryLearning, PUDLEDictionaryLearning
from skpudle._losses import Binomial, Gaussian, Poisson
from skpudle.encoding import encode


def make_counts(
    loss, n_samples=6000, n_features=40, n_components=50, n_nonzero=3, seed=0
):
    rng = np.random.default_rng(seed)
    atoms = unit(rng.normal(size=(n_components, n_features)))
    codes = np.zeros((n_samples, n_components))
    for row in codes:
        support = rng.choice(n_components, n_nonzero, replace=False)
        row[support] = rng.uniform(1.5, 3, n_nonzero) * rng.choice([-1, 1], n_nonzero)
    natural = codes @ atoms
    if loss == "poisson":
        return rng.poisson(np.exp(natural + 1)).astype(float), atoms
    return rng.binomial(20, 1 / (1 + np.exp(-natural))).astype(float), atoms


def recovered(name, learner, X, atoms):
    _, seconds = timed(learner.fit, X)
    cosine = np.abs(unit(learner.components_) @ atoms.T).max(0)
    used = np.mean(learner.transform(X[:1000]) != 0)
    row = {"learner": name, "seconds": seconds, "found": np.mean(cosine > 0.95)}
    return row | {"1 - cosine": np.mean(1 - cosine), "codes used": used}


def recovery(given):
    for seed in given.seeds:
        for loss in ("poisson", "binomial"):
            X, atoms = make_counts(loss, seed=seed)
            counts = CountDictionaryLearning(50, loss=loss, random_state=seed)
            counts.set_params(**{"n_trials": 20} if loss == "binomial" else {})
            yield recovered(loss, counts, X, atoms)
            make = partial(PUDLEDictionaryLearning, 50, random_state=seed)
            Y = np.log1p(X) if loss == "poisson" else np.log((X + 0.5) / (20.5 - X))
            Y -= Y.mean(0)
            name = "gaussian, log(1 + x)" if loss == "poisson" else "gaussian, logit"
            yield recovered(name, make(), Y, atoms)
            norm = np.sqrt((Y**2).sum(1).mean())
            for share in (0.15, 0.2, 0.3):
                yield recovered(
                    f"{name}, alpha {share} |x|", make(alpha=share * norm), Y, atoms
                )


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
            curvature = np.einsum(
                "nf,fp,fq->npq", mean, loadings, loadings, optimize=True
            )
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


def by_nmf(train, half, n_components, seed, alpha):
    nmf = NMF(n_components, beta_loss="kullback-leibler", solver="mu", max_iter=500,
              alpha_W=alpha, init="nndsvda", random_state=seed).fit(train)  # fmt: skip
    codes = nmf.transform(half)
    return codes, codes @ nmf.components_


def ours(train, half, exposure, given, n_components, seed, alpha, positive):
    learner = CountDictionaryLearning(
        n_components, positive_code=positive, alpha=alpha, random_state=seed
    ).fit(train, exposure=exposure)
    codes = learner.transform(half, exposure=given)
    return codes, given[:, None] * learner.inverse_transform(codes), learner.alpha_


def held_out(name, n_components, seed):
    """Yield the explained share of the deviance, and the share of codes in use, of each method."""
    X, rng = load(name), np.random.default_rng(seed)
    X = X[rng.permutation(len(X))]
    n_test = len(X) // 4
    train, test = X[n_test:], X[:n_test]
    half = rng.binomial(test.astype(int), 0.5).astype(float)
    other = test - half
    null = deviance(other, half.sum(1, keepdims=True) * train.sum(0) / train.sum())

    def judged(method, found, seconds):
        codes, mean = found[:2]
        row = {"data": name, "method": method, "seconds": seconds}
        row["explained"] = 1 - deviance(other, mean) / null
        return row | {"used": np.mean(np.abs(codes) > 1e-6)}

    for alpha in (0.0, 0.01, 0.1):
        found = timed(by_nmf, train, half, n_components, seed, alpha)
        yield judged(f"NMF(KL), alpha_W={alpha}", *found)
    exposure = train.sum(1) / train.sum(1).mean()
    given = np.maximum(half.sum(1), 1) / train.sum(1).mean()
    data = train, half, exposure, given, n_components
    for ridge in (1, 10, 100):
        yield judged(f"GLM-PCA, ridge {ridge}", *timed(glm_pca, *data, ridge))
    chosen = "auto"
    for positive, share in product((False, True), (1, 0.5, 0.25)):
        alpha = chosen if chosen == "auto" else share * chosen
        found, seconds = timed(ours, *data, seed, alpha, positive)
        chosen = found[2] if chosen == "auto" else chosen
        label = f"poisson, alpha {found[2]:.2f}" + (", positive" if positive else "")
        yield judged(label, found, seconds)


def explained_deviance(given):
    for seed, name in product(given.seeds, given.data):
        yield from held_out(name, given.n_components, seed)


def update(given):
    generator = torch.Generator().manual_seed(0)
    for n, m, p in [(256, 64, 32), (256, 64, 128), (256, 256, 512), (64, 1000, 1500)]:
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

        def run(name, loss, x, atoms=atoms, m=m):
            # a mask keeps least squares from the Gram matrix and from working sets
            mask = torch.ones_like(x) if name == "gaussian, dense" else None
            offset = None if loss == Gaussian() else torch.ones(m, dtype=torch.float64)
            # twice the noise, as "auto": codes of all losses are equally sparse
            alpha = 2 * float(loss.variance(x.mean())) ** 0.5
            how = dict(
                alpha=alpha, n_unfoldings=100, loss=loss, mask=mask, offset=offset
            )
            natural = encode(atoms, x, **how) @ atoms + (
                0 if offset is None else offset
            )
            torch.autograd.grad(loss.half_deviance(natural, x).sum(1).mean(), atoms)

        times = [
            {name: timed(run, name, *of)[1] for name, of in data.items()}
            for _ in range(5)
        ]
        best = {name: min(each[name] for each in times) for name in data}
        ratios = {name: value / best["gaussian, dense"] for name, value in best.items()}
        yield {"rows": n, "features": m, "atoms": p} | ratios


PARTS = {"recovery": recovery, "deviance": explained_deviance, "update": update}


def main():
    given = parse(__doc__, names=["what"], choices={"what": PARTS}, seeds=[0], n_components=32,
                  data=["digits", "reuters"])  # fmt: skip
    Report(given.out, what=given.what).extend(PARTS[given.what](given))


if __name__ == "__main__":
    main()
