r"""Dictionaries, dense and convolutional, as the encoders and the gradient rules use them.

A dictionary is the trilinear form ``<D z, x>``: an inner product that is linear in the atoms, in
the codes ``z`` and in the data ``x``. Encoders, their adjoints and gradient rules need only its
three partial derivatives, so a new kind of dictionary needs only these methods:

* ``synthesis(z)``, the derivative in ``x``: codes to data, ``D z``;
* ``analysis(x)``, the derivative in ``z``: data to correlations, ``D^T x``;
* ``outer(z, x)``, the derivative in the atoms, summed over samples.

`_atoms` has the dense dictionary, for rows of data, and functions of atoms of any shape. `_conv`
has convolutional dictionaries, for signals and images. In both kinds axis 0 counts the atoms, so
one function treats the atoms of both (norms, constraints, matching, plots). In `_conv.ConvLayers`,
which has a dictionary for each unfolding of an encoder, axis 0 counts the unfoldings.
"""
