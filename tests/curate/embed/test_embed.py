"""Encoders: deterministic, keyed by what changes their vectors, of length 1; windows that cover every pixel."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curate import embed
from curate.embed import _base, _network
from curate.errors import CurateError
from tests import fakes

Images = np.ndarray[Any, np.dtype[np.uint8]]


# --- windows --------------------------------------------------------------------------------------------------------


@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    tile=st.one_of(st.integers(32, 400), st.sampled_from(["auto", "none"])),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
)
def test_windows_lie_inside_and_cover_every_pixel(width: int, height: int, tile: Any, overlap: float) -> None:
    boxes = _base.windows(width, height, tile, overlap)
    assert boxes[0].tolist() == [0, 0, width, height]
    seen = np.zeros((height, width), bool)
    for x, y, w, h in boxes[1:].tolist():
        assert x >= 0
        assert y >= 0
        assert w > 0
        assert h > 0
        assert x + w <= width
        assert y + h <= height
        seen[y : y + h, x : x + w] = True
    assert len(boxes) == 1 or seen.all()
    assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)


def test_neighbours_overlap_by_the_share_or_more() -> None:
    boxes = _base.windows(1600, 256, 256, 0.25)[1:]
    steps = np.diff(boxes[:, 0])
    assert len(boxes) == 8
    assert steps.max() <= 256 * 0.75 + 1


def test_auto_looks_closely_at_strips_and_stays_bounded() -> None:
    assert set(_base.windows(512, 128, "auto", 0.25)[1:, 2]) == {64}
    assert len(_base.windows(200, 200, "auto", 0.25)) == 1 + 4
    assert len(_base.windows(8000, 6000, "auto", 0.25)) < 100
    assert len(_base.windows(20, 20, "auto", 0.25)) == 1


# --- texture --------------------------------------------------------------------------------------------------------


def grained(kind: int, seed: int, size: int = 64) -> Images:
    """Six drawn surfaces that differ in the direction and the size of their grain, at random light."""
    random = np.random.default_rng([kind, seed])
    sigma = [(1, 1), (6, 1), (1, 6), (3, 3), (1.6, 1.6), (2.5, 1)][kind]
    grain = cv2.GaussianBlur(random.normal(0, 1, (size, size)), (0, 0), sigmaX=sigma[0], sigmaY=sigma[1])
    noisy = grain / grain.std() * random.uniform(3, 14) + random.normal(0, 2, (size, size))
    return np.clip(random.uniform(80, 170) + noisy, 0, 255).astype(np.uint8)


def vectors(encoder: Any, images: list[Images]) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any] = encoder.encode([encoder.prepare(image) for image in images])
    return result


def test_texture_is_deterministic_and_of_length_1() -> None:
    images = [grained(n, 0) for n in range(3)]
    first, second = vectors(embed.build("texture"), images), vectors(embed.build("texture"), images)
    assert (first == second).all()
    assert first.dtype == np.float32
    assert first.shape == (3, embed.build("texture").dim)
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)


def test_texture_does_not_depend_on_its_batch() -> None:
    images = [grained(n % 6, n) for n in range(7)]
    together = vectors(embed.build("texture"), images)
    apart = np.concatenate([vectors(embed.build("texture"), [image]) for image in images])
    assert (together == apart).all()


def test_texture_of_grey_as_colour_is_the_same() -> None:
    image = grained(1, 1)
    encoder = embed.build("texture")
    assert np.allclose(*vectors(encoder, [image, np.dstack([image] * 3)]), atol=1e-6)


def test_texture_of_a_window_is_the_same_in_any_company() -> None:
    image, encoder = fakes.steel(201, 97, 3), embed.build("texture")
    boxes = _base.windows(201, 97, "auto", 0.25)
    together = encoder.encode(_base.prepare_image(encoder, image, boxes))
    assert (together[0] == vectors(encoder, [image])[0]).all()
    apart = [encoder.encode(_base.prepare_image(encoder, image, boxes[n : n + 1]))[0] for n in range(len(boxes))]
    assert (together == np.array(apart)).all()


def test_texture_of_a_tile_is_near_that_of_the_tile_cut_out() -> None:
    image, encoder = fakes.steel(256, 128, 4), embed.build("texture")
    boxes = _base.windows(256, 128, "auto", 0.25)
    shared = encoder.encode(_base.prepare_image(encoder, image, boxes))
    cut = vectors(encoder, [np.ascontiguousarray(image[y : y + h, x : x + w]) for x, y, w, h in boxes.tolist()])
    assert np.median((shared * cut).sum(axis=1)) > 0.9


@pytest.mark.parametrize("name", ["LARGEST", "SHARED"])
def test_texture_of_images_beyond_the_limits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from curate.embed import texture

    image, encoder = fakes.steel(256, 128, 5), embed.build("texture")
    boxes = _base.windows(256, 128, "auto", 0.25)
    before = encoder.encode(_base.prepare_image(encoder, image, boxes))
    monkeypatch.setattr(texture, name, 64 * 64)
    after = encoder.encode(_base.prepare_image(encoder, image, boxes))
    assert (after[0] == vectors(encoder, [image])[0]).all()
    changed = (before != after).any(axis=1)
    # A whole image that is shrunk changes; one that is only computed alone does not, but its tiles do.
    assert (changed[0], changed[1:].any()) == ((True, False) if name == "LARGEST" else (False, True))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 40), (9, 9), (128, 512)])
@pytest.mark.parametrize("level", [0, 255])
def test_texture_of_odd_images_is_finite(shape: tuple[int, int], level: int) -> None:
    result = vectors(embed.build("texture"), [np.full(shape, level, np.uint8)])
    assert np.isfinite(result).all()


def test_texture_finds_a_spot_again_on_another_surface() -> None:
    """The purpose: a small bump is more similar to the same bump elsewhere than to the bare surface around it."""
    bare = [fakes.steel(64, 64, seed) for seed in range(20)]
    spots = []
    for seed in range(20, 40):
        surface, (x, y) = fakes.steel(64, 64, seed).astype(float), np.random.default_rng(seed).uniform(16, 48, 2)
        rows, columns = np.mgrid[:64, :64]
        bump = (columns - x) / 6 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 40)
        spots.append(np.clip(surface + 55 * bump, 0, 255).astype(np.uint8))
    encoder = embed.build("texture")
    exemplar, *others = vectors(encoder, [*spots, *bare])
    likeness = np.array(others) @ exemplar
    assert likeness[:19].mean() > likeness[19:].mean()
    assert (likeness[:19][:, None] > likeness[19:][None]).mean() > 0.9


def accuracy(encoder: Any) -> float:
    """Accuracy of a linear probe on the drawn surfaces, five labels a class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    kinds = np.repeat(np.arange(6), 25)
    result = vectors(encoder, [grained(int(kind), n) for n, kind in enumerate(kinds)])
    known = np.arange(len(kinds)) % 25 < 5
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500))
    return float(probe.fit(result[known], kinds[known]).score(result[~known], kinds[~known]))


