"""Encoders of few unfoldings: explained variance, density and time, on rows that were held out.

For each data set: the dictionary of the search with a plain unfolded encoder, training through that
encoder ("ae-ls"), an encoder with matrices of its own, and converged codes. For one unfolding also
TopK and BatchTopK autoencoders of the same width, trained as long, at the same number of codes.

    python benchmarks/bench_encoders.py --out benchmarks/results/encoders.json
    python benchmarks/bench_encoders.py --sets --out encoders_speed.json  # 10,000 rows, the times
"""

import time
import warnings

import numpy as np
import torch
from common import Report, parse
from common import perf_timed as timed
from sklearn.datasets import load_digits, load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d

from skpudle import PUDLEDictionaryLearning
from skpudle.lasso import solve_lasso

N_COMPONENTS = 100
DEPTHS = 1, 2, 3, 5, 10, 20
LEARNED = 1, 2, 3, 5
RATES = 3e-4, 1e-3, 3e-3


def digits(rng):
    X = load_digits().data[rng.permutation(1797)]
    return X[:1200], X[1200:]


def patches(rng):
    image = load_sample_image("china.jpg").mean(2) / 255
    X = extract_patches_2d(
        image, (8, 8), max_patches=8000, random_state=int(rng.integers(2**31))
    )
    X = X.reshape(len(X), -1)
    X = X - X.mean(1, keepdims=True)
    return X[:4000], X[4000:]


SETS = {"digits": digits, "photograph patches": patches}


def judged(X, codes, learner, alpha):
    left = np.square(X - learner.inverse_transform(codes)).sum()  # a baseline counts
    objective = left / 2 / len(X) + alpha * np.abs(codes).sum() / len(X)
    explained = 1 - left / np.square(X - X.mean(0)).sum()
    return {"R2": explained, "density": (codes != 0).mean(), "objective": objective}


def microseconds_a_row(learner, X):
    learner.transform(X)
    return 1e6 * min(timed(learner.transform, X)[1] for _ in range(5)) / len(X)


class Autoencoder(torch.nn.Module):
    """Keep the k largest codes of each row, or k a row on average over a batch."""

    def __init__(self, n_features, width, k, *, by_batch):
        super().__init__()
        atoms = torch.nn.functional.normalize(torch.randn(width, n_features), dim=1)
        self.encoder, self.decoder = (
            torch.nn.Parameter(atoms.clone()),
            torch.nn.Parameter(atoms),
        )
        self.bias, self.offset = (
            torch.nn.Parameter(torch.zeros(n)) for n in (width, n_features)
        )
        self.k, self.by_batch, self.threshold = k, by_batch, None

    def encode(self, x):
        z = (x - self.offset) @ self.encoder.mT + self.bias
        size = z.abs()  # signed codes, as the other encoders have
        if not self.by_batch:
            return torch.zeros_like(z).scatter(
                1, size.topk(self.k).indices, z.gather(1, size.topk(self.k).indices)
            )
        if self.training:
            level = size.flatten().topk(self.k * len(x)).values[-1].detach()
            self.threshold = (
                level
                if self.threshold is None
                else 0.99 * self.threshold + 0.01 * level
            )
        else:
            level = self.threshold
        return torch.where(size >= level, z, 0.0)

    def forward(self, x):
        return self.encode(x) @ self.decoder + self.offset


def autoencoder(train, test, k, seconds, *, by_batch):
    """Return the best R2 of three rates, each with as much time, and the density of its codes."""
    scale = np.sqrt(np.square(train).sum(1).mean())
    x, y = (torch.tensor(v / scale, dtype=torch.float32) for v in (train, test))
    found = []
    for rate in RATES:
        torch.manual_seed(0)
        model = Autoencoder(x.shape[1], N_COMPONENTS, k, by_batch=by_batch)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        start = time.perf_counter()
        while (share := (time.perf_counter() - start) / seconds) < 1:
            optimizer.param_groups[0]["lr"] = rate * min(1.0, 2 * (1 - share))
            batch = x[torch.randint(len(x), (256,))]
            optimizer.zero_grad()
            (model(batch) - batch).square().sum(1).mean().backward()
            optimizer.step()
            with torch.no_grad():
                model.decoder /= model.decoder.norm(dim=1, keepdim=True)
        model.eval()
        with torch.no_grad():
            left = (y - model(y)).square().sum() / (y - y.mean(0)).square().sum()
            density = (model.encode(y) != 0).double().mean()
        found.append((float(1 - left), float(density), rate))
    explained, density, rate = max(found)
    return {"R2": explained, "density": density, "rate": rate}


