"""vlt, the Video-LLaMA toolkit: see into a model that watches and listens.

model = vlt.load()
clip = vlt.Clip("data/clips/two_bell.mp4")
print(model.answer(clip, "What do you see?"))
model.run({"clip": clip}, want=["video_prefix"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlt.api import (
        Clip,
        Probe,
        VideoLlama,
        VltError,
        attribute,
        edits,
        faithfulness,
        interaction,
        load,
        path,
        sweep,
        trace,
    )

__all__ = [
    "Clip",
    "Probe",
    "VideoLlama",
    "VltError",
    "attribute",
    "edits",
    "faithfulness",
    "interaction",
    "load",
    "path",
    "sweep",
    "trace",
]


def __getattr__(name: str) -> Any:
    """What vlt offers takes seconds to import, so that is left to the first who asks for any of it."""
    if not name.startswith("_"):
        api = importlib.import_module("vlt.api")
        globals().update({known: getattr(api, known) for known in __all__})
        if name in globals():  # its shelves too are there by now
            return globals()[name]
    raise AttributeError(f"module 'vlt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
