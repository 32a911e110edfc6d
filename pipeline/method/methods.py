"""The methods: each takes what is known and tells the sampler. A new one is a file here and a row of `METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipeline.known.known import Known
from pipeline.method.guidance import Guidance
from pipeline.method.inversecrafter import inversecrafter
from pipeline.method.lavr import both, lavr
from pipeline.method.sampler import Step, sample
from pipeline.method.told import Told
from pipeline.prior.backbone import Backbone

Method = Callable[[Backbone, Known, Guidance], Told]

METHODS: dict[str, Method] = {"inversecrafter": inversecrafter, "lavr": lavr, "both": both}


def solve(backbone: Backbone, told: Told, *, fast: str = "off") -> Iterator[Step]:
    """Sample, one `Step` at a time; the z of the last one is the solution, for `Backbone.decode`.

    fast: of `Backbone.fast`. Nothing in it waits for the device, see `Backbone.velocity`: on a GPU a step is handed out
    before it is computed.
    """
    with backbone.fast(fast):
        yield from sample(told.velocity, told.z, told.sigmas, **told.hooks)
