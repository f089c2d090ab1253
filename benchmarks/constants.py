"""Measure what decides a constant of the package: a case for each constant, which comments cite.

A case fits the same data with several values of its constant, and prints a row of figures for each
value and each set of data. The value of the package is marked with "now". Seconds are processor
time of one thread; the first fit of a process, which compiles, is not counted.

Usage: python benchmarks/constants.py CASE [CASE ...] [--out FILE]
       python benchmarks/constants.py            lists the cases
"""

import argparse
import inspect
import re
import sys
import textwrap
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import Report, halves, share_found, timed
from sklearn.datasets import load_digits, load_sample_image
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.image import extract_patches_2d

import skpudle
from skpudle._fit.plan import Plan
from skpudle._initialization import initial_atoms
from skpudle.datasets import make_dictionary_data
from skpudle.encoding import _learned, encode, learn_encoder
from skpudle.lasso import solve_lasso
from skpudle.search import Problem, auto_alpha, descend, search

CASES = {}  # name: generator function of rows of figures


def case(*constants):
    """Add a case, named like its function, for these constants of the package.

    A number inside of a function is a constant, too: (module or class, name of the function, text).
    """

    def add(function):
        function.constants = constants
        CASES[function.__name__.replace("_", "-")] = function
        return function

    return add


# ---------------------------------------------------------------------------- other values


def package_modules():
    """Return the modules of the package that are imported."""
    names = [name for name in sys.modules if re.match(r"skpudle(\.|$)", name)]
    return [sys.modules[name] for name in names]


def current_value(constant):
    """Return the value of a constant, of which the package has one with this name."""
    values = [vars(m)[constant] for m in package_modules() if constant in vars(m)]
    if not values:
        raise AttributeError(f"No module of the package has the constant {constant}.")
    return values[0]


@contextmanager
def constant_set_to(constant, value):
    """Give a constant another value, in its module and wherever modules import it."""
    with ExitStack() as patches:
        for module in package_modules():
            if constant in vars(module):
                patches.enter_context(mock.patch.object(module, constant, value))
        yield


def source_with(owner, name, old, new):
    """Return a function of a module, or a method of a class, whose text has ``new`` for ``old``."""
    function = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(old) != 1:
        raise ValueError(f"{name} has {old!r} {source.count(old)} times, not once.")
    module = inspect.getmodule(inspect.unwrap(function))
    namespace = dict(vars(module))
    exec(compile(source.replace(old, new), module.__file__, "exec"), namespace)
    return namespace[name]


def for_values(constant, values):
    """Yield columns of a value, and a function that makes a context with this value."""
    if isinstance(constant, tuple):
        owner, name, now = constant
        label = f"{name}: {now}"
    else:
        now = current_value(constant)
        label = constant
    for value in values:
        columns = {"constant": label, "value": str(value)}
        if value == now:
            columns["now"] = True
        if isinstance(constant, tuple):
            function = source_with(owner, name, now, value)
            yield columns, partial(mock.patch.object, owner, name, function)
        else:
            yield columns, partial(constant_set_to, constant, value)


# ---------------------------------------------------------------------------- data


def planted(n_samples, n_features, n_components, n_nonzero=4, *, snr_db=20, seed=0):
    """Return rows to learn from, as many new rows, and the atoms that made both."""
    X, truth, _ = make_dictionary_data(
        2 * n_samples,
        n_features,
        n_components,
        n_nonzero,
        snr_db=snr_db,
        random_state=seed,
    )
    return X[:n_samples], X[n_samples:], truth


def patches(size=8, n=4000, *, colour=False):
    """Return patches of a photograph without their means, in halves, and no atoms."""
    photograph = load_sample_image("china.jpg") / 255
    image = photograph if colour else photograph.mean(2)
    cut = extract_patches_2d(image, (size, size), max_patches=2 * n, random_state=0)
    rows = cut.reshape(2 * n, -1)
    rows = rows - rows.mean(1, keepdims=True)
    return rows[:n], rows[n:], None


def digits():
    """Return images of digits to learn from, images to evaluate by, and no atoms."""
    return *halves(load_digits().data, 0.7), None


SETS = {  # name: (number of atoms, function that makes the data)
    "60 atoms": (60, lambda: planted(3000, 40, 60)),
    "100 atoms": (100, lambda: planted(4000, 64, 100, 5)),
    "60 atoms in 600 rows": (60, lambda: planted(600, 40, 60)),
    "60 atoms at 5 dB": (60, lambda: planted(6000, 40, 60, snr_db=5)),
    "digits": (80, digits),
    "patches": (100, patches),
}


