"""Dictionaries that come with the package, ready to denoise."""

from skpudle._learners.convolutional.denoising import DenoiserModule
from skpudle.pretrained._denoisers import load_denoiser, save_denoiser

__all__ = ["DenoiserModule", "load_denoiser", "save_denoiser"]
