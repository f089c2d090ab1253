"""Check users' input and convert it to tensors; return results in the form of the input."""