def judge(learner, seconds, new_rows, truth=None):
    """Return figures about a fit: errors are fractions of the energy of new rows."""
    codes = learner.transform(new_rows)
    error = np.square(new_rows - learner.inverse_transform(codes)).sum()
    centred = new_rows - new_rows.mean(0)
    figures = {
        "seconds": round(seconds, 2),
        "error": float(error / np.square(centred).sum()),
        "codes a row": float((codes != 0).sum(1).mean()),
    }
    if truth is not None:
        figures["found"] = share_found(learner.components_, truth)
    return figures


def compare_fits(constant, values, sets=SETS, **params):
    """Yield a row for each value of a constant and each set of data."""
    for name, (n_components, make) in sets.items():
        rows, new_rows, truth = make()
        for columns, context in for_values(constant, values):
            learner = skpudle.PUDLEDictionaryLearning(
                n_components, random_state=0
            ).set_params(**params)
            with context():
                _, seconds = timed(learner.fit, rows)
                yield (
                    columns | {"data": name} | judge(learner, seconds, new_rows, truth)
                )


def problem_of(rows, n_components, seed=0):
    """Return a problem of the search at its default penalty, and first atoms."""
    x = torch.from_numpy(np.ascontiguousarray(rows))
    generator = torch.Generator().manual_seed(seed)
    atoms = initial_atoms(x, n_components, "data", generator)
    return Problem(x, auto_alpha(x)), atoms


def compare_searches(constant, values, sets=SETS, seeds=(0, 1, 2)):
    """Yield a row for each value of a constant: means of searches at the default penalty."""
    for name, (n_components, make) in sets.items():
        rows, _, truth = make()
        for columns, context in for_values(constant, values):
            searches = []
            with context():
                for seed in seeds:
                    problem, atoms = problem_of(rows, n_components, seed)
                    result, seconds = timed(search, problem, atoms)
                    objective = result.coded.objective / len(rows)
                    searches.append({"seconds": seconds, "objective": objective})
                    if truth is not None:
                        searches[-1]["found"] = share_found(result.atoms, truth)
            yield columns | {"data": name} | mean_figures(searches)


def mean_figures(rows):
    """Return the means of figures over dicts with the same keys."""
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


# ---------------------------------------------------------------------------- the search

HARD = {  # data on which searches differ: many codes a row, noise, real data
    "200 atoms, six a row": (200, lambda: planted(4000, 50, 200, 6)),
    "150 atoms at 8 dB": (150, lambda: planted(5000, 64, 150, 5, snr_db=8)),
    "digits": SETS["digits"],
    "colour patches": (150, lambda: patches(6, 2000, colour=True)),
}


@case("STALL")
def stall():
    """Descent ends when an epoch lowers the objective by less than this fraction."""
    yield from compare_searches("STALL", [2e-3, 5e-4, 2e-4], HARD)


@case("SPLIT")
def splits():
    """A round splits 1 atom in this number."""
    values = [{"few": n, "many": 10} for n in (5, 10, 20, 40)]
    yield from compare_searches("SPLIT", values, HARD)


@case("PROGRESS")
def progress():
    """Rounds with less progress are followed by rounds of half the number of splits."""
    yield from compare_searches("PROGRESS", [1e-2, 1e-3, 1e-4], HARD)


@case("USES")
def uses():
    """Rounds work on so many rows that atoms have this number of uses."""
    sets = {
        "100 atoms in 20,000 rows": (100, lambda: planted(20_000, 50, 100, 5)),
        "100 atoms at 5 dB": (100, lambda: planted(20_000, 50, 100, 5, snr_db=5)),
        "20,000 colour patches": (100, lambda: patches(5, 20_000, colour=True)),
    }
    yield from compare_searches("USES", [40, 80, 120, 10**9], sets)


