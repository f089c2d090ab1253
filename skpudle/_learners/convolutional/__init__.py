"""Convolutional learners: parameters, network, search, denoising."""
