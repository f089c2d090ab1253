"""On a device that is simulated: the numbers of the CPU, no mixed devices, and few waits."""

import threading
from functools import partial
from math import ceil

import numpy as np
import pytest
import torch
from convergence import code_convergence
from simulated_device import DeviceTensor, simulated_gpu
from sklearn.base import clone
from torch.utils.data import DataLoader, TensorDataset

from skpudle import (
    Checkpoint,
    ConvDenoiser,
    NOODLDictionaryLearning,
    PUDLEDictionaryLearning,
)
from skpudle._operators._atoms import DenseDictionary
from skpudle._operators._conv import ConvDictionary
from skpudle._precision import own_precision
from skpudle._training.archive import check_search, pack, unpack
from skpudle.encoding import encode
from skpudle.encoding._unfold import unfold
from skpudle.images import denoise_patches, extract, reconstruct
from skpudle.lasso import solve_lasso, solve_nnls
from skpudle.lasso._implicit import converged_codes
from skpudle.omp import solve_omp
from skpudle.plotting import AtomsDisplay, CodesDisplay
from skpudle.search import Problem
from skpudle.search import _device_epoch as device_module
from skpudle.search import _search as search_module
from skpudle.search import _size as size_module
from skpudle.search._device_epoch import DeviceEpoch
from skpudle.search._epoch import Epoch
from skpudle.search._search import advance, begin

# On a device another path may be taken, whose sums are rounded otherwise.
TOLERANCE = dict(rtol=0, atol=1e-9)


@pytest.fixture
def gpu():
    with simulated_gpu() as simulated:
        yield simulated


def unit_atoms(generator, p, m, dtype=torch.float64):
    atoms = torch.randn(p, m, generator=generator, dtype=dtype)
    return torch.nn.functional.normalize(atoms, dim=1)


def to_host(value):
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else value


# ---------------------------------------------------------------------------- the simulation


def test_it_holds_real_values_and_says_where_it_is(gpu):
    x = gpu.put(torch.arange(6.0).view(2, 3))
    assert (x.device, x.is_cuda, x.shape) == (torch.device("cuda", 0), True, (2, 3))
    x[0] += 1
    assert float(x.mT.sum()) == 18
    assert isinstance(x.mT, DeviceTensor)
    assert x.cpu().tolist() == [[1, 2, 3], [3, 4, 5]]
    assert not isinstance(x.cpu(), DeviceTensor)
    assert torch.zeros(2, device="cuda").device == torch.tensor([1.0], device="cuda").device
    assert torch.ones(2).to("cuda").device == torch.ones(2).to(x).device == x.device


def test_it_differentiates_as_torch_does(gpu):
    x = torch.arange(3.0, requires_grad=True)
    (x.to("cuda").square() * gpu.put(torch.tensor([1.0, 2.0, 3.0]))).sum().backward()
    assert x.grad.tolist() == [0, 4, 12]


def mix(x):
    return x + torch.ones(3)


def draw(x):
    return torch.randn(3, device="cuda", generator=torch.Generator())


def index(x):
    return torch.ones(3)[x.long()]


@pytest.mark.parametrize(
    "operation",
    [mix, draw, index, torch.Tensor.numpy, np.asarray, lambda x: torch.cat([x, torch.ones(3)]),
     lambda x: torch.ones(3).add_(x), lambda x: torch.ones(3, 3) @ x],
)  # fmt: skip
def test_it_refuses_what_cuda_refuses(gpu, operation):
    with pytest.raises((RuntimeError, TypeError), match="same device|generator|mixes|numpy"):
        operation(gpu.put(torch.zeros(3)))


@pytest.mark.parametrize(
    ("operation", "n_waits"),
    [(torch.Tensor.item, 1), (bool, 1), (torch.nonzero, 1), (torch.Tensor.cpu, 1), (torch.neg, 0),
     (lambda x: x[x > 0], 1), (lambda x: x * torch.tensor(2.0), 0), (torch.clone, 0),
     (lambda x: torch.zeros(1).to("cuda"), 1), (lambda x: x.tolist(), 1),
     (lambda x: torch.zeros(1).pin_memory().to("cuda", non_blocking=True), 0)],
)  # fmt: skip
def test_it_counts_where_the_host_waits(gpu, operation, n_waits):
    x = gpu.put(torch.ones(1))
    gpu.reset()
    operation(x)
    assert gpu.n_waits == n_waits