@case((descend, "descend", "mul_(0.95)"))
def extrapolation():
    """Atoms are extrapolated by this factor times their last step: after 80 epochs."""
    texts = ["mul_(0.0)", "mul_(0.9)", "mul_(0.95)", "mul_(0.98)"]
    sets = {
        "6 codes a row": planted(2500, 100, 500, 6),
        "15 codes a row": planted(5000, 200, 500, 15),
        "15 dB": planted(3000, 64, 500, 4, snr_db=15),
    }
    for name, (rows, _, truth) in sets.items():
        for columns, context in for_values(extrapolation.constants[0], texts):
            problem, atoms = problem_of(rows, len(truth))
            with context(), constant_set_to("STALL", -1.0):
                codes = problem.first_codes(atoms)
                start = problem.project(atoms)
                *_, coded = descend.descend(problem, start, codes, 80)
            figures = {"objective": coded.objective / len(rows)}
            figures["found"] = share_found(coded.atoms, truth)
            yield columns | {"data": name} | figures


@case("SWEEPS")
def sweeps():
    """An epoch sweeps over the atoms this number of times."""
    values = [{"few": n, "many": 1} for n in (1, 2, 4)]
    yield from compare_searches("SWEEPS", values, HARD)


@case("SWEEPS_OF_CODES")
def sweeps_of_codes():
    """An epoch sweeps over the codes of a row at most this number of times."""
    yield from compare_searches("SWEEPS_OF_CODES", [1, 3, 10, 100], HARD)


@case("MIN_FRACTION")
def share_of_slopes():
    """An atom enters a working set if its slope has this fraction of the largest one."""
    yield from compare_searches("MIN_FRACTION", [0.3, 0.6, 0.9], HARD)


@case("USERS")
def users():
    """The cost of an atom is estimated by at most this number of rows."""
    yield from compare_searches("USERS", [8, 16, 32, 64], HARD)


@case("MANY")
def many():
    """From this number of atoms on descent on codes works on residuals: seconds of 5 epochs."""
    for n_features in (93, 595):
        rows, _, truth = planted(2500, n_features, 1000, 4)
        problem, atoms = problem_of(rows, len(truth))
        for columns, context in for_values("MANY", [1000, 1024]):
            with context(), constant_set_to("STALL", -1.0):
                codes = problem.first_codes(atoms)
                start = problem.project(atoms)
                coded, seconds = timed(
                    lambda *given: [*descend.descend(*given)][-1],
                    problem,
                    start,
                    codes,
                    5,
                )
            figures = {
                "seconds": round(seconds, 2),
                "objective": coded.objective / len(rows),
            }
            yield columns | {"features": n_features} | figures


@case("REPEATS")
def repeats_of_codes():
    """So many epochs compute codes of fixed atoms: the objective above its minimum."""
    planted_rows, _, truth = planted(3000, 40, 60)
    of_digits = digits()[0]
    for name, rows, n in (("60 atoms", planted_rows, 60), ("digits", of_digits, 80)):
        problem, atoms = problem_of(rows, n)
        atoms = (
            search(problem, atoms).atoms
            if name == "digits"
            else torch.from_numpy(truth)
        )
        least = descend.solve_codes(problem, atoms, 100).objective
        for columns, _ in for_values("REPEATS", [1, 2, 3, 4, 5]):
            coded = descend.solve_codes(problem, atoms, int(columns["value"]))
            yield columns | {
                "data": name,
                "above the minimum": coded.objective / least - 1,
            }


# ---------------------------------------------------------------------------- penalties, atoms


def penalty_of(rule, x, atoms):
    """Return a penalty: the package's, or a fraction of a norm of the rows, or a correlation."""
    kind, _, factor = rule.partition(":")
    if kind == "auto":
        return auto_alpha(x)
    if kind == "rms":
        return float(factor) * float(x.square().sum(1).mean().sqrt())
    atoms = torch.nn.functional.normalize(atoms, dim=1)
    return float(factor) * float((x @ atoms.mT).abs().amax(1).median())


@case("_ALPHA")
def default_penalty():
    """The default penalty, as a fraction of the root mean square norm of rows."""
    sets = SETS | {
        "60 equal codes": (60, lambda: planted(3000, 50, 60, 3)),
        "standardised digits": (100, standardised_digits),
        "colour patches": (100, lambda: patches(6, colour=True)),
    }
    for rule in ("auto", "rms:0.035", "rms:0.14", "median:0.1", "median:0.3"):
        for name, (n_components, make) in sets.items():
            rows, _, truth = make()
            problem, atoms = problem_of(rows, n_components)
            alpha = penalty_of(rule, problem.x, atoms)
            result, seconds = timed(search, Problem(problem.x, alpha), atoms)
            density = result.coded.n_entries / len(rows) / n_components
            figures = {"seconds": round(seconds, 2), "alpha": alpha, "density": density}
            if truth is not None:
                figures["found"] = share_found(result.atoms, truth)
            yield {"constant": "_ALPHA", "value": rule, "data": name} | figures


