"""vlt, the Video-LLaMA toolkit: see into a model that watches and listens.

model = vlt.load()
clip = vlt.Clip("data/clips/two_bell.mp4")
print(model.answer(clip, "What do you see?"))
model.run({"clip": clip}, want=["video_prefix"])
"""

from vlt.errors import VltError
from vlt.explain.attribution import attribute
from vlt.explain.faithfulness import faithfulness
from vlt.inputs.clip import Clip
from vlt.model.load import load
from vlt.model.video_llama import VideoLlama
from vlt.panel.probe import Probe
from vlt.probe import edits
from vlt.probe.interaction import interaction
from vlt.probe.paths import path
from vlt.probe.sweep import sweep
from vlt.probe.trace import trace

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
