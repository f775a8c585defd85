"""What `vlt.` offers."""

from vlt.errors import VltError as VltError
from vlt.explain.attribution import attribute as attribute
from vlt.explain.faithfulness import faithfulness as faithfulness
from vlt.inputs.clip import Clip as Clip
from vlt.model.load import load as load
from vlt.model.video_llama import VideoLlama as VideoLlama
from vlt.panel.probe import Probe as Probe
from vlt.probe import edits as edits
from vlt.probe.interaction import interaction as interaction
from vlt.probe.paths import path as path
from vlt.probe.sweep import sweep as sweep
from vlt.probe.trace import trace as trace
