"""Read and write sparse autoencoders as safetensors, which execute no code when they are read."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skpudle._data.arrays import to_numpy
from skpudle._data.files import named_errors, replace_file

# weights of autoencoders in a folder with "cfg.json": SAELens', sparsify's
_SAE_FILES = "sae_weights.safetensors", "sae.safetensors"
_DECODERS, _BIASES = ("W_dec", "decoder.weight"), ("b_dec", "decoder.bias")
# names of the factor of fine-tuned autoencoders of SAELens, by which latents are multiplied before
# they are decoded
_FACTORS = "finetuning_scaling_factor", "scaling_factor"
_FLOATS = "F16", "BF16", "F32", "F64"
# autoencoders whose decoder is one matrix; sparsify names none
_ARCHITECTURES = (
    "standard",
    "relu",
    "gated",
    "jumprelu",
    "topk",
    "batchtopk",
    "matryoshka_batchtopk",
    "matching_pursuit",
)


def _safetensors():
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ImportError(
            "Autoencoders are stored by safetensors, which is not installed. Install it with `pip "
            "install skpudle[safetensors]`."
        ) from error
    return safetensors


def save(learner: Any, folder: str | PathLike[str]) -> None:
    """Write an encoder of one unfolding as a sparse autoencoder in the layout of SAELens.

    Codes are ``relu(x @ W_enc + b_enc)``, and rows ``codes @ W_dec``. The folder gets ``cfg.json``
    and ``sae_weights.safetensors``, which ``sae_lens.SAE.load_from_disk`` reads.

    Parameters
    ----------
    learner : PUDLEDictionaryLearning
        Fitted with ``n_unfoldings=1``, and with ``positive_code`` or ``split_sign``.
    folder : str or path-like
        Folder to write to; it is made if it does not exist.

    Raises
    ------
    ValueError
        If the learner has another encoder, or the folder is a file.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skpudle import PUDLEDictionaryLearning, sae
    >>> options = dict(n_unfoldings=1, separate_atoms="unfolding", positive_code=True, max_iter=5)
    >>> learner = PUDLEDictionaryLearning(20, **options).fit(load_digits().data[:200])
    >>> sae.save(learner, "sae")  # doctest: +SKIP
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file. Pass the path of a folder, or of none yet.")
    module = learner.to_module()
    analysis, thresholds, atoms = (
        part.detach() for part in (module.analysis, module.thresholds, module.decoder)
    )
    signed = not (learner.positive_code or learner.split_sign)
    if len(thresholds) != 1 or learner.shrinkage != "soft" or signed:
        raise ValueError(
            "A sparse autoencoder has one unfolding and codes that are not negative, got "
            f"n_unfoldings={learner.n_unfoldings!r}, positive_code={learner.positive_code!r} and "
            f"split_sign={learner.split_sign!r}. Fit with n_unfoldings=1, "
            "separate_atoms='unfolding' and positive_code=True."
        )
    weights, biases, rows = analysis[0].mT, -thresholds[0], atoms
    if learner.split_sign:  # a feature for each sign; negative parts of positive codes are zero
        sign = 0 if learner.positive_code else 1
        weights = torch.cat([weights, -sign * weights], dim=1)
        biases, rows = torch.cat([biases, sign * biases]), torch.cat([rows, -rows])
    tensors = {"W_enc": weights, "b_enc": biases, "W_dec": rows, "b_dec": torch.zeros_like(rows[0])}
    arrays = {name: np.ascontiguousarray(to_numpy(value)) for name, value in tensors.items()}
    config = {
        "architecture": "standard",
        "d_in": rows.shape[1],
        "d_sae": len(rows),
        "dtype": str(rows.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {},
    }
    content = _safetensors().numpy.save(arrays)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "sae_weights.safetensors", content)
    replace_file(folder / "cfg.json", json.dumps(config).encode())


