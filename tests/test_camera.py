import math

import pytest
import torch

from pipeline import InputError
from pipeline.camera.geometry import (
    PRESETS,
    CameraPath,
    default_intrinsics,
    follow,
    invert_rigid,
    project,
    scale_intrinsics,
    static_path,
    transform,
    unproject,
)
from pipeline.world.cameras import preset_motion

DISTANCE = 3.0


def test_fov_spans_the_longer_side():
    for height, width in [(48, 80), (80, 48)]:
        K = default_intrinsics(height, width, 1, fov_degrees=90)[0]
        assert K[0, 0] == K[1, 1] == pytest.approx(40)
        assert (K[0, 2], K[1, 2]) == (width / 2, height / 2)


@pytest.mark.parametrize("fov", [0, 180, -3, math.nan, math.inf])
def test_fov_that_cannot_be(fov):
    with pytest.raises(InputError, match="field of view"):
        default_intrinsics(10, 10, 1, fov)


def test_unproject_then_project_returns_the_pixel_centres():
    torch.manual_seed(0)
    z = torch.rand(3, 12, 20) * 5 + 0.5
    K = default_intrinsics(12, 20, 3)
    K[:, 0, 1] = 0.3  # skew is allowed
    uv, z_again = project(unproject(z, K), K)
    assert torch.allclose(z_again, z)
    assert torch.allclose(uv[1, 4, 7], torch.tensor([7.5, 4.5]), atol=1e-4)
    assert torch.allclose(uv[2, 0, 0], torch.tensor([0.5, 0.5]), atol=1e-4)


def test_scaling_the_image_scales_the_projection():
    K = default_intrinsics(48, 80, 2)
    points = torch.tensor([0.2, -0.1, 2.0]).expand(2, 1, 1, 3)
    uv, _ = project(points, K)
    uv_small, _ = project(points, scale_intrinsics(K, (48, 80), (24, 20)))
    assert torch.allclose(uv_small, uv * torch.tensor([0.25, 0.5]), atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_rigid_and_starts_at_the_identity(name):
    motion = preset_motion(name, None, 9, DISTANCE)
    assert torch.equal(motion[0], torch.eye(4))
    assert torch.allclose(invert_rigid(motion) @ motion, torch.eye(4).expand(9, 4, 4), atol=1e-6)
    assert torch.equal(preset_motion(name, 0, 5, DISTANCE), torch.eye(4).expand(5, 4, 4))
    assert torch.allclose(preset_motion(name, None, 1, DISTANCE)[0], motion[-1])  # one frame shows the whole move


@pytest.mark.parametrize(
    "name, axis, sign", [("orbit-left", 0, -1), ("orbit-right", 0, 1), ("orbit-up", 1, -1), ("orbit-down", 1, 1)]
)
def test_orbits_go_the_named_way_and_look_at_the_subject(name, axis, sign):
    motion = preset_motion(name, 30, 7, DISTANCE)
    centre = motion[:, :3, 3]
    assert (sign * centre[1:, axis] > 0).all()
    assert centre[-1, axis].item() == pytest.approx(sign * DISTANCE * math.sin(math.radians(30)), abs=1e-5)
    subject = torch.tensor([0, 0, DISTANCE]).expand(7, 1, 1, 3)
    seen = transform(invert_rigid(motion), subject)
    assert torch.allclose(seen, subject, atol=1e-5)  # on the axis, at the same distance, in every frame


def test_orbit_is_linear_in_angle():
    motion = preset_motion("orbit-left", 40, 5, DISTANCE)
    step = invert_rigid(motion[:-1]) @ motion[1:]
    assert torch.allclose(step, step[:1].expand_as(step), atol=1e-6)


def test_dollies():
    forward = preset_motion("dolly-in", 50, 3, DISTANCE)
    assert torch.allclose(forward[:, :3, 3], torch.tensor([[0, 0, 0], [0, 0, 0.75], [0, 0, 1.5]]))
    assert preset_motion("dolly-out", 50, 3, DISTANCE)[-1, 2, 3] == -1.5


@pytest.mark.parametrize("amount", [math.nan, math.inf, -1, 1e9])
@pytest.mark.parametrize("name", ["orbit-up", "dolly-in"])
def test_amounts_out_of_range(name, amount):
    with pytest.raises(InputError, match=r"give (degrees|percent) from"):
        preset_motion(name, amount, 5, DISTANCE)


def test_other_bad_values():
    with pytest.raises(InputError, match="orbit-left"):
        preset_motion("barrel-roll", 10, 5, DISTANCE)
    for distance in (0, -1, math.nan, math.inf):
        with pytest.raises(InputError, match="distance"):
            preset_motion("orbit-left", 10, 5, distance)
    with pytest.raises(InputError, match="frames"):
        preset_motion("orbit-left", 10, 0, DISTANCE)


def test_follow_composes_with_a_moving_source():
    K = default_intrinsics(48, 80, 4)
    source = CameraPath(preset_motion("orbit-up", 10, 4, 2.0), K)
    motion = preset_motion("dolly-in", 20, 4, 2.0)
    target = follow(source, motion)
    assert torch.equal(target.world_from_cam[0], source.world_from_cam[0])
    assert torch.allclose(invert_rigid(source.world_from_cam) @ target.world_from_cam, motion, atol=1e-6)
    assert target.K is source.K
    assert torch.equal(follow(static_path(K), motion).world_from_cam, motion)
    with pytest.raises(ValueError, match="frames"):
        follow(source, motion[:2])
