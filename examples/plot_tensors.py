"""
Use torch tensors and gradients
===============================

Tensors come out where tensors go in, and gradients go through.

A learner that is fed torch tensors computes on their device and returns tensors there, so codes go
on into a network without leaving the GPU. And the encoder itself is a torch function, to be trained
together with the layers after it.
"""

# %%
# The estimator
# -------------

import torch
from sklearn.datasets import load_digits

from skpudle import PUDLEDictionaryLearning
from skpudle.encoding import encode

device = "cuda" if torch.cuda.is_available() else "cpu"
digits, labels = load_digits(return_X_y=True)
x = torch.tensor(digits / 16, dtype=torch.float32, device=device)
y = torch.tensor(labels, device=device)
x = x - x.mean(dim=0)

learner = PUDLEDictionaryLearning(
    96,
    alpha=0.2,
    gradient="ae-ls",
    n_unfoldings=15,
    max_iter=10,
    tol=None,
    random_state=0,
)
codes = learner.fit_transform(x)
print(type(codes).__name__, codes.dtype, codes.device, tuple(codes.shape))

# %%
# After `fit` a learner stores NumPy arrays, so a pickle loads on a machine without a GPU.

print(
    type(learner.components_).__name__,
    learner.components_.dtype,
    "learned on",
    learner.device_,
)

# %%
# The encoder in a network of your own
# ------------------------------------
# The atoms, the penalty of each atom and a linear classifier are trained together, from the
# dictionary that was learned without labels. Gradients go through all fifteen unfoldings.

atoms = torch.nn.Parameter(torch.tensor(learner.components_, device=device))
log_alpha = torch.nn.Parameter(torch.full((96,), 0.2, device=device).log())
classifier = torch.nn.Linear(96, 10, device=device)
generator = torch.Generator().manual_seed(0)
optimizer = torch.optim.Adam([atoms, log_alpha, *classifier.parameters()], lr=5e-3)
train, test = torch.arange(len(x)) % 2 == 0, torch.arange(len(x)) % 2 == 1


def logits(x):
    z = encode(atoms, x, alpha=log_alpha.exp(), n_unfoldings=15)
    return classifier(z)


for _ in range(15):
    for batch in (
        train.nonzero().squeeze(1)[torch.randperm(899, generator=generator)].split(128)
    ):
        loss = torch.nn.functional.cross_entropy(logits(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
with torch.no_grad():
    accuracy = (logits(x[test]).argmax(1) == y[test]).float().mean()
print(f"{accuracy:.1%} of the digits of the other half are right")
