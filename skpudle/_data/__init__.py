"""The boundary: what users pass in becomes tensors here, and results become what they want back."""