def test_it_counts_launches_and_not_views(gpu):
    x = gpu.put(torch.ones(4))
    x.view(2, 2).mT.add_(1).mul_(2)
    assert gpu.launches == {"add_": 1, "mul_": 1}


def test_it_rounds_products_as_tf32_does(gpu):
    x = torch.full((1, 1), 1 + 2.0**-12)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert float(gpu.put(x) @ gpu.put(torch.ones(1, 1))) == 1
        with own_precision():
            assert float(gpu.put(x) @ gpu.put(torch.ones(1, 1))) == float(x)
    finally:
        torch.set_float32_matmul_precision(before)


# ---------------------------------------------------------------------------- learners

DENSE = {
    "search": dict(max_iter=2, gradient="ae-ls"),
    "ae-ls": dict(dict_init="data", n_unfoldings=20, optimizer="adam"),
    "hard": dict(dict_init="data", n_unfoldings=20, shrinkage="hard", alpha=0.3),
    "decay": dict(dict_init="svd", n_unfoldings=20, lambda_decay=0.95, step_size=0.1),
    "positive": dict(dict_init="data", n_unfoldings=10, positive_code=True, split_sign=False),
    "dec, surrogate": dict(dict_init="data", n_unfoldings=10, gradient="dec"),
    "ae-lasso, sgd": dict(dict_init="data", gradient="ae-lasso", optimizer="sgd"),
    "omp": dict(dict_init="data", n_unfoldings=5, transform_algorithm="omp"),
    "lasso": dict(dict_init="data", gradient="dec", n_unfoldings=None),
}


def make(options, device, **more):
    options = dict(max_iter=2, tol=None, batch_size=32, random_state=0) | options | more
    return PUDLEDictionaryLearning(16, device=device, **options)


@pytest.fixture
def X():
    return np.random.default_rng(0).standard_normal((48, 12))


@pytest.fixture
def device_epochs(monkeypatch):
    """Search on the CPU by the epochs of a GPU, and for few of them."""

    def epoch(problem, atoms, codes, *, refit=False, turn=None):
        return DeviceEpoch(problem, atoms, codes, refit=refit)

    monkeypatch.setattr(Problem, "epoch", epoch)
    monkeypatch.setattr(search_module, "_MAX_EPOCHS", dict.fromkeys(search_module._MAX_EPOCHS, 4))
    monkeypatch.setattr(search_module, "_MAX_ROUNDS", 1)


@pytest.mark.parametrize("options", DENSE.values(), ids=DENSE)
def test_a_learner_does_on_a_device_what_it_does_on_the_cpu(options, X, device_epochs):
    cpu = make(options, "cpu").fit(X)
    expected = cpu.components_, cpu.transform(X), cpu.score(X), cpu.partial_fit(X).components_
    with simulated_gpu() as gpu:
        for rows in (X, gpu.put(torch.from_numpy(X))):
            learner = make(options, "cuda" if rows is X else "auto").fit(rows)
            assert learner.device_ == "cuda:0"
            codes = learner.transform(rows)
            back = learner.inverse_transform(codes)
            if rows is not X:
                assert codes.device == back.device == rows.device
            np.testing.assert_allclose(to_host(codes) @ learner.components_, to_host(back))
            score = learner.score(rows) if rows is X else expected[2]
            found = learner.components_, to_host(codes), score
            found += (learner.partial_fit(rows).components_,)
            for got, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(got, wanted, **TOLERANCE)