def rows_of(name, seed):
    """Yield the rows of the table of one data set."""
    train, test = SETS[name](np.random.default_rng(seed))
    options = dict(random_state=seed)
    alpha = PUDLEDictionaryLearning(N_COMPONENTS, **options).fit(train).search_alpha_
    search = PUDLEDictionaryLearning(N_COMPONENTS, alpha=alpha, **options)
    search, seconds = timed(search.fit, train)
    atoms = search.components_

    def row(encoder, n_unfoldings, learner, seconds):
        codes = learner.transform(test)
        found = judged(test, codes, learner, alpha)
        row = {"data": name, "encoder": encoder, "unfoldings": n_unfoldings} | found
        return row | {"fit, s": seconds, "row, us": microseconds_a_row(learner, test)}

    yield row("converged", None, search, seconds)
    for n in DEPTHS:
        known = dict(alpha=alpha, intercept=search.intercept_)
        plain = PUDLEDictionaryLearning.from_components(atoms, n_unfoldings=n, **known)
        yield row("search alone", n, plain, seconds)
    for n in DEPTHS:
        learner = PUDLEDictionaryLearning(N_COMPONENTS, n_unfoldings=n, **options)
        yield row("ae-ls", n, *timed(learner.fit, train))
    for n in LEARNED:
        for separate in (True, "unfolding"):
            learner = PUDLEDictionaryLearning(
                N_COMPONENTS, n_unfoldings=n, separate_atoms=separate, **options
            )
            learned, seconds = timed(learner.fit, train)
            found = row(f"separate_atoms={separate!r}", n, learned, seconds)
            yield found
            if n == 1 and separate == "unfolding":
                k = max(1, round(found["density"] * N_COMPONENTS))
                for kind, by_batch in (("TopK", False), ("BatchTopK", True)):
                    other = autoencoder(train, test, k, seconds, by_batch=by_batch)
                    of_kind = {
                        "data": name,
                        "encoder": kind,
                        "unfoldings": 1,
                        "fit, s": seconds,
                    }
                    yield of_kind | other


def seconds_of_spams(rows, atoms, alpha):
    """Return the time of the lasso by SPAMS on one thread."""
    import spams

    x, d = (np.asfortranarray(v.T.astype(np.float64)) for v in (rows, atoms))
    return timed(spams.lasso, x, D=d, lambda1=alpha, mode=2, numThreads=1)[1]


def speed(n_rows=10_000):
    """Yield times of 10,000 rows at three unfoldings, and of the exact solver."""
    for n_components, n_features in ((256, 64), (4096, 512)):
        generator = torch.Generator().manual_seed(0)
        atoms = torch.randn(n_components, n_features, generator=generator)
        atoms = torch.nn.functional.normalize(atoms, dim=1)
        codes = torch.randn(n_rows, n_components, generator=generator)
        codes *= torch.rand(codes.shape, generator=generator) < 8 / n_components
        x = codes @ atoms
        x = x + 0.1 * x.std() * torch.randn(x.shape, generator=generator)
        alpha = 0.07 * float(x.square().sum(1).mean().sqrt())
        learner = PUDLEDictionaryLearning(
            dict_init=atoms.numpy(),
            alpha=alpha,
            n_unfoldings=3,
            separate_atoms=True,
            max_iter=1,
        ).fit(x[:512].numpy())
        solve_lasso(atoms, x[:100], alpha)
        _, exact = timed(solve_lasso, atoms, x, alpha)
        rows = x.numpy()
        learner.transform(rows[:100])
        _, learned = timed(learner.transform, rows)
        yield {
            "n_components": n_components,
            "n_features": n_features,
            "exact, s": exact,
            "SPAMS, s": seconds_of_spams(rows, atoms.numpy(), alpha),
            "three unfoldings, s": learned,
            "ratio": learned / exact,
        }


def main():
    given = parse(__doc__, sets=list(SETS), seed=0)
    warnings.simplefilter("ignore")
    report = Report(given.out, title="Encoders of few unfoldings", seed=given.seed)
    report.extend(speed() if not given.sets else ())
    for name in given.sets:
        report.extend(rows_of(name, given.seed))


if __name__ == "__main__":
    main()
