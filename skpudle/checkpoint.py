"""Checkpoints: the state of training on disk, so that a killed fit resumes where it stopped."""

from skpudle._training.archive import read_checkpoint, write_checkpoint
from skpudle._training.checkpoint import Checkpoint

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]
