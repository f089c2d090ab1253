"""Learn convolutional dictionaries from data alone: SPORCO's example and alphacsc's simulation.

SPORCO's ``cbpdndl_cns_gry.py``: 64 atoms of 8 x 8 pixels from four of its five images of 128 x 128
pixels without low frequencies. The measure is the lasso objective of the fifth, at converged codes.
Both dictionaries are evaluated by the codes of this package, for atoms inside of the image, and by
SPORCO's codes, which extend images periodically. Each of two images is held out in turn.

alphacsc's ``plot_simulate_csc.py``: two atoms in 100 traces with noise, each once a trace, and
eight shorter ones. The correlation with the truth is at the best shift. alphacsc 0.4 needs an older
NumPy (1.26), so that it may run by another interpreter.

Times are of the process's CPU, on one thread, after a small fit of the same kind has compiled its
functions. Example::

    OMP_NUM_THREADS=1 python benchmarks/bench_conv_learning.py --out conv_learning.json
"""

import sys
import tempfile
from functools import partial

import numpy as np
import torch
from common import Report, by_scripts, parse, timed
from scipy.optimize import linear_sum_assignment

from skpudle import ConvPUDLEDictionaryLearning
from skpudle._operators._conv import ConvDictionary
from skpudle.search._conv_epoch import conv_codes

CROPS = {"barbara": (10, 100), "kodim23": (0, 60), "monarch": (0, 160), "sail": (0, 210),
         "tulips": (0, 30)}  # fmt: skip
PENALTY = 0.2


# ---------------------------------------------------------------- SPORCO's images


def sporco_images():  # -> (5, 128, 128)
    from sporco import signal, util

    source = util.ExampleImages(scaled=True, zoom=0.25, gray=True)
    images = [
        source.image(f"{name}.png", idxexp=np.s_[top : top + 512, left : left + 512])
        for name, (top, left) in CROPS.items()
    ]
    _, high = signal.tikhonov_filter(np.dstack(images), 5, 16)
    return np.moveaxis(high, -1, 0).astype(np.float64)


def sporco_atoms(images, n_iter=200):
    """Learn atoms as in the example."""
    from sporco.dictlrn import cbpdndl

    start = np.random.RandomState(12345).randn(8, 8, 64)
    options = {"MaxMainIter": n_iter, "CBPDN": {"rho": 50 * PENALTY + 0.5},
               "CCMOD": {"rho": 10.0, "ZeroMean": True}}  # fmt: skip
    options = cbpdndl.ConvBPDNDictLearn.Options(options, dmethod="cns")
    data = np.moveaxis(images, 0, -1)
    learner = cbpdndl.ConvBPDNDictLearn(start, data, PENALTY, options, dmethod="cns")
    return np.moveaxis(learner.solve().squeeze(), -1, 0)


def our_atoms(images, seed=0):
    options = dict(atom_shape=(8, 8), stride=1, alpha=PENALTY)
    return ConvPUDLEDictionaryLearning(64, random_state=seed, **options).fit(images).components_


def random_atoms(images):
    return np.moveaxis(np.random.RandomState(12345).randn(8, 8, 64), -1, 0)


def objective(atoms, image):
    atoms = torch.nn.functional.normalize(torch.from_numpy(atoms).flatten(1)).view(atoms.shape)
    dictionary, x = ConvDictionary(atoms[:, None], (1, 1)), torch.from_numpy(image)[None, None]
    codes, _ = conv_codes(dictionary, x, alpha=PENALTY)
    error = dictionary.synthesis(codes) - x
    return float(error.square().sum() / 2 + PENALTY * codes.abs().sum())


def periodic_objective(atoms, image):
    from sporco.admm import cbpdn

    options = cbpdn.ConvBPDN.Options({"MaxMainIter": 500, "RelStopTol": 1e-4})
    atoms = atoms / np.linalg.norm(atoms, axis=(1, 2), keepdims=True)
    solver = cbpdn.ConvBPDN(np.moveaxis(atoms, 0, -1), image, PENALTY, options)
    solver.solve()
    return solver.getitstat().ObjFun[-1]


def images_table(held_out):
    images = sporco_images()
    our_atoms(images[:, :24, :24])  # compiles
    for name in held_out:
        test = list(CROPS).index(name)
        training = np.delete(images, test, axis=0)
        for learner, learn in (
            ("the random atoms that SPORCO starts from", random_atoms),
            ("SPORCO, ConvBPDNDictLearn", sporco_atoms),
            ("skpudle", our_atoms),
        ):
            atoms, seconds = timed(learn, training)
            yield {
                "problem": f"SPORCO's images, {name} held out",
                "learner": learner,
                "cpu_seconds": 0.0 if learn is random_atoms else seconds,
                "held_out_objective": objective(atoms, images[test]),
                "held_out_objective_periodic": periodic_objective(atoms, images[test]),
            }


