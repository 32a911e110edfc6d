"""The methods: each takes what is known and tells the sampler. A new one is a file here and a row of `METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.known.known import Known
from pipeline.method.guidance import Guidance
from pipeline.method.inversecrafter import inversecrafter
from pipeline.method.lavr import both, lavr, recammaster
from pipeline.method.sampler import Step, sample
from pipeline.method.told import Told
from pipeline.prior.backbone import Backbone

Method = Callable[[Backbone, Known, Guidance], Told]

METHODS: dict[str, Method] = {
    "inversecrafter": inversecrafter,
    "lavr": lavr,
    "recammaster": recammaster,
    "both": both,
}
# One sentence each, for who chooses.
WORDS = {
    "inversecrafter": "InverseCrafter imposes what the new camera sees of the clip, by depth, at every step.",
    "lavr": "LaVR shows the model the clip, the camera path and latents of the scene, and uses no depth.",
    "recammaster": "ReCamMaster shows the model the clip and the camera path alone.",
    "both": "Both show the model the clip and the path, and impose what the new camera sees.",
}


def solve(backbone: Backbone, told: Told, *, fast: str = "off") -> Iterator[Step]:
    """Sample, one `Step` at a time; the z of the last one is the solution, for `Backbone.decode`.

    fast: of `Backbone.fast`. Nothing in it waits for the device, see `Backbone.velocity`: on a GPU a step is handed out
    before it is computed.
    """
    with backbone.fast(fast):
        yield from sample(told.velocity, told.z, told.sigmas, **told.hooks)
