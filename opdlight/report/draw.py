"""The style of the figures. Each is drawn once and saved as an SVG that follows the page's theme, and as a PNG."""

import html
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

INK, MUTED, GRID, STUDENT, TEACHER, GOOD, BAD = (
    "#1b2330", "#5a6677", "#e2e6ec", "#0a6ebd", "#c2571a", "#1a8566", "#b8326b",
)  # fmt: skip
RUNS = (STUDENT, "#d1690f", "#16876c", "#a3488f", "#7a6a00", "#4b5bd1")  # told apart by colour-blind readers too
STATUS = {
    "success": "#1c8a6b",
    "failure": "#8a93a1",
    "truncated_turns": "#e0a21b",
    "truncated_tokens": "#c9741f",
    "env_error": "#b3245e",
}
THEMED = {  # colour of the drawing → CSS variable of the page
    INK: "--ink", MUTED: "--muted", GRID: "--grid", STUDENT: "--student", TEACHER: "--teacher", GOOD: "--good",
    BAD: "--bad", "#d1690f": "--run-b", "#16876c": "--run-c", "#a3488f": "--run-d", "#7a6a00": "--run-e",
    "#4b5bd1": "--run-f", "#fefefe": "--card",
    STATUS["success"]: "--success", STATUS["failure"]: "--failure", STATUS["truncated_turns"]: "--truncated-turns",
    STATUS["truncated_tokens"]: "--truncated-tokens", STATUS["env_error"]: "--env-error",
}  # fmt: skip
COLOURS = ("#0a6ebd", "#16876c", "#e0a21b", "#a3488f", "#c9741f", "#4b5bd1", "#8a93a1", "#7a6a00")
HEAT = LinearSegmentedColormap.from_list("coverage", ["#5b1a5e", "#a32f5f", "#e0693f", "#f3b45c", "#f6e3b4"])
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.left": False,
    "ytick.minor.left": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.3,
    "legend.columnspacing": 1.2,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One figure of the page."""

    slug: str  # file name of the PNG, without the suffix
    title: str
    caption: str  # how to read the figure, and what is healthy
    svg: str
    png: bytes
    wide: bool = False


def canvas(width: float = 3.8, height: float = 2.5, **options: Any) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot(**options)


def legend(axis: Axes, columns: int = 4) -> None:
    """Draw a legend above the axes, if anything has a label."""
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        place: dict[str, Any] = {
            "loc": "lower left",
            "bbox_to_anchor": (-0.02, 1.0),
            "borderaxespad": 0.2,
            "handletextpad": 0.5,
        }
        for handle in axis.legend(handles, labels, ncols=columns, **place).legend_handles:
            if handle is not None:
                handle.set_alpha(1)


def arm_id(arm: int, kind: str) -> str:
    """The `gid` of an artist that the page gives the arm's colour; kind: "line" or "band"."""
    return f"arm-{arm}-{kind}"


def chart(
    slug: str, title: str, caption: str, figure: Figure, *, wide: bool = False, key: Callable[[], None] | None = None
) -> Chart:
    """Save the figure as SVG and PNG; `key` draws what only the PNG needs, because the page has it elsewhere."""
    slug = re.sub(r"[^a-z0-9]+", "-", slug.lower()).strip("-")
    with warnings.catch_warnings(), matplotlib.rc_context({**STYLE, "svg.hashsalt": slug}):
        warnings.filterwarnings("ignore", message="Glyph")  # a name with characters that the font of the PNG lacks
        vector, pixels = io.StringIO(), io.BytesIO()
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        if key is not None:
            key()
        figure.suptitle(title, fontweight="bold", fontsize=10)
        figure.savefig(pixels, format="png", dpi=200, facecolor="white")
    svg = _inline(vector.getvalue(), f"{title}. {caption}")
    return Chart(slug=slug, title=title, caption=caption, svg=svg, png=pixels.getvalue(), wide=wide)


def _inline(svg: str, label: str) -> str:
    """The SVG for use inside the page: themed colours, the page's font, no fixed size, no unused ids."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="arm-(\d+)-(\w+)"', r' data-arm="\1" class="\2"', svg)
    used = set(re.findall(r'#([\w-]+)[")]', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: m.group(0) if m.group(1) in used else "", svg)
    for colour, variable in THEMED.items():
        svg = svg.replace(colour, f"var({variable})")
    svg = re.sub(r"(font: [^;\"]*?\d(?:px)?) '[^;\"]*", r"\1 var(--font)", svg)
    head = f'<svg role="img" aria-label="{html.escape(label)}" '
    return (
        head
        + re.sub(r' (width|height)="[\d.]+pt"', "", svg[4 : svg.index(">")], count=2).strip()
        + svg[svg.index(">") :]
    )