@pytest.mark.exhaustive
def test_texture_beats_a_network_with_random_weights(random_weights: Path) -> None:
    network = embed.build("torchvision_file", {"weights": str(random_weights), "size": 64, "device": "cpu"})
    ours, theirs = accuracy(embed.build("texture")), accuracy(network)
    assert ours > theirs
    assert ours > 0.9


def test_texture_on_neu_det() -> None:
    """Random weights reach 0.755 here, ImageNet's 0.953 (20 labels a class)."""
    folder = fakes.real_data("neu_det") / "IMAGES"
    files = sorted(folder.glob("*.jpg"))[::6]
    images = [cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files]
    names = np.array([file.name.rpartition("_")[0] for file in files])
    result = vectors(embed.build("texture"), images)
    from sklearn.linear_model import LogisticRegression

    known = np.arange(len(files)) % 50 < 20
    scale = result[known].std(axis=0) + 1e-6
    probe = LogisticRegression(C=0.1, max_iter=500).fit(result[known] / scale, names[known])
    assert probe.score(result[~known] / scale, names[~known]) > 0.93


# --- keys, options, pickles -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from torchvision import models

    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(models.mobilenet_v2(weights=None).state_dict(), file)
    return file


def test_every_encoder_has_a_summary_and_tiles() -> None:
    assert set(embed.names()) == {"dense", "model", "pretrained", "texture", "timm", "torchvision_file"}
    for name in embed.names():
        assert embed.summary(name)
        assert {"tile", "overlap"} <= embed.options(name).keys()