def planted(n, m, p, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(n, p, generator=generator, dtype=torch.float64)
    x = (weights * (weights > 1 - 2 / p)) @ unit_atoms(generator, p, m)
    return (x + 0.01 * torch.randn(n, m, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize(
    "options",
    [dict(), dict(positive_code=True, positive_dict=True), dict(n_components="auto")],
    ids=str,
)
def test_a_default_fit_searches_on_the_device(options, device_epochs, monkeypatch):
    monkeypatch.setattr(size_module, "_GROWTH", 3.0)
    monkeypatch.setattr(size_module, "_SETTLE", 2)
    monkeypatch.setattr(size_module, "_ADAPT", 1)
    x = planted(48, 6, 4)
    x -= x.mean(0)  # no baseline, which is learned on the CPU
    if options.get("positive_code"):
        x[::7, 3] = torch.nan
    learner = PUDLEDictionaryLearning(**dict(n_components=4, random_state=0) | options)
    cpu = clone(learner).set_params(device="cpu").fit(x)
    expected = cpu.components_, cpu.transform(x), cpu.alpha_, cpu.partial_fit(x).components_
    with simulated_gpu() as gpu:
        rows = gpu.put(x)
        learner.fit(rows)
        assert learner.device_ == "cuda:0"
        codes = learner.transform(rows)
        assert codes.device == rows.device
        found = learner.components_, to_host(codes), learner.alpha_
        found += (learner.partial_fit(rows).components_,)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, **TOLERANCE)


def test_data_on_a_device_have_its_epochs(gpu):
    x = torch.ones(4, 3)
    assert isinstance(Problem(x, 0.1).epoch(x.double(), Problem(x, 0.1).no_codes()), Epoch)
    problem = Problem(gpu.put(x), 0.1)
    assert problem.x.device == gpu.put(x).device
    assert isinstance(problem.epoch(x.double(), problem.no_codes()), DeviceEpoch)


def test_a_search_on_a_device_goes_on_from_a_file(gpu):
    problem = Problem(gpu.put(planted(60, 8, 6, torch.float32)), 0.1)
    state = advance(problem, begin(problem, problem.x[:6]))
    resumed = unpack(pack(state), "file")
    check_search(resumed, problem, problem.x[:6])
    assert torch.equal(advance(problem, resumed).atoms, advance(problem, state).atoms)


def test_missing_values_on_a_device(X):
    X[np.random.default_rng(1).random(X.shape) < 0.2] = np.nan
    options = dict(dict_init="data", n_unfoldings=10)
    cpu = make(options, "cpu").fit(X)
    expected = cpu.components_, cpu.transform(X), cpu.score(X)
    with simulated_gpu() as gpu:
        for rows in (X, gpu.put(torch.from_numpy(X))):
            learner = make(options, "cuda").fit(rows)
            found = learner.components_, to_host(learner.transform(rows)), learner.score(rows)
            for got, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(got, wanted, **TOLERANCE)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_batches_from_a_loader_are_computed_on_the_device(where, X):
    options = dict(dict_init="data", n_unfoldings=10)

    def load(rows):
        return DataLoader(TensorDataset(rows), batch_size=32, generator=torch.Generator())

    expected = make(options, "cpu").fit(load(torch.from_numpy(X))).transform(X)
    with simulated_gpu() as gpu:
        rows = torch.from_numpy(X).to(where)
        learner = make(options, "auto").fit(load(rows))
        assert learner.device_ == "cuda:0"
        gpu.reset()
        codes = learner.transform(load(rows))
        assert gpu.launches["minimum"] > 0  # of the shrinkage
    np.testing.assert_allclose(codes, expected, **TOLERANCE)


def test_noodl_on_a_device(X, device_epochs):
    def fit(device):
        learner = NOODLDictionaryLearning(16, max_iter=2, batch_size=32, random_state=0, tol=None)
        return learner.set_params(device=device).fit(X)

    expected = fit("cpu")
    with simulated_gpu():
        found = fit("cuda")
    np.testing.assert_allclose(found.components_, expected.components_, **TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [dict(noise_std=0.0), dict(noise_std=(0.1, 0.5))],
    ids=["pairs", "range"],
)
def test_convolutions_on_a_device(options):
    images = np.random.default_rng(0).standard_normal((4, 12, 12))
    options = dict(max_iter=2, tol=None, random_state=0, n_unfoldings=5, crop_size=8) | options
    make_conv = partial(ConvDenoiser, 6, atom_shape=(4, 4), **options)
    cpu = make_conv(device="cpu").fit(images)
    expected = cpu.components_, cpu.transform(images), cpu.denoise(images)
    with simulated_gpu():
        learner = make_conv(device="cuda").fit(images)
        codes = learner.transform(images)
        found = learner.components_, codes, learner.denoise(images)
        learner.inverse_transform(codes)
        learner.partial_fit(images)
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, **TOLERANCE)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "surrogate", torch.optim.RMSprop])
def test_a_checkpoint_is_resumed_on_a_device_with_the_same_bits(optimizer, X, tmp_path):
    options = dict(dict_init="data", n_unfoldings=5, optimizer=optimizer, learning_rate=1e-3)
    path = tmp_path / "fit.npz"
    with simulated_gpu():
        whole = make(options, "cuda", max_iter=4).fit(X)
        make(options, "cuda", max_iter=2).set_callbacks(Checkpoint(path)).fit(X)
        resumed = make(options, "cuda", max_iter=4).set_callbacks(Checkpoint(path)).fit(X)
    np.testing.assert_array_equal(resumed.components_, whole.components_)
    # and on a machine without one
    make(options, "cpu", max_iter=5).set_callbacks(Checkpoint(path)).fit(X)


