"""Writes the camera of a Blender scene as a file that Recapture opens: transforms.json, as nerfstudio has it.

    blender scene.blend --background --python docs/blender_camera.py -- camera.json

What the camera focuses on (an object, or the distance where depth of field is on) is taken for the subject.
"""

import json
import sys

import bpy  # Blender's own


def exported(scene) -> dict:
    """The scene's camera at each of its frames; pixels, and the scene's unit of length."""
    camera, lens, render = scene.camera, scene.camera.data, scene.render
    width, height = (
        round(side * render.resolution_percentage / 100) for side in (render.resolution_x, render.resolution_y)
    )
    frames, subject = [], None
    for number in range(scene.frame_start, scene.frame_end + 1, scene.frame_step):
        scene.frame_set(number)
        if lens.sensor_fit == "VERTICAL":
            focal = lens.lens / lens.sensor_height * height
        else:
            focal = lens.lens / lens.sensor_width * (width if lens.sensor_fit == "HORIZONTAL" else max(width, height))
        matrix = [[float(value) for value in row] for row in camera.matrix_world]
        if not frames:
            subject = _subject_distance(lens.dof, matrix)
        frames.append({"file_path": f"{number:05d}.png", "transform_matrix": matrix, "fl_x": focal, "fl_y": focal})
    shared = {"camera_model": "OPENCV", "w": width, "h": height, "cx": width / 2, "cy": height / 2}
    return shared | ({"subject_distance": subject} if subject else {}) | {"frames": frames}


def _subject_distance(focus, matrix) -> float | None:
    """Along the camera's axis (its own z points back) to what it focuses on; None where nothing says what that is."""
    if focus.focus_object is None:
        return float(focus.focus_distance) if focus.use_dof else None
    place = [float(row[3]) for row in focus.focus_object.matrix_world][:3]
    ahead = -sum((place[i] - matrix[i][3]) * matrix[i][2] for i in range(3))
    return ahead / sum(matrix[i][2] ** 2 for i in range(3)) ** 0.5 if ahead > 0 else None


if __name__ == "__main__":
    target = sys.argv[sys.argv.index("--") + 1] if "--" in sys.argv else "camera.json"
    with open(target, "w", encoding="utf-8") as file:
        json.dump(exported(bpy.context.scene), file, indent=1)
    print(f"Wrote {target}")
