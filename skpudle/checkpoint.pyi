# Written by `make stubs` from signatures and docstrings: change those.
from os import PathLike
from typing import Any

import torch

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]

class Checkpoint:
    def __init__(
        self,
        path: str | str | PathLike[str],
        *,
        every_n_updates: int | None = None,
        every_seconds: float = 60.0,
        resume: bool = True,
    ) -> None: ...
    def on_fit_task_begin(self, estimator: Any, context: Any) -> None: ...
    def on_fit_task_end(self, estimator: Any, context: Any) -> None: ...
    def setup(self, estimator: Any, context: Any) -> None: ...
    def teardown(self, estimator: Any, context: Any) -> None: ...

def read_checkpoint(
    path: str | str | PathLike[str], device: str | torch.device = "cpu"
) -> dict[str, Any]: ...
def write_checkpoint(path: str | str | PathLike[str], state: dict[str, Any]) -> None: ...