def test_the_key_changes_with_every_option_that_changes_vectors(random_weights: Path, tmp_path: Path) -> None:
    assert len({embed.build("texture", o).key for o in ({}, {"tile": 96}, {"tile": "none"}, {"overlap": 0.5})}) == 4
    base = {"weights": str(random_weights), "size": 32}
    other = tmp_path / "other.pth"
    import torch
    from torchvision import models

    torch.save(models.mobilenet_v2(weights=None).state_dict(), other)
    changes: list[dict[str, Any]] = [{}, {"scale": "tf"}, {"size": 64}, {"tile": 64}, {"weights": str(other)}]
    changes.append({"bf16": True})
    assert len({embed.build("torchvision-file", base | change).key for change in changes}) == len(changes)
    same = embed.build("torchvision_file", base | {"device": "cpu"}).key
    assert same == embed.build("torchvision_file", base).key


def test_a_network_leaves_its_module_behind_when_pickled(random_weights: Path) -> None:
    encoder = embed.build("torchvision_file", {"weights": str(random_weights), "size": 32, "device": "cpu"})
    images = [grained(n, 0) for n in range(3)]
    before = vectors(encoder, images)
    packed = pickle.dumps(encoder)
    assert len(packed) < 5000
    assert np.allclose(before, vectors(pickle.loads(packed), images), atol=1e-6)
    assert before.shape == (3, 1280)


def test_a_network_does_not_depend_on_its_batch(random_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = embed.build("torchvision_file", {"weights": str(random_weights), "size": 32, "device": "cpu"})
    images = [grained(n % 6, n) for n in range(9)]
    together = vectors(encoder, images)
    monkeypatch.setattr(_network, "CHUNK", 2)
    assert np.allclose(together, vectors(encoder, images), atol=1e-4)


def test_timm_with_a_local_file(tmp_path: Path) -> None:
    import timm
    import torch

    file = tmp_path / "r.pth"
    torch.save(timm.create_model("resnet18", pretrained=False).state_dict(), file)
    encoder = embed.build("timm", {"model": "resnet18", "weights": str(file), "size": 64, "device": "cpu"})
    assert (encoder.name, encoder.dim) == ("timm-resnet18", 512)
    assert vectors(encoder, [grained(0, 0)]).shape == (1, 512)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, file)
    with pytest.raises(CurateError, match="does not fit timm's resnet18: it lacks"):
        embed.build("timm", {"model": "resnet18", "weights": str(file)})


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("pwned"),))


def test_weights_that_would_run_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "evil.pth"
    import torch

    torch.save({"x": Evil()}, file)
    with pytest.raises(CurateError, match="not a file of plain weights"):
        embed.build("torchvision_file", {"weights": str(file)})
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("textur", {}, "did you mean 'texture'"),
        ("texture", {"tiles": 3}, "did you mean 'tile'"),
        ("texture", {"tile": 3}, "too small; allowed: 32 pixels or more, auto, none"),
        ("texture", {"tile": "autos"}, "allowed: int or 'auto' or 'none'"),
        ("texture", {"overlap": 1.0}, "allowed: 0 to 0.9"),
        ("torchvision_file", {}, "--set weights=PATH"),
        ("torchvision_file", {"weights": "none.pth"}, "no weights file at none.pth"),
        ("torchvision_file", {"weights": "none.pth", "model": "mobilenet"}, "did you mean 'mobilenet_v"),
        ("timm", {"model": "resnet_18"}, "unknown timm model 'resnet_18'"),
        ("model", {}, "Train one first: curate train"),
    ],
)
def test_errors_name_the_remedy(name: str, given: dict[str, Any], text: str) -> None:
    with pytest.raises(CurateError) as raised:
        embed.build(name, given)
    assert text in str(raised.value)


def test_model_wraps_what_the_caller_hands_over() -> None:
    class Handle:
        key, dim = "k", 2

        def prepare(self, window: Images) -> Any:
            return np.array([window.mean(), 1.0])

        def encode(self, prepared: Any) -> Any:
            return np.stack(prepared)

    encoder = embed.build("model", {"tile": "none"}, handle=Handle())
    assert np.allclose(vectors(encoder, [np.full((4, 4), 1, np.uint8)]), 0.7071, atol=1e-4)
    assert encoder.key != embed.build("model", handle=Handle()).key
