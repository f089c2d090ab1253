"""The boundary: users' input becomes tensors here, and results take the form of the input."""
