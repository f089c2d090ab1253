"""Several processes learn what one learns from the samples of all."""

import json
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch.distributed as dist

from skpudle import Checkpoint, ConvPUDLEDictionaryLearning, PUDLEDictionaryLearning, data_parallel
from skpudle._training.checkpoint import read_checkpoint
from skpudle._training.identity import check_same

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed"),
]

# Every process runs it: the settings of a learner, and its own share of the rows.
SCRIPT = textwrap.dedent(
    """
    import json, sys, warnings
    import numpy as np
    import torch.distributed as dist
    from skpudle import Checkpoint, PUDLEDictionaryLearning, data_parallel

    warnings.simplefilter("ignore")
    folder = sys.argv[1]
    cases = json.load(open(f"{folder}/cases.json"))
    X = np.load(f"{folder}/X.npy")

    class Given:
        def __init__(self, parts):
            self.parts = parts

        def __iter__(self):
            return iter(self.parts)

    with data_parallel() as team:
        group = dist.group.WORLD
        for name, parameters in cases.items():
            learner = PUDLEDictionaryLearning(**parameters)
            # the batches of all processes, one after the other, are those of the whole
            whole = np.split(X, range(32, len(X), 32))
            shares = [np.array_split(batch, team.size)[team.rank] for batch in whole]
            learner.fit(Given(shares))
            np.savez(
                f"{folder}/{name}-{team.rank}.npz",
                components=learner.components_, losses=learner.loss_curve_,
            )
        learner = PUDLEDictionaryLearning(
            8, gradient="ae-ls", n_unfoldings=5, batch_size=100, max_iter=3, tol=None,
            dict_init="data", random_state=0,
        )
        learner.fit(np.array_split(X, team.size)[team.rank])
        np.savez(
            f"{folder}/full-{team.rank}.npz",
            components=learner.components_, losses=learner.loss_curve_,
        )
        uneven = X[:20] if team.rank else X
        learner = PUDLEDictionaryLearning(8, gradient="dec", batch_size=16, max_iter=2, tol=None)
        learner.fit(uneven)  # of a seed that processes have to agree on
        np.savez(f"{folder}/uneven-{team.rank}.npz", components=learner.components_)
        weight, share = np.arange(len(X)) % 3, slice(team.rank, None, team.size)
        learner = PUDLEDictionaryLearning(**cases["adam"], alpha=0.3, batch_size=100)
        learner.fit(X[share], sample_weight=weight[share])
        searched = PUDLEDictionaryLearning(8, random_state=0).fit(uneven)
        searched.partial_fit(X[share], sample_weight=None if team.rank else weight[share])
        np.savez(
            f"{folder}/weights-{team.rank}.npz",
            components=learner.components_, searched=searched.components_,
        )
    # what names it here, and the argument
    np.savez(f"{folder}/group-{team.rank}.npz", kept=sys.getrefcount(group) - 2)
    del group
    """
)
ROWS = np.random.default_rng(0).normal(size=(96, 6))
FIXED = dict(n_unfoldings=5, max_iter=3, tol=None, dict_init=ROWS[:8].tolist(), random_state=0)
CASES = {
    "adam": FIXED,
    "surrogate": FIXED | dict(optimizer="surrogate"),
    "sgd": FIXED | dict(optimizer="sgd", gradient="dec", learning_rate=0.1),
    "unused": FIXED | dict(dict_init=ROWS[:30].tolist(), alpha=3.0),
}


class Given:
    def __init__(self, parts):
        self.parts = parts

    def __iter__(self):
        return iter(self.parts)


