"""Recover features that imply others: SynthSAEBench (arXiv:2602.14687) at reduced sizes.

Data, trainers and metrics are those of sae-lens (``pip install sae-lens``). Features have a
hierarchy of 16 trees, 4 children each and depth 3, mutually exclusive siblings, correlations of
rank 25, and firing probabilities that fall as a power law from .2 to 5e-4; the width is a quarter
of their number. MCC is the mean cosine of directions and features, matched by Hungarian algorithm.
F1 is the mean over latents, as classifiers of the feature nearest to their direction. Both are on
new samples, as is the fraction of variance unexplained (FVU).

Methods: the search of the default fit with non-negative codes; the directions of its features
(`skpudle.sae.feature_directions`), with the same codes; the same with ``refine=True``, which
keeps the atoms of a second search or does not; autoencoders of sae-lens, with their own codes, with
the exact ones of `from_sae`, and with as many exact ones as their own. Penalties of exact codes are
otherwise those of ``choose_alpha(criterion="support")``: nothing but samples chooses them.

Usage: python benchmarks/bench_synthsae.py [--seeds 0 1] [--samples 20000] [--flat]
    [--saes batchtopk matryoshka] [--shown 2500000] [--folder FOLDER]
"""

import json
import tempfile
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from common import Report, parse, timed

from skpudle import PUDLEDictionaryLearning
from skpudle.metrics import unexplained_variance
from skpudle.sae import feature_directions, from_sae

N_TEST, ACTIVE, RATE = 10_000, 5, 1e-3
KINDS = {
    "topk": ("topk_sae", "TopKTrainingSAE"),
    "batchtopk": ("batchtopk_sae", "BatchTopKTrainingSAE"),
    "matryoshka": ("matryoshka_batchtopk_sae", "MatryoshkaBatchTopKTrainingSAE"),
}


