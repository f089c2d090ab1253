"""
Find the topics of texts
========================

Twelve spectra of words are the topics of a thousand docstrings.

A topic is a spectrum of words: how often each word comes up in a text on it. A text mixes topics,
so the expected number of each word is a sum, and `PoissonNMF` learns the topics from counts of
words. The texts here come with SciPy: the docstrings of its public functions and classes.
"""

import importlib

import matplotlib.pyplot as plt
import numpy as np
import scipy
from sklearn.feature_extraction.text import CountVectorizer

from skpudle import PoissonNMF

texts = {}
for part in ("fft", "integrate", "interpolate", "linalg", "ndimage", "optimize", "signal",
             "sparse", "spatial", "special", "stats"):  # fmt: skip
    module = importlib.import_module(f"scipy.{part}")
    for name in module.__all__:
        text = getattr(module, name).__doc__
        if text and len(text) > 500:
            texts[f"{part}.{name}"] = text
print(len(texts), "texts of SciPy", scipy.__version__)

# %%
# Words of four letters or more that at least five texts have, and at most three of ten. The counts
# are a sparse array, and stay sparse.

words = CountVectorizer(
    stop_words="english",
    min_df=5,
    max_df=0.3,
    token_pattern="[a-z]{4,}",
    dtype=np.float64,
)
X = words.fit_transform(texts.values())
print(X.shape, f"{X.nnz / np.prod(X.shape):.1%} of the counts are not zero")

# %%
# A topic for each part of SciPy, and one more. Words come in bursts, which Poisson's distribution
# does not know: ``dispersion_``, estimated from the residuals, is far above 0.

learner = PoissonNMF(12, random_state=0).fit(X)
print(f"dispersion {learner.dispersion_:.1f}")
names = words.get_feature_names_out()
for topic, atom in enumerate(learner.components_):
    print(topic, " ".join(names[np.argsort(-atom)[:8]]))

# %%
# Codes are numbers of words, so the shares of topics in a part of SciPy are sums of codes. Most
# parts have topics of their own, although the fit has not seen the names of parts.

events = learner.transform(X)
parts = np.array([name.partition(".")[0] for name in texts])
labels = sorted(set(parts))
shares = np.array([events[parts == part].sum(axis=0) for part in labels])
shares /= shares.sum(axis=1, keepdims=True)
order = np.argsort([shares[:, topic].argmax() for topic in range(12)])

figure, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
image = ax.imshow(shares[:, order], cmap="Greys", vmin=0, aspect="auto")
tops = [names[learner.components_[topic].argmax()] for topic in order]
ax.set_xticks(range(12), tops, rotation=45, ha="right")
ax.set_yticks(range(len(labels)), labels)
ax.set(xlabel="Topic, by its most frequent word", ylabel="Part of SciPy")
figure.colorbar(image, label="Share of the words")
plt.show()
