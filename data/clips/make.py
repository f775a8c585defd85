"""Makes `shapes.mp4`: a red disc crosses a dark room from left to right, and a bell rings twice.

python data/clips/make.py
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SECONDS, FPS, SIDE, RATE = 4, 12, 128, 16_000


def picture(second: float) -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    room = np.stack([40 + y / 4, 50 + y / 4, 70 + x / 4], axis=-1)
    disc = (x - (16 + 96 * second / SECONDS)) ** 2 + (y - 70) ** 2 < 18**2
    room[disc] = (220, 40, 40)
    return room.astype(np.uint8)


def bell(strikes: tuple[float, ...] = (0.5, 2.5)) -> np.ndarray:
    time = np.arange(SECONDS * RATE) / RATE
    wave = np.zeros_like(time)
    for strike in strikes:
        since = np.clip(time - strike, 0, None)
        ring = sum(np.sin(2 * np.pi * 660 * ratio * since) / ratio for ratio in (1, 2.76, 5.4))
        wave += (time >= strike) * np.exp(-3 * since) * ring
    return (0.3 * wave).astype(np.float32)[None]


def main() -> None:
    with av.open(str(Path(__file__).with_name("shapes.mp4")), "w") as container:
        video, audio = container.add_stream("libx264", rate=FPS), container.add_stream("aac", rate=RATE, layout="mono")
        video.width = video.height = SIDE
        video.pix_fmt = "yuv420p"
        for i in range(SECONDS * FPS):
            frame = av.VideoFrame.from_ndarray(picture(i / FPS), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        sound = bell()
        for start in range(0, sound.shape[1], 1024):
            block = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound[:, start : start + 1024]), format="fltp", layout="mono"
            )
            block.sample_rate, block.pts, block.time_base = RATE, start, Fraction(1, RATE)
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))


if __name__ == "__main__":
    main()