def standardised_digits():
    """Return digits whose pixels have mean 0 and variance 1."""
    rows, new_rows, _ = digits()
    scale = np.where(rows.std(0) > 0, rows.std(0), 1)
    return (rows - rows.mean(0)) / scale, (new_rows - rows.mean(0)) / scale, None


@case("_LARGER")
def penalty_steps():
    """The factor from one penalty to the next."""
    sets = SETS | {"60 atoms at 2 dB": (60, lambda: planted(6000, 40, 60, snr_db=2))}
    yield from compare_fits("_LARGER", [2**0.25, 2**0.5, 2.0], sets)


@case("CHANCE")
def chance():
    """A prediction is worse by more than this number of standard errors."""
    yield from compare_fits("CHANCE", [0.0, 0.5, 1.0, 2.0])


@case("NOTHING_LEFT")
def nothing_left():
    """Atoms that leave less than this fraction unexplained end the path of penalties."""
    sets = {
        f"{n} atoms without noise": (
            n,
            lambda n=n: planted(50 * n, n, n, 3, snr_db=None),
        )
        for n in (20, 40, 80)
    }
    yield from compare_fits("NOTHING_LEFT", [0.0, 1e-7], sets)


@case("_NEGLIGIBLE")
def negligible():
    """A smaller dictionary is as good if it explains this fraction less."""
    for snr_db in (None, 20):
        for columns, context in for_values("_NEGLIGIBLE", [0.0, 1e-3, 1e-2]):
            sizes = []
            for seed in range(8):
                rows, _, _ = planted(1000, 20, 12, 2, snr_db=snr_db, seed=seed)
                learner = skpudle.PUDLEDictionaryLearning("auto", random_state=0)
                with context():
                    sizes.append(learner.fit(rows).n_components_)
            data = {"data": f"8 sets of 12 atoms, {snr_db} dB"}
            yield columns | data | {"numbers found": sizes}


@case("_PATIENCE")
def patience():
    """So many larger numbers of atoms have to predict no better."""
    for n_rows in (3000, 5000, 8000):
        rows, _, truth = planted(n_rows, 60, 80, 4, snr_db=0)
        for columns, context in for_values("_PATIENCE", [1, 2, 3]):
            learner = skpudle.PUDLEDictionaryLearning("auto", random_state=0)
            with context():
                _, seconds = timed(learner.fit, rows)
            found = share_found(learner.components_, truth)
            figures = {"seconds": round(seconds, 2), "atoms": learner.n_components_}
            yield (
                columns
                | {"data": f"{n_rows} rows of 80 atoms"}
                | figures
                | {"found": found}
            )


# ---------------------------------------------------------------------------- units


def with_outliers(kind, seed=0):
    """Return planted rows of which some have spikes, or are strange, or long; and clean rows."""
    rows, new_rows, truth = planted(1500, 30, 20, 3, seed=seed)
    rng = np.random.default_rng(seed)
    size = rows.std()
    if kind == "spikes":
        rows = rows + 15 * size * rng.standard_normal(rows.shape) * (
            rng.random(rows.shape) < 0.01
        )
    elif kind == "strange rows":
        chosen = rng.random(len(rows)) < 0.03
        rows = np.where(
            chosen[:, None], 10 * size * rng.standard_normal(rows.shape), rows
        )
    elif kind == "long rows":  # of the same atoms: data, and no outliers
        rows = rows * np.where(rng.random(len(rows)) < 0.03, 4, 1)[:, None]
    return rows, new_rows, truth


def compare_outliers(constant, values):
    """Yield rows of fits to data with outliers and without, with the number of outliers found."""
    for kind in ("none", "spikes", "strange rows", "long rows"):
        for seed in range(2):
            rows, new_rows, truth = with_outliers(kind, seed)
            for columns, context in for_values(constant, values):
                learner = skpudle.PUDLEDictionaryLearning(len(truth), random_state=0)
                with context():
                    _, seconds = timed(learner.fit, rows)
                    figures = judge(learner, seconds, new_rows, truth)
                outliers = getattr(learner, "outliers_", None)
                n_outliers = 0 if outliers is None else outliers.nnz
                yield (
                    columns
                    | {"data": kind, "seed": seed}
                    | figures
                    | {"outliers": n_outliers}
                )


