"""What `vlt.` offers."""

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