def torchrun(n_processes, script, *arguments):
    options = ["--standalone", f"--nproc-per-node={n_processes}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def X():
    return ROWS


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def several(request, tmp_path_factory, X):
    """Return what several processes learned, by case and process."""
    folder = tmp_path_factory.mktemp("several")
    (folder / "fit.py").write_text(SCRIPT)
    (folder / "cases.json").write_text(json.dumps(CASES))
    np.save(folder / "X.npy", X)
    run = torchrun(request.param, folder / "fit.py", folder)
    assert run.returncode == 0, run.stderr
    return lambda name: [np.load(folder / f"{name}-{n}.npz") for n in range(request.param)]


@pytest.mark.parametrize("name", CASES)
def test_several_processes_learn_what_one_learns(name, several, X):
    expected = PUDLEDictionaryLearning(**CASES[name]).fit(Given(np.split(X, [32, 64])))
    first, *others = several(name)
    for other in others:
        np.testing.assert_array_equal(first["components"], other["components"])
    np.testing.assert_allclose(first["components"], expected.components_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(first["losses"], expected.loss_curve_, rtol=1e-9)


def test_initial_atoms_and_alpha_come_from_all_samples(several, X):
    learner = PUDLEDictionaryLearning(
        8, gradient="ae-ls", n_unfoldings=5, batch_size=100, max_iter=3, tol=None,
        dict_init="data", random_state=0,
    )  # fmt: skip
    for found in several("full"):
        np.testing.assert_allclose(found["components"], learner.fit(X).components_, rtol=1e-7)


def test_shares_may_differ_in_size(several):
    first, *others = several("uneven")
    for other in others:
        np.testing.assert_array_equal(first["components"], other["components"])
    assert np.isfinite(first["components"]).all()


def test_weights_are_those_of_all_processes(several, X):
    learner = PUDLEDictionaryLearning(**FIXED, alpha=0.3, batch_size=100)
    expected = learner.fit(X, sample_weight=np.arange(len(X)) % 3).components_
    first, *others = several("weights")
    np.testing.assert_allclose(first["components"], expected, rtol=0, atol=1e-8)
    for other in others:
        np.testing.assert_array_equal(other["components"], first["components"])
        np.testing.assert_array_equal(other["searched"], first["searched"])


def test_nothing_keeps_the_group_that_was_left(several):
    # with its threads, which abort the process if Python ends before them
    assert [int(found["kept"]) for found in several("group")] == [0] * len(several("group"))


# Two processes that do not do the same, case by case: each stores its error, or its dictionary.
DISAGREEING = textwrap.dedent(
    """
    import json, os, sys, warnings
    import numpy as np
    import pandas as pd
    from skpudle import (
        Checkpoint, NOODLDictionaryLearning, PUDLEDictionaryLearning, data_parallel
    )

    warnings.simplefilter("ignore")
    folder = sys.argv[1]
    X = np.load(f"{folder}/X.npy")
    fixed = dict(n_components=8, n_unfoldings=3, max_iter=2, tol=None, batch_size=8)

    def learner(**parameters):
        return PUDLEDictionaryLearning(**dict(gradient="ae-ls") | fixed | parameters)

    def at(name, **options):
        return Checkpoint(f"{folder}/{name}.npz", **options)

    with data_parallel(timeout=120) as team:
        other = team.rank == 1
        X = X[team.rank :: 2]
        fitted, changed, chosen_alone = (learner().fit(X) for _ in range(3))

        def chosen(X, **options):
            one = PUDLEDictionaryLearning.from_components(np.eye(6) + 0.2, alpha=0.5)
            one = one.set_params(alpha="auto").choose_alpha(X, **options)
            one.components_ = np.array([one.alpha_, one.debias_])  # to be stored
            return one

        def frame(columns):
            return pd.DataFrame(X, columns=columns)

        gaps = X.copy()
        gaps[:: 3 - other, 2] = np.nan
        names = list("abcdef")
        if other:
            changed.components_ = changed.components_ + 1e-9
            chosen_alone.alpha_ = 2 * chosen_alone.alpha_
        cases = {
            "alpha": lambda: learner(alpha=0.1 + 0.2 * other).fit(X),
            "optimizer": lambda: learner(optimizer="sgd" if other else "adam").fit(X),
            "learning_rate": lambda: learner(learning_rate=0.01 * (1 + other)).fit(X),
            "dict_init": lambda: learner(dict_init=np.eye(8, 6) + 1 + other).fit(X),
            "tol": lambda: learner(tol=0.1 if other else None).fit(X),
            "n_components": lambda: learner(n_components=8 + other).fit(X),
            "batch_size": lambda: learner(batch_size=np.int64(8 + other)).fit(X),
            "dtype": lambda: learner().fit(X.astype(np.float32) if other else X),
            "n_features": lambda: learner().fit(X[:, other:]),
            "method": lambda: learner().partial_fit(X) if other else learner().fit(X),
            "n_steps_": lambda: (learner() if other else fitted).partial_fit(X),
            "components_": lambda: changed.partial_fit(X),
            "alpha_": lambda: chosen_alone.partial_fit(X),
            "class": lambda: (
                NOODLDictionaryLearning(**fixed).fit(X) if other else learner().fit(X)
            ),
            "checkpoint of the other alone": lambda: learner().set_callbacks(
                *[at("other")] * other
            ).fit(X),
            "no directory": lambda: learner().set_callbacks(at("missing/fit")).fit(X),
            "a damaged file": lambda: learner().set_callbacks(at("damaged")).fit(X),
            "own device": lambda: learner(
                device="cpu" if other else "auto", verbose=0, random_state=team.rank
            ).fit(X),
            "checkpoint of the first": lambda: learner(random_state=0).set_callbacks(
                *[at("first", every_seconds=0)] * (not other)
            ).fit(X),
            "it goes on": lambda: learner(max_iter=3, random_state=int(other)).set_callbacks(
                *[at("first")] * (not other)
            ).fit(X),
            "in one go": lambda: learner(max_iter=3, random_state=0).fit(X),
            "other data of one": lambda: learner(max_iter=3, random_state=0).set_callbacks(
                *[at("first")] * (not other)
            ).fit(X + other),
            "names": lambda: learner().fit(frame(names[:: 1 - 2 * other])),
            "many names": lambda: learner().fit(
                frame([f"a feature {i + other}" for i in range(6)])
            ),
            "names of one": lambda: learner().partial_fit(frame(names) if other else X),
            "l0": lambda: chosen(X, l0=2 + other),
            "chosen": lambda: chosen(X),
            "chosen, gaps": lambda: chosen(gaps if other else X),
            "chosen by l0": lambda: chosen(X, l0=2.0),
            "other seed of the first": lambda: learner(random_state=5).set_callbacks(
                *[at("first")] * (not other)
            ).fit(X),
        }
        found = {}
        for name, case in cases.items():
            try:
                found[name] = case().components_.tolist()
            except ValueError as error:
                found[name] = str(error)
        with open(f"{folder}/{team.rank}.json", "w") as file:
            json.dump(found, file)
    """
)


@pytest.fixture(scope="module")
def disagreement(tmp_path_factory, X):
    """Return what two processes found that did not do the same, by case."""
    folder = tmp_path_factory.mktemp("disagreement")
    (folder / "fit.py").write_text(DISAGREEING)
    (folder / "damaged.npz").write_text("text")
    np.save(folder / "X.npy", X)
    run = torchrun(2, folder / "fit.py", folder)
    assert run.returncode == 0, run.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


SAID = {
    "alpha": r"alpha: 0.1 on rank 0 but 0.3\d* on rank 1",
    "optimizer": "optimizer: 'adam' on rank 0 but 'sgd' on rank 1",
    "learning_rate": "learning_rate: 0.01 on rank 0 but 0.02 on rank 1",
    "dict_init": r"dict_init: \(8, 6\) \w+ on rank 0 but \(8, 6\) \w+ on rank 1",
    "tol": "tol: None on rank 0 but 0.1 on rank 1",
    "n_components": "n_components: 8 on rank 0 but 9 on rank 1",
    "batch_size": "batch_size: 8 on rank 0 but 9 on rank 1",
    "dtype": "dtype: float64 on rank 0 but float32 on rank 1",
    "n_features": "n_features: 6 on rank 0 but 5 on rank 1",
    "method": "method: fit on rank 0 but partial_fit on rank 1",
    "n_steps_": "n_steps_: 12 on rank 0 but None on rank 1",
    "components_": r"components_: \(8, 6\) \w+ on rank 0 but \(8, 6\) \w+ on rank 1",
    "alpha_": r"alpha_: (\S+) on rank 0 but (?!\1)\S+ on rank 1",
    "names": "feature_names_in_: a, b, c, d, e, f on rank 0 but f, e, d, c, b, a on rank 1",
    "many names": r"feature_names_in_: a feature 0, .* \.\.\. \w+ on rank 0 but .* on rank 1",
    "names of one": "feature_names_in_:  on rank 0 but a, b, c, d, e, f on rank 1",
    "l0": "l0: 2 on rank 0 but 3 on rank 1",
    "class": "class: PUDLEDictionaryLearning on rank 0 but NOODLDictionaryLearning on rank 1",
    "checkpoint of the other alone": "Checkpoint to the first of the processes",
    "no directory": "missing/fit.npz cannot be written.*Make its directory",
    "a damaged file": "damaged.npz is no whole checkpoint",
    "other data of one": r"belongs to another fit \(data: (.*); (.*), now \1; (?!\2)",
    "other seed of the first": r"belongs to another fit \(random_state: 0, now 5\)",
}


@pytest.mark.parametrize("case", SAID)
def test_processes_that_differ_all_say_so(case, disagreement):
    first, other = (found[case] for found in disagreement)
    assert first == other
    assert re.search(SAID[case], first)


def test_what_may_differ_does_not_matter(disagreement):
    first, other = disagreement
    for case in ("own device", "checkpoint of the first", "it goes on", "in one go"):
        np.testing.assert_array_equal(np.array(first[case], float), other[case])
    assert first["it goes on"] == first["in one go"]


def test_a_penalty_is_chosen_from_the_rows_of_all_processes(disagreement):
    gaps = np.concatenate([ROWS[::2], ROWS[1::2]])
    gaps[48::2, 2] = np.nan
    learner = PUDLEDictionaryLearning.from_components(np.eye(6) + 0.2, alpha=0.5)
    learner.set_params(alpha="auto")
    for case, options in {
        "chosen": dict(X=np.concatenate([ROWS[::2], ROWS[1::2]])),
        "chosen, gaps": dict(X=gaps),
        "chosen by l0": dict(X=np.concatenate([ROWS[::2], ROWS[1::2]]), l0=2.0),
    }.items():
        expected = learner.choose_alpha(**options)
        for found in disagreement:
            np.testing.assert_allclose(found[case], [expected.alpha_, expected.debias_])


@pytest.fixture
def alone(tmp_path):
    """Make a group of this process alone."""
    options = dict(init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    dist.init_process_group("gloo", **options)
    yield
    dist.destroy_process_group()


def test_another_number_of_processes_is_told_why_it_cannot_go_on():
    fit = {"learner": "A", "data": "B", "processes": 4}
    check_same(fit, fit, "fit.npz")
    with pytest.raises(ValueError, match="with 4 processes, and there are 2 now.*start 4, or"):
        check_same(fit, fit | {"processes": 2, "data": "C"}, "fit.npz")


def test_a_team_of_one_learns_the_same_bits(alone, X, tmp_path):
    learner = PUDLEDictionaryLearning(
        8, gradient="ae-ls", n_unfoldings=5, batch_size=16, max_iter=3, random_state=0
    )
    expected = learner.fit(X).components_
    path = tmp_path / "fit.npz"
    with data_parallel() as team:
        assert (team.rank, team.size) == (0, 1)
        learner.set_callbacks(Checkpoint(path, every_seconds=0)).fit(X)
        np.testing.assert_allclose(learner.components_, expected, rtol=1e-10, atol=1e-12)
        assert read_checkpoint(path)["identity"]["processes"] == 1
        again = learner.fit(X).components_
    np.testing.assert_array_equal(again, learner.components_)
    assert dist.is_initialized()  # what was there before stays there


def test_a_convolutional_learner_says_that_it_trains_alone(alone):
    with data_parallel(), pytest.raises(ValueError, match="one process.*outside of it"):
        ConvPUDLEDictionaryLearning(2, atom_shape=3, stride=1).fit(ROWS)


def test_processes_have_to_be_started_together(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(RuntimeError, match="Start the script by torchrun"), data_parallel():
        pass


@pytest.mark.slow
def test_the_death_of_a_process_ends_the_others_and_leaves_the_checkpoint(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            import numpy as np
            from skpudle import Checkpoint, PUDLEDictionaryLearning, data_parallel
            from skpudle._training.loop import Trainer

            update = Trainer._update

            def dies(self, batch):
                if self.n_steps == 57 and self.team.rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                return update(self, batch)

            Trainer._update = dies
            X = np.random.default_rng(0).normal(size=(96, 6))
            with data_parallel() as team:
                learner = PUDLEDictionaryLearning(
                    8, gradient="ae-ls", batch_size=4, max_iter=50, random_state=0
                )
                learner.set_callbacks(Checkpoint(sys.argv[1], every_seconds=0))
                learner.fit(X[team.rank :: team.size])
            """
        )
    )
    run = torchrun(2, script, tmp_path / "fit.npz")
    assert run.returncode != 0
    assert read_checkpoint(tmp_path / "fit.npz")["own"][0]["training"][0].n_updates == 48
