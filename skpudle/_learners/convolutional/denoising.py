"""Denoise images of any size and noise: borders, grids and tiles, and a mix with the input."""

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn

from skpudle._data.arrays import to_tensor
from skpudle._data.images import cut_tiles, extend
from skpudle._data.noise import extent_of
from skpudle._learners.convolutional.model import all_shifts
from skpudle._learners.convolutional.values import ConvParameters

# pixels along an axis that are denoised at once, plus the overlap
_TILE = 768

# step of the derivative along a probe, in noise standard deviations
_STEP = 0.1

# Factor on the estimated share of the denoised image in a mix; the product is at most 1. For images
# as in training the estimate is about 0.95, so that the output is returned unchanged. The mix is
# better than the input up to twice the best share.
_IN_FAVOUR = 1.1

# three channels for a network of one: their mean, a grey image, and differences of equal noise; the
# rows are orthogonal
_OPPONENT = (
    (1 / 3, 1 / 3, 1 / 3),
    (2**-0.5, 0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)


def _round_up(n, stride, remainder):
    return n + (remainder - n) % stride


def _each(values, x):  # (n,) -> broadcast to images
    return values.reshape(-1, *[1] * (x.ndim - 1))


def _denoise_opponents(network, x, noise_std, **options):
    mixing = x.new_tensor(_OPPONENT)
    channels = torch.einsum("oc,nc...->on...", mixing, x)[:, :, None]
    if noise_std is None and network.follows_noise:
        extent = extent_of(channels[0])  # colour differences: texture of the image
        levels = [network.noise_of(channel.detach(), extent) for channel in channels]
    else:
        noise_std = network.noise_of(x) if noise_std is None else noise_std
        norms = mixing.norm(dim=1)[:, None]
        levels = [None] * len(mixing) if noise_std is None else noise_std * norms
    denoised = [
        denoise_images(network, channel, noise_std=level, **options)
        for channel, level in zip(channels, levels, strict=True)
    ]
    return torch.einsum("co,no...->nc...", torch.linalg.inv(mixing), torch.cat(denoised, 1))


def _on_grid(network, canvas, size, shift, room, noise_std, tile):  # -> (n, n_channels, *size)
    """Return the reconstruction from one grid of positions, tile by tile."""
    network = network.with_grid(shift, room)
    result = canvas.new_empty(*canvas.shape[:2], *size)
    axes = list(zip(canvas.shape[2:], network.kernel, network.stride, room, strict=True))
    for corner in product(*(cut_tiles(n, tile, s) for n, s in zip(size, network.stride))):
        cut, source, place = [], [], []
        for (start, stop), (total, k, s, r) in zip(corner, axes, strict=True):
            depth = network.encoder.n_unfoldings
            # converged codes depend on the whole image
            reach = _round_up(total if depth is None else depth * (k - 1), s, 0)
            first = max(0, start - reach)
            last = min(total, _round_up(stop + 2 * (k - 1) + reach, s, k + r))
            cut.append(slice(first, last))
            source.append(slice(start - first, stop - first))
            place.append(slice(start, stop))
        codes = network.encode(canvas[(..., *cut)], noise_std=noise_std)
        result[(..., *place)] = network.synthesis(codes)[(..., *source)]
    return result


def _reconstructions(network, x, noise_std, *, shifts, room, tile):  # yields one for each grid
    kernel, size = network.kernel, x.shape[2:]
    axes = zip(size, kernel, network.stride, room, strict=True)
    totals = [_round_up(n + 2 * (k - 1), s, k + r) for n, k, s, r in axes]
    before = [k - 1 for k in kernel]
    after = [total - n - b for total, n, b in zip(totals, size, before, strict=True)]
    canvas = extend(x, before, after)
    for shift in shifts:
        yield _on_grid(network, canvas, size, shift, room, noise_std, tile)


def _signs(like):  # (n, ...) -> (1, ...), 1 or -1 at random, the same for every image of a size
    generator = torch.Generator(device="cpu").manual_seed(0)
    bits = torch.randint(2, (1, *like.shape[1:]), generator=generator, device="cpu")
    return (2 * bits - 1).to(like)


def _share(images, denoised, deviation, probe, derivative):  # each (n, ...) -> (n,)
    r"""Return the share of the denoised image in the mix with the smallest estimated error.

    Denoising changes images ``y`` with noise ``n`` by ``d``. The error of ``y + w d`` is least at
    ``w = -<n, d> / |d|^2``. By Stein's identity the mean of ``-<n, d>`` is the sum of
    ``v_i (1 - df_i / dy_i)``, with ``v_i`` the variance of pixel ``i`` and ``f(y)`` the denoised
    image (C. M. Stein, Annals of Statistics 9, 1981). For photons, with variances equal to their
    counts, it holds up to second derivatives (J. C. Hudson, Annals of Statistics 6, 1978). A probe
    of random signs times deviations, and the derivative along it, estimate the sum of
    ``v_i df_i / dy_i``.
    """
    explained = (deviation.square() - probe * derivative).flatten(1).sum(1)
    change = (denoised - images).square().flatten(1).sum(1)
    # avoids a division by zero, which autograd turns into NaN
    share = _IN_FAVOUR * explained / torch.where(change > 0, change, 1.0)
    return torch.where(change > 0, share, 0.0).clamp(0, 1)


def denoise_images(network, x, *, noise_std=None, shift_average, tile=_TILE):
    """Denoise images, and keep their size.

    A network for one channel denoises three as their mean, which has the least noise, and two
    differences, which are mostly noise.

    Images are extended by reflection, so that border pixels are in the same number of atoms as
    inner pixels. An iteration carries information by less than an atom: tiles that overlap by one
    atom for every iteration give the result of the whole image up to rounding.

    The network's output is mixed with its input, by Stein's unbiased risk estimate, which costs
    one more pass of one grid.

    Parameters
    ----------
    network : ConvNetwork
        The network. Without ``noise``, or for none, its output is not mixed.
    x : Tensor of shape (n, n_channels, *size)
        Noisy images.
    noise_std : Tensor of shape (n,), default=None
        Their noise; by default estimated if thresholds follow it, and else the noise of training.
    shift_average : bool
        Whether to average over all grids of positions.
    tile : int, default=768
        Size of a tile, without its overlap.

    Returns
    -------
    Tensor of shape (n, n_channels, *size)
        Denoised images.
    """
    if x.shape[1] == len(_OPPONENT) > network.parameters.atoms.shape[1]:
        return _denoise_opponents(network, x, noise_std, shift_average=shift_average, tile=tile)
    room = tuple(s - 1 if shift_average else 0 for s in network.stride)
    shifts = all_shifts(network.stride) if shift_average else [(0,) * len(network.stride)]
    noise, options = network.noise, dict(room=room, tile=tile)
    if noise_std is None:
        noise_std = network.noise_of(x.detach())  # from the whole image, not per tile
    if noise_std is None or noise is None:
        parts = _reconstructions(network, x, noise_std, shifts=shifts, **options)
        return sum(parts) / len(shifts)
    unit = network.unit_of(x, noise_std)

    def images_of(parts):  # reconstructions of grids, in units of training -> images
        return noise.leave(sum(parts) / len(parts) * _each(unit, x))

    def reconstructed(x, shifts):
        args = network, x / _each(unit, x), noise_std / unit
        return list(_reconstructions(*args, shifts=shifts, **options))

    images = noise.leave(x)
    deviation = noise.deviation(images, noise_std)
    probe = _signs(images) * deviation
    parts = reconstructed(x, shifts)
    denoised, first = images_of(parts), images_of(parts[:1])
    beside = images_of(reconstructed(noise.enter(images + _STEP * probe), shifts[:1]))
    share = _share(images, denoised, deviation, probe, (beside - first) / _STEP)
    return noise.enter(images.lerp(denoised, _each(share, images)))


class DenoiserModule(nn.Module):
    """A denoiser as a module of torch: channels first, batches, and gradients in the images.

    `skpudle.ConvDenoiser.to_module` makes one. It returns the same images as
    `~skpudle.ConvDenoiser.denoise`. Its numbers are buffers, which ``to(device)``
    moves and no optimiser trains. ``module(x, sigma)`` is called as by libraries of inverse
    problems, such as deepinv.

    Parameters
    ----------
    network : ConvNetwork
        The network.
    shift_average : bool
        Whether to average over all grids of positions.

    Notes
    -----
    A plug-and-play loop that repeats the denoiser at one level of noise need not converge: the
    differential of the packaged denoisers has a spectral norm of 1.3 to 2.9 at a photograph, and
    convergence is certain up to 1 only. Lower ``sigma`` from iteration to iteration, from about
    50 / 255 to the noise of the data by equal factors, and end after 10 to 20 iterations, as
    `skpudle.images.inpaint` does and [1]_ recommends: ``deepinv.optim.DPIR(sigma,
    denoiser=module)``.

    References
    ----------
    .. [1] K. Zhang, Y. Li, W. Zuo, L. Zhang, L. Van Gool and R. Timofte, "Plug-and-play image
       restoration with deep denoiser prior", IEEE Transactions on Pattern Analysis and Machine
       Intelligence 44, 2022.

    Examples
    --------
    >>> import torch
    >>> from skpudle.pretrained import load_denoiser
    >>> module = load_denoiser("gaussian-small").to_module()
    >>> x = torch.rand(2, 3, 24, 24, requires_grad=True)
    >>> module(x, 0.1).square().sum().backward()
    >>> x.grad.shape
    torch.Size([2, 3, 24, 24])
    """

    def __init__(self, network, shift_average):
        super().__init__()
        for name, value in network.parameters._asdict().items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value.clone())
        self._network, self._shift_average = network, shift_average

    def forward(self, x, sigma=None):
        """Denoise images.

        Parameters
        ----------
        x : Tensor of shape (n, n_channels, height, width)
            Noisy images in float32 or float64.
        sigma : float or Tensor of shape () or (n,), default=None
            Standard deviation of the noise; by default estimated for each image.

        Returns
        -------
        Tensor of shape (n, n_channels, height, width)
            Denoised images, differentiable in ``x``.
        """
        own = {name: buffer.to(x) for name, buffer in self.named_buffers()}
        parameters = ConvParameters(**self._network.parameters._asdict() | own)
        network = replace(self._network, parameters=parameters)
        if sigma is not None:
            sigma = to_tensor(sigma, x.device, x.dtype).flatten().expand(len(x))
        return denoise_images(network, x, noise_std=sigma, shift_average=self._shift_average)