def world(seed, n_features, n_dimensions, *, hierarchy):
    from sae_lens.synthetic import (
        FoldedNormalMagnitudeConfig,
        HierarchyConfig,
        LinearMagnitudeConfig,
        ZipfianFiringProbabilityConfig,
    )
    from sae_lens.synthetic.synthetic_model import (
        LowRankCorrelationConfig,
        OrthogonalizationConfig,
        SyntheticModel,
        SyntheticModelConfig,
    )

    tree = HierarchyConfig(
        total_root_nodes=max(1, n_features // 128), branching_factor=4, max_depth=3,
        mutually_exclusive_portion=1.0, compensate_probabilities=True,
        scale_children_by_parent=True,
    )  # fmt: skip
    config = SyntheticModelConfig(
        n_features,
        n_dimensions,
        ZipfianFiringProbabilityConfig(exponent=0.5, max_prob=0.2, min_prob=5e-4),
        hierarchy=tree if hierarchy else None,
        orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
        bias=1.0,
        seed=seed,
    )
    return SyntheticModel(config)


def draw(model, n, seed):  # -> samples, features
    torch.manual_seed(seed)
    parts = [
        model.sample_with_features(min(5000, n - first)) for first in range(0, n, 5000)
    ]
    return (torch.cat(arrays).numpy() for arrays in zip(*parts, strict=True))


def autoencoder(kind, n_dimensions, width, active):
    """Return an autoencoder of sae-lens, to be trained."""
    module, name = KINDS[kind]
    module, options = import_module(f"sae_lens.saes.{module}"), {}
    if kind == "matryoshka":
        options["matryoshka_widths"] = [width // 16, width // 4, width]
    config = getattr(module, f"{name}Config")(
        d_in=n_dimensions, d_sae=width, k=active, **options
    )
    return getattr(module, name)(config)


def trained(kind, model, folder, width, n_shown, seed):
    """Train an autoencoder of sae-lens, store it in the folder, and return its CPU time."""
    from sae_lens.synthetic.training import train_toy_sae

    torch.manual_seed(seed)
    sae = autoencoder(kind, model.cfg.hidden_dim, width, ACTIVE)
    how = dict(training_samples=n_shown, batch_size=1024, lr=RATE)
    data = model.feature_dict, model.activation_generator
    _, seconds = timed(train_toy_sae, sae, *data, **how)
    sae.save_inference_model(folder)
    return seconds


def measured(directions, codes, reconstruction, truth, x, features):
    from sae_lens.synthetic import (
        compute_classification_metrics,
        mean_correlation_coefficient,
    )

    directions, truth = (torch.as_tensor(np.float32(a)) for a in (directions, truth))
    codes = torch.as_tensor(np.float32(codes))
    found = compute_classification_metrics(
        codes, torch.from_numpy(features), directions, truth
    )
    return {
        "mcc": round(mean_correlation_coefficient(directions, truth), 4),
        "f1": round(found.f1_score, 4),
        "precision": round(found.precision, 4),
        "recall": round(found.recall, 4),
        "l0": round(float((codes > 0).sum(1).float().mean()), 3),
        "fvu": round(float(unexplained_variance(x, reconstruction)), 4),
    }


def run(seed, arguments):
    from sae_lens import SAE

    hierarchy = not arguments.flat
    sizes = arguments.features, arguments.dimensions
    model, width = world(seed, *sizes, hierarchy=hierarchy), arguments.features // 4
    truth = model.feature_dict.feature_vectors.detach().numpy()
    x, _ = draw(model, arguments.samples, 1000)
    test = x_test, _ = tuple(draw(model, N_TEST, 2000))
    about = {"seed": seed, "hierarchy": hierarchy, "samples": arguments.samples}

    start, mean = time.process_time(), x.mean(0)

    def coded(method, learner, cpu, features=None):
        offset = 0 if np.ndim(learner.intercept_) else mean
        codes, directions = learner.transform(x_test - offset), learner.components_
        reconstruction = learner.inverse_transform(codes) + offset
        if features is not None:
            directions = features.directions
            codes = codes * ((x_test - offset) @ directions.T > features.thresholds)
        found = measured(directions, codes, reconstruction, truth, *test)
        return about | {"method": method, "cpu_seconds": round(cpu, 1)} | found

    rows = x - mean
    learner = PUDLEDictionaryLearning(width, positive_code=True, random_state=seed).fit(
        rows
    )
    yield coded("search", learner, time.process_time() - start)
    learner.choose_alpha(rows, criterion="support")
    cpu = time.process_time() - start
    yield coded("search, support", learner, cpu)
    features = feature_directions(learner, rows)
    yield coded("search, directions", learner, cpu, features)
    start = time.process_time() - cpu
    features = feature_directions(learner, rows, refine=True)
    cpu = time.process_time() - start
    kept = "kept" if features.learner is not learner else "not kept"
    yield coded("refined directions", features.learner, cpu, features) | {
        "second search": kept
    }

    for kind in arguments.saes:
        folder = (
            Path(arguments.folder) / f"{kind}-{'tree' if hierarchy else 'flat'}-{seed}"
        )
        stored = folder / "cpu_seconds.json"
        if not stored.exists():
            cpu = trained(kind, model, folder, width, arguments.shown, seed)
            stored.write_text(
                json.dumps({"cpu_seconds": cpu, "shown": arguments.shown})
            )
        facts = json.loads(stored.read_text())
        sae = SAE.load_from_disk(folder)
        with torch.no_grad():
            codes = sae.encode(torch.from_numpy(x_test))
            own = codes.numpy(), sae.decode(codes).numpy()
        found = measured(sae.W_dec.detach().numpy(), *own, truth, *test)
        facts["cpu_seconds"] = round(facts["cpu_seconds"], 1)
        yield about | {"method": kind} | facts | found
        start = time.process_time()
        learner = from_sae(sae.W_dec.detach(), x, bias=sae.b_dec.detach())
        cpu = facts["cpu_seconds"] + time.process_time() - start
        yield coded(f"{kind}, exact codes", learner, cpu) | {"shown": facts["shown"]}
        learner.choose_alpha(x, l0=found["l0"])
        yield coded(f"{kind}, as many exact codes", learner, cpu) | {
            "shown": facts["shown"]
        }


def main():
    given = parse(
        __doc__, "synthsae.json", choices={"saes": KINDS}, seeds=[0, 1, 2], samples=20_000,
        features=2048, dimensions=128, flat=False, saes=["batchtopk", "matryoshka"],
        shown=2_500_000, folder=str,
    )  # fmt: skip
    # which keeps trained autoencoders
    given.folder = given.folder or tempfile.mkdtemp()
    noise = np.random.default_rng(0).standard_normal((50, 5))
    PUDLEDictionaryLearning(6, positive_code=True).fit(noise)  # compiles
    sizes = {name: getattr(given, name) for name in ("features", "dimensions")}
    report = Report(given.out, "seed", "hierarchy", "samples", "method", **sizes)
    for seed in given.seeds:
        report.extend(run(seed, given))


if __name__ == "__main__":
    main()
