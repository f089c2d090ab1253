"""Learn convolutional dictionaries from data alone: SPORCO's example.

SPORCO's ``cbpdndl_cns_gry.py``: 64 atoms of 8 x 8 pixels from four of its five images of 128 x 128
pixels without low frequencies. The measure is the lasso objective of the fifth, at converged codes.
Both dictionaries are evaluated by the codes of this package, for atoms inside of the image, and by
SPORCO's codes, which extend images periodically. Each of two images is held out in turn.

Times are of the process's CPU, on one thread, after a small fit of the same kind has compiled its
functions. Example::

    OMP_NUM_THREADS=1 python benchmarks/bench_conv_learning.py --out conv_learning.json
"""

import numpy as np
import torch
from common import Report, parse, timed

from skpudle import ConvPUDLEDictionaryLearning
from skpudle._operators._conv import ConvDictionary
from skpudle.search.conv_problem import conv_codes

CROPS = {"barbara": (10, 100), "kodim23": (0, 60), "monarch": (0, 160), "sail": (0, 210),
         "tulips": (0, 30)}  # fmt: skip
PENALTY = 0.2


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
    return (
        ConvPUDLEDictionaryLearning(64, random_state=seed, **options)
        .fit(images)
        .components_
    )


def random_atoms(images):
    return np.moveaxis(np.random.RandomState(12345).randn(8, 8, 64), -1, 0)


def objective(atoms, image):
    atoms = torch.nn.functional.normalize(torch.from_numpy(atoms).flatten(1)).view(
        atoms.shape
    )
    dictionary, x = (
        ConvDictionary(atoms[:, None], (1, 1)),
        torch.from_numpy(image)[None, None],
    )
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


def main():
    given = parse(
        __doc__,
        "conv_learning.json",
        choices={"held_out": CROPS},
        held_out=["tulips", "barbara"],
    )
    Report(given.out, "problem", "learner").extend(images_table(given.held_out))


if __name__ == "__main__":
    main()
