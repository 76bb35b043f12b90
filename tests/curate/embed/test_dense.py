"""The dense encoder: one pass, each window's own part of it, the same from both runtimes, or one clear line."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate import embed
from curate.embed import dense
from curate.embed._base import Encoder, windows
from curate.embed.dense import DenseEncoder
from curate.errors import CurateError
from tests import fakes

SHAPES = [(64, 400), (64, 400, 3), (100, 100), (33, 17), (2, 3), (31, 257), (500, 700)]


def made(**options: Any) -> DenseEncoder:
    encoder = embed.build("dense", {"device": "cpu", **options})
    assert isinstance(encoder, DenseEncoder)
    return encoder


@pytest.fixture(scope="module")
def onnx() -> DenseEncoder:
    return made(runtime="onnx")


@pytest.fixture(scope="module")
def torch() -> DenseEncoder:
    return made(runtime="torch")


def drawn(shape: tuple[int, ...], seed: int = 0) -> Any:
    steel = fakes.steel(shape[1], shape[0], seed)
    steel = steel if steel.ndim == 2 else steel[..., 0]
    return steel if len(shape) == 2 else np.repeat(steel[..., None], 3, axis=2)


def vectors(encoder: Encoder, *images: Any) -> Any:
    """Of all windows of these images, prepared one by one and encoded at once, as `curate embed` does."""
    boxes = [windows(image.shape[1], image.shape[0], encoder.tile, encoder.overlap) for image in images]
    prepared = [part for image, rows in zip(images, boxes, strict=True) for part in _prepared(encoder, image, rows)]
    assert len(prepared) == sum(map(len, boxes))
    return encoder.encode(prepared)


def _prepared(encoder: Any, image: Any, boxes: Any) -> list[Any]:
    return list(encoder.prepare_image(image, boxes))


def test_both_runtimes_say_the_same(onnx: DenseEncoder, torch: DenseEncoder) -> None:
    images = [drawn(shape, seed) for seed, shape in enumerate((*SHAPES, SHAPES[0], SHAPES[0]))]
    ours, theirs = vectors(onnx, *images), vectors(torch, *images)
    assert ours.shape == theirs.shape == (len(ours), onnx.dim)
    assert np.allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    assert (ours * theirs).sum(axis=1).min() > 0.9999
    assert onnx.key == torch.key, "vectors of both may lie in one table"


def test_grey_and_colour_are_the_same_and_others_in_the_batch_do_not_matter(torch: DenseEncoder) -> None:
    grey, colour, other = drawn((64, 400)), drawn((64, 400, 3)), drawn((64, 400), 5)
    alone = vectors(torch, grey)
    assert np.allclose(vectors(torch, colour), alone, atol=1e-5)
    assert np.allclose(vectors(torch, other, grey)[len(alone) :], alone, atol=1e-5)


def test_a_window_is_its_own_part_of_the_image(onnx: DenseEncoder) -> None:
    """A spot changes the vectors of the windows that show it most, and those far away not at all."""
    clean = drawn((128, 1024))
    spotted = clean.copy()
    spotted[40:80, 900:940] = 255 - spotted[40:80, 900:940] // 2
    boxes = windows(1024, 128, 64, 0.0)
    before, after = (onnx.encode(onnx.prepare_image(image, boxes)) for image in (clean, spotted))
    change = 1 - (before * after).sum(axis=1)
    shows = [x < 940 and x + w > 900 and y < 80 and y + h > 40 for x, y, w, h in boxes.tolist()]
    far = [x + w < 500 for x, _, w, _ in boxes.tolist()]
    assert change[shows].min() > 20 * change[far].max()
    assert change[1:].argmax() + 1 in np.flatnonzero(shows)


def test_a_large_image_is_shrunk_with_its_windows(onnx: DenseEncoder) -> None:
    image = drawn((300, 600))
    small = made(runtime="onnx", pixels=300 * 600 // 4)
    assert small.key != onnx.key
    sized, scale = small._sized(image)
    assert (sized.shape, scale) == ((150, 300, 1), 0.5)
    assert len(vectors(small, image)) == len(vectors(onnx, image))


def test_what_only_encoding_needs_is_not_pickled(onnx: DenseEncoder) -> None:
    vectors(onnx, drawn((64, 64)))
    assert onnx.module is not None
    copy = pickle.loads(pickle.dumps(onnx))
    assert copy.module is None
    assert len(pickle.dumps(onnx)) < 5000


def test_where_the_written_network_is_not_it_is_made_again(onnx: DenseEncoder) -> None:
    assert Path(onnx.file).is_file()
    elsewhere = replace(pickle.loads(pickle.dumps(onnx)), file="/another/machine.onnx")
    assert np.allclose(vectors(elsewhere, drawn((64, 100))), vectors(onnx, drawn((64, 100))), atol=1e-6)


def test_the_network_is_exported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = made(runtime="onnx")
    assert Path(first.file).is_relative_to(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("curate.embed._maps.build", lambda *given: pytest.fail("made again"))
        again = made(runtime="onnx")
        assert (again.file, again.channels, again.dim, again.key) == (first.file, first.channels, first.dim, first.key)
        with pytest.raises(pytest.fail.Exception):
            made(runtime="onnx", coarse=8, fine=4)
    Path(first.file).write_bytes(b"cut off")
    expected = vectors(made(runtime="torch"), drawn((64, 100)))
    assert np.allclose(vectors(again, drawn((64, 100))), expected, atol=1e-3)
    assert not Path(first.file).exists(), "the next run writes it anew"
    left = Path(first.file).with_name(f".{Path(first.file).name}.999999999.part")
    left.touch()
    assert made(runtime="onnx").file == first.file
    assert not left.exists(), "what a killed export left goes"


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "curate").touch()  # a file in the folder's place: root may write anywhere else
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    encoder = made(runtime="onnx")
    assert not Path(encoder.file).is_relative_to(tmp_path)
    assert vectors(encoder, drawn((64, 100))).shape[1] == encoder.dim


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fine": 32, "coarse": 16}, "fine=32, coarse=16: not two strides of .*; allowed: 2, 4, 8, 16, 32"),
        ({"fine": 3}, "not two strides"),
        ({"model": "resnet18"}, "unknown model with weights from a package 'resnet18'; allowed: tf_eff"),
        ({"model": "tf_efficientnet_lite9"}, "from a package 'tf_efficientnet_lite9' .did you mean 'tf_eff"),
        ({"weights": "gone.pth"}, "no weights file at gone.pth"),
        ({"pixels": 100}, "pixels 100 is too small; allowed: 4096 or more"),
        ({"tile": 3}, "tile 3 is too small"),
    ],
)
def test_what_cannot_be_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CurateError, match=message):
        made(**options)


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    import timm
    from safetensors.torch import save_file

    file = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), str(file))
    assert made(model="resnet18", weights=str(file), runtime="torch").dim == 2 * (256 + 512)
    with pytest.raises(CurateError, match=r"resnet18\.safetensors does not fit timm's tf_efficientnet_lite0: it lacks"):
        made(weights=str(file))
    with pytest.raises(CurateError, match=r"no maps|does not fit|not two strides"):
        made(model="mixer_s32_224", weights=str(file))


def test_without_onnx_runtime_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "NEEDED", ("no_such_package",))
    assert not made().onnx
    with pytest.raises(CurateError, match=r"'onnx' lacks no_such_package\. Run: pip install 'steel-curate\[exp"):
        made(runtime="onnx")