# ---------------------------------------------------------------------------- mathematics


@pytest.mark.parametrize("n_components", [10, 40])  # directly, and through the Gram matrix
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("shrinkage", ["soft", "hard"])
@pytest.mark.parametrize("step_size", [None, 0.1])
def test_codes_and_derivatives_are_those_of_the_cpu(
    n_components, positive, shrinkage, step_size, generator
):
    options = dict(alpha=0.2, n_unfoldings=12, lambda_decay=0.9, shrinkage=shrinkage)
    options |= dict(positive_code=positive, step_size=step_size)
    if step_size is not None:
        options["alpha"] = torch.full((n_components,), 0.2, dtype=torch.float64)
    tensors = unit_atoms(generator, n_components, 8), unit_atoms(generator, 9, 8)
    weight = torch.randn(9, n_components, generator=generator, dtype=torch.float64)

    def derivatives(place):
        leaves = [place(t).requires_grad_() for t in tensors]
        arguments = options
        if step_size is not None:
            leaves.append(place(options["alpha"]).requires_grad_())
            arguments = options | dict(alpha=leaves[-1])
        codes = encode(*leaves[:2], **arguments)
        loss = (codes * place(weight)).sum()
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return [t.cpu() for t in (codes.detach(), *gradients)]

    expected = derivatives(torch.clone)
    with simulated_gpu() as gpu:
        torch.testing.assert_close(derivatives(gpu.put), expected)


def test_working_sets_are_for_the_cpu(gpu):
    atoms, x, level, step = (gpu.put(torch.ones(shape)) for shape in ((3, 2), (1, 2), (1, 1), ()))
    with pytest.raises(ValueError, match="on the CPU"):
        unfold(DenseDictionary(atoms), x, level, step, path="active")


@pytest.mark.parametrize("positive", [False, True])
def test_solvers_on_a_device(positive, generator):
    atoms, x = unit_atoms(generator, 24, 10), 2 * unit_atoms(generator, 12, 10)
    solvers = [
        lambda atoms, x: solve_lasso(atoms, x, 0.1, positive=positive)[0],
        lambda atoms, x: solve_lasso(atoms, x, 0.1, positive=positive, mask=x > -0.5)[0],
        lambda atoms, x: solve_nnls(atoms, x, free=atoms[:, 0] > 0.5)[0] @ atoms,
        lambda atoms, x: solve_nnls(atoms, x, weights=x.abs() * positive + 1)[0] @ atoms,
        lambda atoms, x: solve_omp(atoms, x, n_nonzero_coefs=4, positive=positive),
        lambda atoms, x: solve_omp(atoms, x, tol=0.1, positive=positive),
    ]
    expected = [solve(atoms, x) for solve in solvers]
    with simulated_gpu() as gpu:
        found = [solve(gpu.put(atoms), gpu.put(x)).cpu() for solve in solvers]
    torch.testing.assert_close(found, expected)


def test_convolutional_dictionaries_on_a_device(generator):
    atoms = torch.randn(5, 2, 3, 3, generator=generator, dtype=torch.float64)
    images = torch.randn(3, 2, 9, 9, generator=generator, dtype=torch.float64)

    def derivative(place):
        leaf = place(atoms).requires_grad_()
        dictionary = ConvDictionary(leaf, 2)
        codes = encode(dictionary, place(images), alpha=0.5, n_unfoldings=6)
        loss = (dictionary.synthesis(codes) - place(images)).square().sum()
        return torch.autograd.grad(loss, leaf)[0].cpu()

    expected = derivative(torch.clone)
    with simulated_gpu() as gpu:
        torch.testing.assert_close(derivative(gpu.put), expected)


# ---------------------------------------------------------------------------- waits and launches


def counts(X, *, n_components, batch_size, **options):
    """Return waits and launches of an update, of those that are made over and over again."""

    def fit(max_iter):
        with simulated_gpu() as gpu:
            options_of_fit = dict(max_iter=max_iter, tol=None, random_state=0) | options
            learner = PUDLEDictionaryLearning(
                n_components, device="cuda", batch_size=batch_size, **options_of_fit
            ).fit(X)
            return learner.n_steps_, gpu.n_waits, gpu.n_launches

    (n, *first), (n_more, *second) = fit(1), fit(2)
    return [(b - a) / (n_more - n) for a, b in zip(first, second, strict=True)]