# ---------------------------------------------------------------- alphacsc's simulation


def simulated(seed, n_atoms=2, width=64, n_trials=100, length=512):  # -> traces, atoms
    from alphacsc.simulate import simulate_data

    traces, atoms, _ = simulate_data(n_trials, length, width, n_atoms, seed)
    return traces + 0.01 * np.random.RandomState(seed).randn(*traces.shape), atoms


def correlations(atoms, truth):
    atoms = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    table = np.array(
        [[np.abs(np.correlate(a, b, mode="full")).max() for a in atoms] for b in truth]
    )
    return table[linear_sum_assignment(-table)]


def ours(traces, n_atoms, width, **options):
    options = dict(atom_shape=width, stride=1, positive_code=True) | options
    learner = ConvPUDLEDictionaryLearning(n_atoms, random_state=0, **options)
    _, seconds = timed(learner.fit, traces)
    codes = learner.transform(traces)
    return learner.components_, np.count_nonzero(codes) / len(traces), seconds


# may run by another interpreter, without torch and this package
SCRIPT = """
import sys, warnings
from time import process_time
import numpy as np
from alphacsc import BatchCDL, learn_d_z
warnings.simplefilter("ignore")
data = np.load(sys.argv[1])
n_atoms, width = int(data["n_atoms"]), int(data["width"])

def batch_cdl(traces):
    learner = BatchCDL(n_atoms, width, rank1=False, verbose=0, random_state=60)
    learner.fit(traces[:, None])
    return learner.D_hat_[:, 0], learner.z_hat_

def example(traces):
    *_, atoms, codes, _ = learn_d_z(
        traces, n_atoms, width, reg=0.1, n_iter=50, solver_d_kwargs=dict(factr=100),
        random_state=60, verbose=0)
    return atoms, codes

learn = {"BatchCDL": batch_cdl, "learn_d_z": example}[str(data["name"])]
learn(data["traces"][:2])
start = process_time()
atoms, codes = learn(data["traces"])
seconds = process_time() - start
np.savez(sys.argv[2], atoms=atoms, count=np.count_nonzero(codes), seconds=seconds)
"""


def alphacsc(name, python, traces, n_atoms, width):  # -> atoms, codes a trace, seconds
    given = dict(traces=traces, n_atoms=n_atoms, width=width, name=name)
    with tempfile.TemporaryDirectory() as folder:
        found = by_scripts(python, SCRIPT, folder=folder, **given)
    return found["atoms"], found["count"] / len(traces), float(found["seconds"])


def simulation_table(seeds, python):
    for n_atoms, width in ((8, 32), (2, 64)):
        learners = {
            "skpudle": ours,
            "skpudle, alpha=0.1": partial(ours, alpha=0.1),
        }
        if n_atoms == 2:
            learners["alphacsc, learn_d_z"] = partial(alphacsc, "learn_d_z", python)
            learners["alphacsc, BatchCDL"] = partial(alphacsc, "BatchCDL", python)
        ours(simulated(0, n_atoms, width, n_trials=4, length=3 * width)[0], n_atoms, width)
        for seed in seeds:
            traces, truth = simulated(seed, n_atoms, width)
            for name, learn in learners.items():
                atoms, n_nonzero, seconds = learn(traces, n_atoms, width)
                found = correlations(atoms, truth)
                yield {
                    "problem": f"alphacsc's simulation, {n_atoms} atoms of {width}, seed {seed}",
                    "learner": name,
                    "cpu_seconds": seconds,
                    "smallest_correlation": found.min(),
                    "mean_correlation": found.mean(),
                    "non_zeros_a_trace": n_nonzero,
                }


def main():
    given = parse(
        __doc__, "conv_learning.json", choices={"held_out": CROPS}, only="",
        held_out=["tulips", "barbara"], seeds=[1, 2, 3, 4, 5], alphacsc_python=sys.executable,
    )  # fmt: skip
    report = Report(given.out, "problem", "learner")
    if given.only != "images":
        report.extend(simulation_table(given.seeds, given.alphacsc_python))
    if given.only != "simulation":
        report.extend(images_table(given.held_out))


if __name__ == "__main__":
    main()
