"""Dictionaries that come with the package, ready to denoise."""

from skpudle.pretrained._denoisers import load_denoiser, save_denoiser

__all__ = ["load_denoiser", "save_denoiser"]