@case("_UNPREDICTED")
def unpredicted():
    """A long row is an outlier if atoms leave this fraction of its energy unpredicted."""
    yield from compare_outliers("_UNPREDICTED", [0.25, 0.5, 0.75])


@case("_SAVED")
def saved():
    """A baseline has to save this number of codes a row: is it found, and only where it is?"""
    for offset in (0.0, 0.05, 0.1, 0.2, 1.0):
        for seed in range(2):
            rows, new_rows, truth = planted(1500, 30, 20, 3, seed=seed)
            shift = offset * rows.std() * np.random.default_rng(9).standard_normal(30)
            for columns, context in for_values("_SAVED", [0.1, 0.5, 1.0]):
                learner = skpudle.PUDLEDictionaryLearning(len(truth), random_state=0)
                with context():
                    _, seconds = timed(learner.fit, rows + shift)
                figures = judge(learner, seconds, new_rows + shift, truth)
                baseline = float(np.linalg.norm(learner.intercept_))
                data = {"data": f"offset {offset:g}", "seed": seed}
                yield columns | data | figures | {"baseline": baseline}


def compare_features(constant, values):
    """Yield rows of fits to data whose features have unequal noise, or equal noise."""
    for spread in (0.0, 1.0):
        for n_features in (8, 30):
            for seed in range(3):
                rows, new_rows, truth = planted(
                    1200, n_features, 2 * n_features // 3, 2, snr_db=None, seed=seed
                )
                rng = np.random.default_rng(seed)
                noise = (
                    0.1 * rows.std() * np.exp(spread * rng.standard_normal(n_features))
                )
                rows = rows + noise * rng.standard_normal(rows.shape)
                for columns, context in for_values(constant, values):
                    learner = skpudle.PUDLEDictionaryLearning(
                        len(truth), random_state=0
                    )
                    with context():
                        _, seconds = timed(learner.fit, rows)
                    scales = np.broadcast_to(learner.noise_std_, n_features)
                    figures = judge(learner, seconds, new_rows, truth)
                    figures["spread of noise"] = float(np.log(scales).std())
                    data = {"data": f"{n_features} features, spread {spread:g}"}
                    yield columns | data | {"seed": seed} | figures


@case("_HIDES")
def hides():
    """Noise of features is divided out if its correlation with noise over signal is above this."""
    yield from compare_features("_HIDES", [0.0, 0.8, 1.0])


# ---------------------------------------------------------------------------- streams, training


