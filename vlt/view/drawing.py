"""What all figures share: a figure that says what it shows, colours and scales, words and ticks, and the checks of what
is to be drawn."""

from __future__ import annotations

import base64
import io
import math
import textwrap
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib import figure
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vlt.errors import VltError, write_whole
from vlt.probe.axes import Axis

WIDTH = 7.0  # inches: across both columns of a paper
SIZE, SMALL = 8, 7  # points
DPI = 150

# Okabe and Ito's colours, which colour-blind readers tell apart (without their yellow, too light on white); hatches say
# the same once more, for those who print in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "")

# Where each format keeps a description, and no date: the same figure gives the same file.
_DESCRIPTION: dict[str, tuple[tuple[str, ...], dict[str, None]]] = {
    "png": (("Description",), {}),
    "svg": (("Title", "Description"), {"Date": None}),
    "pdf": (("Subject",), {"CreationDate": None}),
}
# Publishers take TrueType (42), not Type 3, which is matplotlib's own choice.
_SAVING: Any = {"pdf.fonttype": 42, "svg.hashsalt": "vlt"}
_one_at_a_time = threading.Lock()  # matplotlib's settings are the process's


class Figure(figure.Figure):
    """A matplotlib figure that says in words what it shows (`alt`).

    Made without pyplot: no list of open figures holds it, and threads do not mix. A notebook draws it as the last value
    of a cell (of a bare figure, without pyplot, it would print the name).
    """

    def __init__(self, width: float, height: float, **options: Any) -> None:
        super().__init__(figsize=(width, height), dpi=DPI, **options)
        FigureCanvasAgg(self)
        self.alt = ""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=2 * DPI, metadata={"Description": self.alt})
        shown = {"image/png": base64.b64encode(out.getvalue()).decode(), "text/plain": self.alt}
        return shown, {"image/png": {"alt": self.alt, "width": round(100 * self.get_figwidth())}}


def save(figure: Figure, path: str | Path, dpi: int = 300) -> None:
    """Writes a figure as png, svg or pdf, by the file's ending, with its alt text inside: png "Description", svg title
    and description, pdf "Subject". dpi: pixels per inch, of a png. Raises `VltError` where that cannot be written."""
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    if kind not in _DESCRIPTION:
        raise VltError(
            f"{path}: a figure is saved as {', '.join(_DESCRIPTION)}, not as {path.suffix or 'a file without ending'}"
        )
    keys, rest = _DESCRIPTION[kind]
    out = io.BytesIO()
    with _one_at_a_time, matplotlib.rc_context(_SAVING):
        figure.savefig(out, format=kind, dpi=dpi, metadata=dict.fromkeys(keys, figure.alt) | rest)
    write_whole(path, out.getvalue())


# ---------------------------------------------------------------------- what is to be drawn


def heat_of(heat: Any, forms: Sequence[tuple[str, ...]], who: str) -> xr.DataArray:
    """The array in the first form (names of its axes) that fits; axes of length 1 that a form has not are dropped, and
    patches and frame tokens are unfolded. Raises `VltError`, in the name of `who`, where none fits."""
    wanted = " or ".join(f"[{', '.join(form)}]" for form in forms)
    if not isinstance(heat, xr.DataArray):
        of = "; give its .heat" if isinstance(getattr(heat, "heat", None), xr.DataArray) else ""
        raise VltError(f"{who} draws a labelled array (xarray.DataArray) {wanted}; this is a {type(heat).__name__}{of}")
    came = f"[{', '.join(f'{dim} {size}' for dim, size in heat.sizes.items())}]"
    named = {name for form in forms for name in form}
    heat = _unfolded(heat.squeeze([dim for dim in heat.dims if heat.sizes[dim] == 1 and dim not in named]), who)
    for form in forms:
        extra = [dim for dim in heat.dims if dim not in form]
        if set(form) <= set(heat.dims) and all(heat.sizes[dim] == 1 for dim in extra):
            return numbers(heat.squeeze(extra).transpose(*form), who)
    raise VltError(f"{who} draws {wanted}; this is {came}: choose or average over what is too much (.isel, .sum, .mean)")


def numbers(array: xr.DataArray, who: str) -> xr.DataArray:
    if not array.size or not np.issubdtype(array.dtype, np.number) or not np.isfinite(array.values).all():
        raise VltError(f"{who} draws finite numbers; this array {'is empty' if not array.size else 'holds others'}")
    return array