PATCHES = np.random.default_rng(0).standard_normal((2560, 64)).astype(np.float32)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "surrogate"])
def test_the_host_waits_once_a_round(optimizer):
    options = dict(dict_init="data", n_unfoldings=5, optimizer=optimizer)
    n_waits, _ = counts(PATCHES, n_components=32, batch_size=256, **options)
    assert n_waits == 0.1  # ten updates are a round


def test_an_update_takes_few_launches():
    options = dict(dict_init="data", n_unfoldings=100, optimizer="adam", gradient="ae-ls")
    _, n_launches = counts(PATCHES[:512], n_components=256, batch_size=256, **options)
    assert n_launches <= 2500


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_epoch_waits_once_for_a_block(dtype, generator, gpu, monkeypatch):
    """Each place of the longest support takes four launches in each of three sweeps."""
    x, atoms = planted(600, 16, 24, dtype), unit_atoms(generator, 24, 16)
    problem = Problem(gpu.put(x), 0.1)
    codes, n_blocks = problem.epoch(atoms, problem.no_codes()).codes, 3
    monkeypatch.setattr(device_module, "_ENTRIES", 200 * (codes.index.shape[1] + 8) * 16)

    def counted(function):  # -> result, waits, launches
        gpu.reset()
        result = function()
        return result, gpu.n_waits, gpu.n_launches

    epoch, n_waits, n_launches = counted(lambda: problem.epoch(atoms, codes))
    assert n_waits <= n_blocks + 3
    places = epoch.codes.index.shape[1]
    assert n_launches <= n_blocks * (97 + 12 * places) + 50
    _, n_waits, n_launches = counted(epoch.improved_atoms)
    assert n_waits == 1
    n_blocks_of_atoms = ceil(24 / int(12 * len(x) / epoch.n_entries))
    assert n_launches <= 2 * 11 * n_blocks_of_atoms + 3
    _, n_waits, _ = counted(lambda: epoch.common_directions(0))
    assert n_waits <= 3
    _, n_waits, _ = counted(epoch.costs)
    n_pairs = device_module._ENTRIES // ((places + 8) * 16)  # of a block, of an atom and a user
    assert n_waits <= ceil(24 * 32 / n_pairs) + 2
    _, n_waits, _ = counted(lambda: problem.epoch(atoms, codes, refit=True))
    assert n_waits <= 2 * n_blocks + 3


def test_the_host_waits_little_for_the_lasso(generator):
    atoms = unit_atoms(generator, 100, 64)
    weights = torch.rand(256, 100, generator=generator, dtype=torch.float64)
    x = (weights * (weights > 0.95)) @ atoms
    expected, _ = solve_lasso(atoms, x, 0.05)
    with simulated_gpu() as gpu:
        leaf, rows = gpu.put(atoms).requires_grad_(), gpu.put(x)
        gpu.reset()
        codes, _ = converged_codes(DenseDictionary(leaf), rows, alpha=0.05, certify=False)
        assert gpu.n_waits <= 5
        gpu.reset()
        codes.sum().backward()
        assert gpu.n_waits == 2
        torch.testing.assert_close(codes.detach().cpu(), expected)


@pytest.mark.parametrize("optimizer", [torch.optim.RMSprop, "adam"])
def test_steps_are_counted_where_they_were_after_a_pickle(optimizer, X):
    """A counter that the host reads in every step belongs on the host."""
    options = dict(dict_init="data", n_unfoldings=2, optimizer=optimizer)
    with simulated_gpu() as gpu:
        learner = make(options, "cuda", batch_size=8).fit(X)
        gpu.reset()
        learner.partial_fit(X)
        n_waits = gpu.n_waits
        gpu.reset()
        learner.partial_fit(np.concatenate([X, X]))  # one round more
        assert gpu.n_waits == n_waits + 1


# ---------------------------------------------------------------------------- precision


@pytest.fixture
def tf32():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("n_unfoldings", [20, None])
def test_tf32_changes_nothing(n_unfoldings, X, tf32):
    X = X.astype(np.float32)
    options = dict(dict_init="data", n_unfoldings=n_unfoldings, optimizer="adam")
    cpu = make(options, "cpu").fit(X)
    expected = cpu.components_, cpu.transform(X), cpu.score(X)
    with simulated_gpu() as gpu:
        learner = make(options, "cuda").fit(X)
        found = learner.components_, learner.transform(X), learner.score(X)
        leaf = gpu.put(torch.from_numpy(learner.components_)).requires_grad_()
        x = gpu.put(torch.from_numpy(X))
        codes = encode(leaf, x, alpha=0.2, n_unfoldings=20)
        gradient = torch.autograd.grad(codes.square().sum(), leaf)[0].cpu()
    assert torch.get_float32_matmul_precision() == "high"
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)
    host = torch.from_numpy(learner.components_).requires_grad_()
    codes = encode(host, torch.from_numpy(X), alpha=0.2, n_unfoldings=20)
    (expected,) = torch.autograd.grad(codes.square().sum(), host)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)


