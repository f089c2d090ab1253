"""Count the files and functions of the package that a reader of one call has to pass.

``python tools/count_calls.py`` prints a line for each call below: files, functions, and what the
call is. Compiled loops count as the one call that enters them. Comprehensions do not count, which
are frames in some versions of Python only. With ``--list`` it prints the names of the files too.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

import skpudle
from skpudle import (
    ConvPUDLEDictionaryLearning,
    PUDLEClassifier,
    PUDLEDictionaryLearning,
)

PACKAGE = Path(skpudle.__file__).parent


class Stream:
    """Rows in four batches, again and again."""

    def __init__(self, X):
        self.X = X

    def __iter__(self):
        return iter(np.array_split(self.X, 4))


def calls(X, folder):
    """Return by name what is counted; all of it on the same rows."""
    np.save(folder / "rows.npy", X)
    fitted = PUDLEDictionaryLearning(8, random_state=0).fit(X)
    training = dict(n_components=8, max_iter=2, tol=None, random_state=0)
    convolution = ConvPUDLEDictionaryLearning(
        3, atom_shape=(4, 4), stride=2, random_state=0
    )
    return {
        "default fit": lambda: PUDLEDictionaryLearning(8, random_state=0).fit(X),
        "transform": lambda: fitted.transform(X),
        "training": lambda: PUDLEDictionaryLearning(gradient="ae-ls", **training).fit(
            X
        ),
        "3 unfoldings": lambda: PUDLEDictionaryLearning(n_unfoldings=3, **training).fit(
            X
        ),
        "classifier": lambda: PUDLEClassifier(**training).fit(X, X[:, 0] > 0),
        "convolution": lambda: convolution.fit(X.reshape(-1, 8, 8)[:12]),
        "stream": lambda: PUDLEDictionaryLearning(8, random_state=0).fit(Stream(X)),
        "file": lambda: PUDLEDictionaryLearning(8, random_state=0).fit(
            np.load(folder / "rows.npy", mmap_mode="r")
        ),
    }


def passed_by(call):
    """Return the functions that a call passes when it is made again, with their files."""
    call()  # compiles, and whatever else comes once
    found = set()

    def note(frame, event, _):
        code = frame.f_code
        if event == "call" and not code.co_name.startswith("<"):
            found.add((code.co_filename, code.co_firstlineno))

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return {entry for entry in found if Path(entry[0]).is_relative_to(PACKAGE)}


def main():
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((400, 8)) * (rng.random((400, 8)) < 0.3)
    X = codes @ rng.standard_normal((8, 64)) + 0.01 * rng.standard_normal((400, 64))
    print("files  functions  call")
    with tempfile.TemporaryDirectory() as folder:
        for name, call in calls(X, Path(folder)).items():
            functions = passed_by(call)
            files = sorted({Path(file).relative_to(PACKAGE) for file, _ in functions})
            print(f"{len(files):5d}  {len(functions):9d}  {name}", flush=True)
            if "--list" in sys.argv:
                print(*(f"       {file}" for file in files), sep="\n")


if __name__ == "__main__":
    main()
