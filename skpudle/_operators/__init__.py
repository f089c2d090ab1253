r"""Dictionaries as trilinear forms.

A dictionary is the form ``<D z, x>``, linear in the atoms, in the codes ``z`` and in the data
``x``. An encoder, its adjoint and a gradient rule need only its three partial derivatives:

* ``synthesis(z)``, the derivative in ``x``: codes to data, ``D z``;
* ``analysis(x)``, the derivative in ``z``: data to correlations, ``D^T x``;
* ``outer(z, x)``, the derivative in the atoms, summed over samples.

`_atoms` has the dense dictionary, for rows of data, and functions of atoms of any shape. `_conv`
has convolutional dictionaries, for signals and images. Both kinds have their atoms along axis 0, so
code that treats atoms one by one (normalising, matching, resampling, plotting) is written once.
`_conv.ConvLayers`, a dictionary for each unfolding of an encoder, has its unfoldings along axis 0.
"""