def _unfolded(heat: xr.DataArray, who: str) -> xr.DataArray:
    for dim in map(str, heat.dims):
        if dim.removesuffix("_seen") == "sound_patch":
            heat = _unfold(heat, dim, ("patch_row", "patch_column"), ("mel_row", "time_column"), who)
        elif dim.removesuffix("_seen") == "patch":
            heat = _unfold(heat, dim, ("patch_row", "patch_column"), ("patch_row", "patch_column"), who)
        elif dim == "frame_token":
            heat = _unfold(heat, dim, ("frame", "image_query"), ("frame", "image_query"), who)
    return heat


def _unfold(heat: xr.DataArray, dim: str, told: tuple[str, str], names: tuple[str, str], who: str) -> xr.DataArray:
    """One axis as two. Class tokens and extra keys (their row is -1) have no place on a grid."""
    found = [coordinate(heat, dim, name) for name in told]
    if found[0] is None or found[1] is None or set(names) & (set(heat.dims) - {dim}):
        return heat  # not of a kind that has places: said where the axes are compared
    first, second = found[0], found[1]
    there = first >= 0
    rows, columns = np.unique(first[there]), np.unique(second[there])
    whole = np.array_equal(first[there], np.repeat(rows, len(columns))) and np.array_equal(
        second[there], np.tile(columns, len(rows))
    )
    if not whole or not len(rows):
        raise VltError(f"{who} draws whole grids; this array has {int(there.sum())} of the places of its axis {dim!r}")
    others = [d for d in heat.dims if d != dim]
    values = heat.transpose(*others, dim).values[..., there]
    values = values.reshape(*values.shape[:-1], len(rows), len(columns))
    coords = {k: v for k, v in heat.coords.items() if dim not in v.dims}
    coords |= {names[0]: rows, names[1]: columns}
    return xr.DataArray(values, dims=[*others, *names], coords=coords, name=heat.name, attrs=heat.attrs)


def coordinate(array: xr.DataArray, dim: str, name: str) -> np.ndarray | None:
    """What is known of every place on an axis; on the second of two axes of one kind it has `_seen` behind its name."""
    for key in (name, f"{name}_seen"):
        if key in array.coords and array.coords[key].dims == (dim,):
            return array.coords[key].values
    return None


def places(heat: xr.DataArray, known: Axis, who: str) -> np.ndarray:
    """Which places of a run's axis an array is about: those that it names, or all. What it says of them must be so."""
    (dim,) = (d for d in map(str, heat.dims) if d.removesuffix("_seen") == known.name)
    found = np.arange(heat.sizes[dim])
    if dim in heat.coords:
        found = np.atleast_1d(heat.coords[dim].values).astype(int)
    elif heat.sizes[dim] != known.size:
        raise VltError(f"{who}: this array's {dim}s are not those of the run, which has {known.size}: is it of another run?")
    if found.min() < 0 or found.max() >= known.size:
        raise VltError(f"{who}: this array's {dim}s are not those of the run, which has {known.size}: is it of another run?")
    for name, values in known.coordinates.items():
        told = coordinate(heat, dim, name)
        if told is not None and not _same(told, values[found]):
            raise VltError(f"{who}: what this array says of its {dim}s ({name}) is not so in the run: is it of another run?")
    return found


def _same(told: np.ndarray, known: np.ndarray) -> bool:
    """Of any dtype: files keep numbers as they like."""
    if known.dtype.kind in "OU":
        return list(map(str, told)) == list(map(str, known))
    return np.allclose(told.astype(float), known.astype(float), rtol=1e-5, atol=1e-5, equal_nan=True)


def peak(heat: xr.DataArray) -> dict[str, int]:
    """Where it is greatest."""
    at = np.unravel_index(int(heat.values.argmax()), heat.shape)
    return {str(dim): int(i) for dim, i in zip(heat.dims, at, strict=True)}


def finding(heat: xr.DataArray, what: str, where: str) -> str:
    """The sentence that is said of heat. what: it is, and over what. where: it is greatest."""
    what = what[:1].upper() + what[1:]
    return f"{what}; most ({heat.values.max():.2g}) {where}." if heat.values.any() else f"{what}; 0 everywhere."


# ---------------------------------------------------------------------- scales and words


