import pytest
import torch

from clipcovid.config import AugmentConfig, UserError
from clipcovid.data.augment import Augment

OFF = {"rotate": 0.0, "shift": 0.0, "scale": 0.0, "intensity": 0.0, "noise": 0.0}


def images(n=6, size=32, channels=None):
    shape = (n, size, size) if channels is None else (n, size, size, channels)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def dot(size=65, at=(32, 48)):
    image = torch.zeros(1, size, size, dtype=torch.uint8)
    image[0, at[0] - 1 : at[0] + 2, at[1] - 1 : at[1] + 2] = 255
    return image


def centre(image):
    """Where the brightness is, as (row, column)."""
    weights = image.float()
    places = torch.arange(len(image), dtype=torch.float32)
    return [float((weights.sum(dim=1 - axis) * places).sum() / weights.sum()) for axis in (0, 1)]


def test_everything_off_changes_nothing():
    given = images()
    assert Augment(AugmentConfig(**OFF), 0)(given, 0, range(6)) is given


@pytest.mark.parametrize("channels", [None, 3])
def test_an_image_is_changed_alike_in_any_batch(channels):
    augment, given = Augment(AugmentConfig(flip=True), 3), images(channels=channels)
    whole = augment(given, 2, range(6))
    assert whole.shape == given.shape
    assert whole.dtype == torch.float32
    assert (whole.min() >= 0, whole.max() <= 255) == (True, True)
    assert augment(given[[4, 1]], 2, [4, 1]).sub(whole[[4, 1]]).abs().max() < 1e-3
    for other in (augment(given, 3, range(6)), Augment(AugmentConfig(flip=True), 4)(given, 2, range(6))):
        assert (other - whole).abs().flatten(1).max(dim=1).values.min() > 1


@pytest.mark.parametrize(("field", "value"), [("rotate", 30.0), ("shift", 0.2), ("scale", 0.3)])
def test_moves_are_as_large_as_they_may_be_and_no_larger(field, value):
    augment = Augment(AugmentConfig(**(OFF | {field: value})), 0)
    moved = []
    for row in range(60):
        y, x = (place - 32 for place in centre(augment(dot(), 0, [row])[0]))
        if field == "rotate":
            moved.append(abs(torch.rad2deg(torch.atan2(torch.tensor(y), torch.tensor(x))).item()))
        elif field == "shift":
            moved.append(max(abs(y), abs(x - 16)) / 65)
        else:
            moved.append(abs((y**2 + x**2) ** 0.5 / 16 - 1))
    assert value * 0.8 < max(moved) < value * 1.05


def test_flipping_mirrors_about_half_and_only_when_asked():
    for flip in (True, False):
        augment = Augment(AugmentConfig(**(OFF | {"shift": 0.001}), flip=flip), 0)
        left = sum(centre(augment(dot(), 0, [row])[0])[1] < 32 for row in range(100))
        assert (30 < left < 70) if flip else left == 0


def test_intensity_keeps_the_order_of_grays_and_noise_its_size():
    ramp = torch.arange(0, 256, dtype=torch.uint8).repeat(256, 1).unsqueeze(0)
    changed = Augment(AugmentConfig(**(OFF | {"intensity": 0.3})), 0)(ramp, 0, [5])[0, 0]
    assert (changed.diff() >= 0).all()
    assert (changed - ramp[0, 0]).abs().max() > 5
    gray = torch.full((40, 64, 64), 128, dtype=torch.uint8)
    spread = Augment(AugmentConfig(**(OFF | {"noise": 0.05})), 0)(gray, 0, range(40)).flatten(1).std(dim=1) / 255
    assert 0.03 < spread.max() < 0.055
    assert spread.min() < 0.01


def test_the_noise_of_each_epoch_is_new():
    gray = torch.full((1, 32, 32), 128, dtype=torch.uint8)
    augment = Augment(AugmentConfig(**(OFF | {"noise": 0.1})), 0)
    grains = [(augment(gray, epoch, [3]) - 128).flatten() for epoch in range(4)]
    for first in range(4):
        for second in range(first):
            assert abs(torch.corrcoef(torch.stack([grains[first], grains[second]]))[0, 1]) < 0.2


def test_senseless_sizes_are_refused():
    for settings in ({"rotate": 180.0}, {"shift": 1.0}, {"noise": -0.1}):
        with pytest.raises(UserError, match="out of range"):
            AugmentConfig(**settings)