@case("_SURPRISE")
def surprise():
    """A block surprises if its objective exceeds the mean by this factor: ratios by chance."""
    planted_rows = planted(9216, 40, 60)[0]
    of_digits = np.tile(digits()[0], (15, 1))
    of_digits = np.random.default_rng(0).permutation(of_digits)
    for name, rows, n in (("60 atoms", planted_rows, 60), ("digits", of_digits, 80)):
        problem, atoms = problem_of(rows[:4096], n)
        atoms = search(problem, atoms).atoms
        blocks = torch.from_numpy(rows[: len(rows) // 1024 * 1024]).split(1024)
        losses = [
            descend.solve_codes(Problem(block, problem.alpha), atoms, 3).objective
            for block in blocks
        ]
        ratios = np.array(
            [losses[i] / np.mean(losses[:i]) for i in range(1, len(losses))]
        )
        figures = {"largest ratio": ratios.max(), "deviation": ratios.std()}
        yield {"constant": "_SURPRISE", "value": "-", "data": name} | figures


def compare_encoders(constant, values):
    """Yield the objective of codes of new rows by trained encoders, and its minimum."""
    for name in ("60 atoms", "digits"):
        n_components, make = SETS[name]
        rows, new_rows, _ = make()
        problem, atoms = problem_of(rows, n_components)
        atoms = search(problem, atoms).atoms.double()
        x, new_x = problem.x.double()[:1200], torch.from_numpy(new_rows).double()

        def objective(codes, atoms=atoms, x=new_x, alpha=problem.alpha):
            residual = x - codes @ atoms
            penalty = alpha * codes.abs().sum(1).mean()
            return float(residual.square().sum(1).mean() / 2 + penalty)

        least = objective(solve_lasso(atoms, new_x, problem.alpha)[0])
        for columns, context in for_values(constant, values):
            generator = torch.Generator().manual_seed(0)
            with context():
                encoder = learn_encoder(
                    atoms, x, problem.alpha, n_updates=800, generator=generator
                )
            value = objective(encoder.encode(new_x))
            yield columns | {"data": name, "objective": value, "minimum": least}


@case((_learned, "_draw_batch", "0.15 * draws"))
def noise_of_encoders():
    """Rows that train an encoder get noise of up to this fraction of their size."""
    texts = [f"{value} * draws" for value in ("0.0", "0.15", "0.5")]
    yield from compare_encoders(noise_of_encoders.constants[0], texts)


@case((_learned, "_first_encoder", "torch.linalg.solve(gram, atoms.mT).mT"))
def start_of_encoders():
    """Analysis matrices begin near the pseudoinverse, or at the atoms."""
    now = start_of_encoders.constants[0][2]
    yield from compare_encoders(start_of_encoders.constants[0], [now, "atoms"])


@case((_learned, "_train", "0.05, 0.02, 0.05"))
def rates_of_encoders():
    """Learning rates of analysis, synthesis and thresholds."""
    texts = ["0.02, 0.008, 0.02", "0.05, 0.02, 0.05", "0.1, 0.04, 0.1"]
    yield from compare_encoders(rates_of_encoders.constants[0], texts)


@case((Plan, "curvature", "self.n_unfoldings**-0.22"))
def curvature():
    """Training begins with the curvature of the search times this power of the unfoldings."""
    texts = [
        f"self.n_unfoldings**{power}" for power in ("0.0", "-0.22", "-0.25", "-0.5")
    ]
    sets = {name: SETS[name] for name in ("60 atoms", "digits")}
    for shrinkage in ("soft", "hard"):
        params = {"n_unfoldings": 25, "gradient": "ae-ls", "shrinkage": shrinkage}
        for row in compare_fits(curvature.constants[0], texts, sets, **params):
            yield row | {"shrinkage": shrinkage}


@case((Plan, "n_updates", "(not self.of_lasso) + 9"))
def updates():
    """Training after a search takes epochs in this proportion to unfoldings and other work."""
    texts = [f"(not self.of_lasso) + {work}" for work in (3, 9, 27)]
    sets = {name: SETS[name] for name in ("digits", "patches")}
    for n_unfoldings in (3, 25):
        params = {"n_unfoldings": n_unfoldings, "gradient": "ae-ls"}
        for row in compare_fits(updates.constants[0], texts, sets, **params):
            yield row | {"unfoldings": n_unfoldings}


@case("_FEW_PRODUCTS")
def compiled_steps():
    """Iterations of at most this number of multiplications are compiled: microseconds each."""
    generator = torch.Generator().manual_seed(0)
    for n_rows, n_atoms, n_features in ((1, 64, 32), (8, 128, 64), (64, 128, 64)):
        atoms = torch.randn(n_atoms, n_features, generator=generator)
        atoms = torch.nn.functional.normalize(atoms, dim=1)
        x = torch.randn(n_rows, n_features, generator=generator)
        for columns, context in for_values("_FEW_PRODUCTS", [0, 2**17, 2**22]):
            with context():
                run = partial(encode, atoms, x, alpha=0.01, n_unfoldings=100)
                run()
                _, seconds = timed(lambda run=run: [run() for _ in range(20)])
            products = n_rows * n_atoms * min(n_atoms, 2 * n_features)
            figures = {"products": products, "microseconds": seconds / 2000 * 1e6}
            yield columns | figures


# ---------------------------------------------------------------------------- the command


def parse_options():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE")
    parser.add_argument("--out", type=Path, help="JSON to write; default: none")
    return parser.parse_args()


def main():
    options = parse_options()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # the result is judged anyway
    if not options.cases:
        for name, function in CASES.items():
            print(f"{name:20} {inspect.getdoc(function)}")
        return
    report = Report(options.out)
    compile_loops()
    for name in options.cases:
        for row in CASES[name]():
            report.add({"case": name} | row)


def compile_loops():
    """Fit a few rows, so that no figure has the time of compilation."""
    rows, _, _ = planted(200, 10, 8, 2)
    skpudle.PUDLEDictionaryLearning(8, random_state=0).fit(rows).transform(rows)
    for params in ({}, {"gradient": "ae-ls", "n_unfoldings": 3}):
        learner = skpudle.PUDLEDictionaryLearning(8, max_iter=1, random_state=0)
        with warnings.catch_warnings(action="ignore"):
            learner.set_params(**params).fit(rows).transform(rows)


if __name__ == "__main__":
    main()