def _check_config(config):
    """Raise ValueError unless the decoder reconstructs the rows that are encoded, unscaled."""
    if not isinstance(config, dict):
        raise ValueError("cfg.json holds no dictionary")
    kind = str(config.get("architecture") or "standard").lower()
    if "transcoder" in kind or config.get("transcode") or config.get("skip_connection"):
        raise ValueError("it is a transcoder, whose decoder explains another layer than it reads")
    if kind == "temporal":
        raise ValueError("it is a temporal autoencoder, whose decoder explains a part of each row")
    if kind not in _ARCHITECTURES:
        raise ValueError(f"its architecture is {kind!r:.50}, expected one of {_ARCHITECTURES}")
    scaling = config.get("normalize_activations") or "none"
    if scaling != "none":
        raise ValueError(f"it scales rows before it codes them (normalize_activations={scaling!r})")
    factor = config.get("scaling_factor")
    if factor is not None and factor != 1:
        raise ValueError(f"it scales rows before it codes them (scaling_factor={factor!r:.50})")


def _read_first(names, file, expected=None):  # -> str, Tensor or None
    """Return the first of these arrays that a file has, in float32 or float64, and its name.

    The array has the expected shape, or is any matrix. The header is checked before the array is
    made: a shape with a zero has no bytes in the file.
    """
    name = next((name for name in names if name in set(file.keys())), "")
    if not name:
        return name, None
    stored = file.get_slice(name)
    shape = tuple(stored.get_shape())
    if 0 in shape or (len(shape) != 2 if expected is None else shape != expected):
        wanted = "(n_components, n_features)" if expected is None else expected
        raise ValueError(f"{name} has shape {shape}, expected {wanted}")
    if stored.get_dtype() not in _FLOATS:
        raise ValueError(f"{name} is of dtype {stored.get_dtype()}, expected one of {_FLOATS}")
    array = file.get_tensor(name)
    array = array if array.dtype == torch.float64 else array.float()
    if not array.isfinite().all():
        raise ValueError(f"{name} is not finite")
    return name, array


def _read_rows(file, config):  # -> rows (n_components, n_features), bias (n_features,)
    """Return the decoder in a file of safetensors, times factors of its latents."""
    n_features = config.get("d_in")
    name, rows = _read_first(_DECODERS, file)
    if rows is None:
        raise ValueError(f"it has no matrix {' or '.join(_DECODERS)}")
    if name == "decoder.weight":  # a layer of torch has atoms as columns
        rows = rows.mT
    if n_features not in (None, rows.shape[1]):
        raise ValueError(f"{name} is for {rows.shape[1]} features, and d_in is {n_features!r:.50}")
    _, bias = _read_first(_BIASES, file, tuple(rows.shape[1:]))
    _, factors = _read_first(_FACTORS, file, tuple(rows.shape[:1]))
    if factors is None and config.get("finetuning_scaling_factor"):
        raise ValueError("it scales its latents by a finetuning_scaling_factor, which it lacks")
    rows = rows if factors is None else factors[:, None] * rows
    return rows, rows.new_zeros(rows.shape[1]) if bias is None else bias


def _directions(rows):  # (n, n_features) -> (n, n_features)
    """Divide rows by their norms, whose squares may overflow or be zero; zero rows stay zero."""
    largest = rows.abs().amax(1, keepdim=True)
    directions = rows / largest.where(largest > 0, 1.0)
    lengths = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    return directions.div_(lengths.where(largest > 0, 1.0))


def read_decoder(folder):  # -> atoms (n_components, n_features), bias (n_features,)
    """Return the decoder of an autoencoder, rows of norm 1 or 0, and its bias; see `from_sae`."""
    folder, safetensors = Path(folder), _safetensors()
    if folder.name in _SAE_FILES and folder.is_file():
        folder, names = folder.parent, [folder.name]
    else:
        names = [name for name in _SAE_FILES if (folder / name).is_file()]
    if not names or not (folder / "cfg.json").is_file():
        raise FileNotFoundError(
            f"{folder} is no folder of an autoencoder: it lacks cfg.json, or {_SAE_FILES[0]} "
            f"(SAELens) and {_SAE_FILES[1]} (sparsify). Pass the folder of one autoencoder, with "
            "its weights as safetensors."
        )
    if len(names) > 1:
        raise ValueError(
            f"{folder} holds {' and '.join(names)}, weights of two autoencoders. Pass the path of "
            "one of these files."
        )
    advice = "Pass its decoder, as rows, to from_components, with data that it explains."
    with named_errors(folder, "autoencoder whose codes can be solved for", advice):
        config = json.loads((folder / "cfg.json").read_text("utf-8"))
        _check_config(config)
        with safetensors.safe_open(folder / names[0], framework="pt") as file:
            rows, bias = _read_rows(file, config)
    return to_numpy(_directions(rows)), to_numpy(bias)