def test_products_stay_in_full_precision_until_the_last_thread_is_done(tf32):
    inside, leave = threading.Event(), threading.Event()

    def compute():
        with own_precision():
            inside.set()
            leave.wait()

    def precision():
        matmul = torch.backends.cuda.matmul
        return getattr(matmul, "fp32_precision", None) or matmul.allow_tf32

    reduced, other = precision(), threading.Thread(target=compute)
    with own_precision():
        full = precision()
        other.start()
        inside.wait()
    assert precision() == full != reduced
    leave.set()
    other.join()
    assert precision() == reduced


def test_atoms_arrive_on_a_device_in_the_dtype_of_the_data(X):
    """MPS has no float64."""
    atoms = unit_atoms(torch.Generator().manual_seed(0), 16, 12).numpy()
    options = dict(dict_init=atoms, n_unfoldings=3)
    with simulated_gpu(without=torch.float64):
        learner = make(options, "cuda", optimizer="adam", alpha=0.1)
        plan = learner._plan()
        data = learner._read(plan, X.astype(np.float32), None)
        assert learner._begin(plan, data, torch.Generator()).rows.dtype == torch.float32
        fitted = make(options, "cpu", optimizer="adam", alpha=0.1).fit(X).set_params(device="cuda")
        codes = fitted.transform(X.astype(np.float32))
        assert fitted.inverse_transform(codes).dtype == np.float32


# ---------------------------------------------------------------------------- what is made of data


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("n_unfoldings", [4, None])
def test_tensors_made_in_inference_mode_are_learned_from(place, n_unfoldings, X):
    options = dict(dict_init="data", n_unfoldings=n_unfoldings)
    expected = make(options, "cpu").fit(X).components_
    with simulated_gpu():
        with torch.inference_mode():
            rows = torch.from_numpy(X).to(place).clone()
        learner = make(options, "auto").fit(rows)
        np.testing.assert_allclose(learner.components_, expected, **TOLERANCE)
        leaf = torch.from_numpy(expected).to(place).requires_grad_()
        encode(leaf, rows, alpha=0.1, n_unfoldings=2).sum().backward()
        converged_codes(DenseDictionary(leaf), rows, alpha=0.1)[0].sum().backward()
        assert torch.isfinite(leaf.grad).all()


def test_images_stay_on_the_device(gpu):
    image = torch.rand(20, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    on_device = gpu.put(image)
    gpu.reset()
    patches = extract(on_device, (4, 4), stride=2)
    assert patches.device == on_device.device
    assert not [why for why, _ in gpu.waits if "copy" in why]
    back = reconstruct(patches, image.shape, (4, 4), stride=2)
    torch.testing.assert_close(back.cpu(), image)
    learner = make(dict(dict_init="data", n_unfoldings=3), "auto").fit(patches)
    denoised = denoise_patches(learner, on_device, (4, 4), stride=2)
    assert denoised.device == on_device.device


def test_displays_take_tensors_of_a_device(gpu):
    pytest.importorskip("matplotlib")
    atoms = torch.eye(4)
    np.testing.assert_array_equal(
        AtomsDisplay.from_atoms(gpu.put(atoms)).atoms, AtomsDisplay.from_atoms(atoms).atoms
    )
    CodesDisplay.from_codes(gpu.put(atoms))


@pytest.mark.parametrize("n_directions", [None, 2])
def test_convergence_of_codes_is_measured_on_a_device(n_directions, generator, gpu):
    atoms, x = unit_atoms(generator, 6, 4), unit_atoms(generator, 3, 4)
    measure = partial(
        code_convergence, alpha=0.1, n_unfoldings=20, n_directions=n_directions, random_state=0
    )
    expected, found = measure(x, atoms), measure(gpu.put(x), gpu.put(atoms))
    for name, values in expected.items():
        np.testing.assert_allclose(to_host(found[name]), values, **TOLERANCE, err_msg=name)