class Scale:
    """Colours for the numbers from low to high. extend: whether there are numbers beyond ("max", "both")."""

    def __init__(self, low: float, high: float, colours: str = "cividis", extend: str = "neither") -> None:
        self.low, self.high, self.extend = low, high, extend
        exponent = math.floor(math.log10(max(abs(low), abs(high)) or 1))
        self.power = 0 if -3 < exponent < 4 else exponent
        self.colours = ScalarMappable(Normalize(low, high), colours)

    @classmethod
    def of(cls, heat: np.ndarray, top: float | None = None) -> Scale:
        """From 0 up; with numbers below 0, as far to both sides. top: its end, by default that of the numbers."""
        if top is not None and not (math.isfinite(top) and top > 0):
            raise VltError(f"top is {top}; a scale ends at a number above 0")
        both, most = bool(heat.min() < 0), float(np.abs(heat).max())
        end = top or most or 1.0
        extend = "neither" if end >= most else "both" if both else "max"
        # purple and orange, unlike red and green, differ for every reader
        return cls(-end, end, "PuOr_r", extend) if both else cls(0.0, end, extend=extend)

    @property
    def style(self) -> dict[str, Any]:
        return {"norm": self.colours.norm, "cmap": self.colours.cmap}

    def ink(self, value: float) -> str:
        return ink(self.colours.to_rgba(np.asarray(value))[:3])

    def title(self, what: str) -> str:
        return f"{what} ({_ten(self.power)})" if self.power else what

    def number(self, value: float, _: Any = None) -> str:
        return f"{value / 10**self.power:.3g}".replace("-", "−")


def ink(colour: Any) -> str:
    """Black or white: what is read on this colour."""
    red, green, blue = to_rgb(colour)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _ten(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def colour_bar(figure: Any, scale: Scale, label: str, **where: Any) -> Any:
    """where: `cax`, its own axes; or `ax`, those that it stands beside."""
    bar = figure.colorbar(scale.colours, extend=scale.extend, ticks=MaxNLocator(4), format=FuncFormatter(scale.number), **where)
    inches = bar.ax.get_window_extent().height / figure.dpi
    text = folded(scale.title(label), inches)
    # there is no room beside the bar for a fourth line, and some above and below it
    text = folded(scale.title(label), 1.4 * inches) if text.count("\n") > 2 else text
    bar.set_label(text, fontsize=SMALL)
    bar.ax.tick_params(labelsize=SMALL, length=2, width=0.6)
    bar.outline.set_linewidth(0.6)
    return bar


NOTE = 0.2  # inches that a line of notes takes
WARNS = "⚠"


def height_of(note: str) -> float:
    """Inches that a note takes."""
    return NOTE * (note.count("\n") + 1) if note else 0.0


def noted(figure: Figure, note: str) -> Figure:
    """With lines of text at the lower edge; one that begins with ⚠ is a warning, in red, and comes first in the alt text."""
    if not note:
        return figure
    tall, room = figure.get_figheight(), height_of(note)
    if (engine := figure.get_layout_engine()) is not None:
        engine.set(rect=(0, room / tall, 1, 1 - room / tall))  # type: ignore[call-arg]
    for i, line in enumerate(note.split("\n")):
        look: dict[str, Any] = {"weight": "bold", "color": "#B00020"} if line.startswith(WARNS) else {"color": "0.25"}
        at = (0.06 / figure.get_figwidth(), (room - NOTE * i - 0.03) / tall)
        figure.text(*at, line, fontsize=SMALL, ha="left", va="top", parse_math=False, **look)
        figure.alt = f"Warning:{line.removeprefix(WARNS)} {figure.alt}" if line.startswith(WARNS) else f"{figure.alt} {line}"
    return figure


def shown(word: str, longest: int = 28) -> str:
    """A token as one can see it: white space and what cannot be printed as signs."""
    text = word.strip(" ") or ("␣" if word else "")
    text = "".join("⏎" if c == "\n" else c if c.isprintable() else "·" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def folded(text: str, inches: float) -> str:
    """A label on as many lines as keep it this long."""
    return textwrap.fill(text, max(int(inches / 0.065), 8), break_long_words=False)


def times(values: Iterable[float]) -> list[str]:
    """Seconds, to the tenth where that is exact, else to the hundredth."""
    values = [float(v) for v in values]
    digits = 1 if all(abs(v - round(v, 1)) < 1e-3 for v in values) else 2
    return [f"{v:.{digits}f}" for v in values]


def signed(value: float) -> str:
    text = f"{value:+.2f}".replace("-", "−")
    return "0.00" if text[1:] == "0.00" else text


def tidy(axes: Axes) -> Axes:
    """Small ticks, thin lines, no frame where nothing ends."""
    axes.tick_params(labelsize=SMALL, length=2, width=0.6)
    for side, spine in axes.spines.items():
        spine.set_linewidth(0.6)
        spine.set_visible(side in ("left", "bottom"))
    return axes


def bare(axes: Axes) -> Axes:
    """No ticks: what it shows has places, not numbers."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)
    return axes
