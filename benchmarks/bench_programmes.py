"""Programmes of gene expression: a consensus of our fits, and consensus NMF.

Counts of 5000 cells and 2000 genes: nine programmes of cell types, and one of an activity that
three cells in ten share. Both methods get the counts, scaled by the cells' totals and the genes'
standard deviations. The cosine is between matched programmes, in units of the standard deviations.

cNMF runs where it is installed (``pip install cnmf``), with few replicates; its default is 100.

Usage: python benchmarks/bench_programmes.py [--replicates 10] [--cnmf-replicates 20]
"""

import tempfile
from pathlib import Path

import numpy as np
from common import Report, matched, parse, timed

from skpudle import ConsensusDictionary, PUDLEDictionaryLearning

N_CELLS, N_GENES, N_PROGRAMMES = 5000, 2000, 10


def draw(seed=0):
    """Return counts and programmes, of the genes that 20 cells express."""
    rng = np.random.default_rng(seed)
    programmes = np.tile(rng.gamma(0.6, 1, N_GENES), (N_PROGRAMMES, 1))
    for programme in programmes:
        marked = rng.random(N_GENES) < 0.05
        programme[marked] *= np.exp(rng.normal(2, 0.5, marked.sum()))
    programmes /= programmes.sum(1, keepdims=True)
    use = np.zeros((N_CELLS, N_PROGRAMMES))
    use[np.arange(N_CELLS), rng.integers(N_PROGRAMMES - 1, size=N_CELLS)] = 1
    active = rng.random(N_CELLS) < 0.3
    share = rng.uniform(0.1, 0.7, N_CELLS) * active
    use *= (1 - share)[:, None]
    use[:, -1] = share
    totals = rng.lognormal(7.6, 0.3, N_CELLS)
    counts = rng.poisson(totals[:, None] * (use @ programmes)).astype(np.float32)
    kept = (counts > 0).sum(0) >= 20
    return counts[:, kept], programmes[:, kept]


def ours(scaled, n_replicates):
    """Return the programmes of a consensus of our fits."""
    learner = PUDLEDictionaryLearning(
        N_PROGRAMMES, positive_code=True, positive_dict=True
    )
    return (
        ConsensusDictionary(learner, n_replicates, random_state=0)
        .fit(scaled)
        .components_
    )


def consensus_nmf(counts, n_replicates, folder):
    """Return the programmes of cNMF."""
    import pandas as pd
    from cnmf import cNMF, save_df_to_npz

    cells = [f"cell{i}" for i in range(len(counts))]
    genes = [f"gene{i}" for i in range(counts.shape[1])]
    file = str(Path(folder, "counts.df.npz"))
    save_df_to_npz(pd.DataFrame(counts, cells, genes), file)
    learner = cNMF(output_dir=str(folder), name="run")
    options = dict(components=[N_PROGRAMMES], n_iter=n_replicates, seed=0)
    learner.prepare(counts_fn=file, num_highvar_genes=len(genes), **options)
    learner.factorize()
    learner.combine()
    learner.consensus(N_PROGRAMMES, 0.5, show_clustering=False, build_ref=False)
    found = Path(folder, "run", f"run.spectra.k_{N_PROGRAMMES}.dt_0_5.consensus.txt")
    return pd.read_csv(found, sep="\t", index_col=0).values


def main():
    given = parse(__doc__, replicates=10, cnmf_replicates=20)
    counts, programmes = draw()
    totals = counts.sum(1, keepdims=True)
    scaled = counts / totals * np.median(totals)
    spread = scaled.std(0)
    scaled = (scaled / spread).astype(np.float32)
    report, n = Report(given.out, title="Programmes of genes"), given.cnmf_replicates
    with tempfile.TemporaryDirectory() as folder:
        for name, n_replicates, function, arguments in (
            ("skpudle", given.replicates, ours, (scaled, given.replicates)),
            ("cNMF", n, consensus_nmf, (counts, n, folder)),
        ):
            try:
                found, seconds = timed(function, *arguments)
            except ImportError as error:
                print(f"{name} does not run here: {error}")
                continue
            cosine = matched(found, programmes / spread)[1].mean()
            row = {"consensus": name, "replicates": n_replicates}
            report.add(row | {"cosine": cosine, "seconds": seconds})


if __name__ == "__main__":
    main()
