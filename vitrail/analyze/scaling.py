"""What more patches cost: operations, memory and time against their number N (article 2.2: attention is O(N^2))."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import scipy.optimize
import torch

from vitrail import cost
from vitrail.analyze import canvas
from vitrail.analyze.finding import Array, Finding
from vitrail.config import Size, ViTConfig, parse_size, size_text
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.encoder import Encoder

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST, MOST = 5, 31
"""Rounds of timing that are needed and that are enough."""


@dataclass(frozen=True)
class Case:
    """One image size and patch size."""

    image_size: Size
    patch: Size
    """Pixels a token stands for."""
    patches: int
    """N"""
    tokens: int
    """N and the learned ones."""
    flops: int
    attention_share: float
    """Of the operations, those that grow with N^2: see ``cost.attention_flops``."""
    parameters: int
    inference_bytes: int
    training_bytes: int
    seconds: float
    """Median of a forward pass of one image; NaN: not measured."""
    low: float
    high: float
    """Quartiles."""


@dataclass(frozen=True)
class Growth:
    """a + b N + c N^2, none negative, fitted by relative least squares."""

    constant: float
    linear: float
    quadratic: float
    worst: float
    """Largest relative distance of a number from the fit."""
    slope: float
    """Of a line through all numbers, both axes logarithmic: the exponent overall."""
    first: float
    last: float
    """Exponents of the fit, d log / d log N, at the fewest and the most patches."""

    def __call__(self, patches: Array) -> Array:
        """The fit at these numbers of patches."""
        return self.constant + self.linear * patches + self.quadratic * patches**2

    @property
    def crossover(self) -> float:
        """Patches from which on the quadratic part is larger than the linear one; infinite if there is none."""
        return self.linear / self.quadratic if self.quadratic else math.inf


@dataclass(frozen=True)
class Scaling(Finding):
    """Costs by number of patches."""

    name: ClassVar[str] = "cost"
    cases: tuple[Case, ...]
    """From the fewest patches to the most."""
    left_out: tuple[str, ...]
    """Why a case was not timed, a sentence for each."""

    def growth(self, of: str) -> Growth | None:
        """Fit ``flops`` or ``seconds``; None for fewer than three numbers of patches."""
        known = [case for case in self.cases if math.isfinite(getattr(case, of))]
        patches = np.array([case.patches for case in known], float)
        if len(set(patches)) < 3:
            return None
        return fit(patches, np.array([getattr(case, of) for case in known], float))

    def table(self) -> dict[str, Array]:
        """A row for each case; sizes in pixels, memory in bytes of float32, time in seconds, NaN if not measured."""
        columns: dict[str, Array] = {}
        for name, sides in {"image_size": ("height", "width"), "patch": ("patch_height", "patch_width")}.items():
            for axis, side in enumerate(sides):
                columns[side] = np.array([getattr(case, name)[axis] for case in self.cases])
        for name in asdict(self.cases[0]):
            if name not in ("image_size", "patch"):
                columns[name] = np.array([getattr(case, name) for case in self.cases])
        return columns

    def summary(self) -> dict[str, Any]:
        """Exponents, fits and shares at both ends; null where there are too few numbers for a fit."""
        first, last = self.cases[0], self.cases[-1]
        return {
            "patches": [first.patches, last.patches],
            "attention_share": [first.attention_share, last.attention_share],
            "flops": _quoted(self.growth("flops")),
            "seconds": _quoted(self.growth("seconds")),
            "threads": torch.get_num_threads(),
            "left_out": list(self.left_out),
        }

    @canvas.styled
    def plot(self) -> Figure:
        """Time, where it was measured, and operations against patches, with the fits and their parts."""
        timed = any(math.isfinite(case.seconds) for case in self.cases)
        panels = {"seconds": ("Time of a forward pass", "milliseconds", 1e3)} if timed else {}
        panels["flops"] = ("Operations of a forward pass", "GFLOP", 1e-9)
        figure, axes = canvas.figure(1, len(panels), (3.7 * len(panels), 3.6), sharex=True)
        for place, (of, (title, unit, factor)) in zip(axes, panels.items(), strict=True):
            self._panel(place, of, factor)
            place.set(title=title, xlabel="patches N", ylabel=unit)
        figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
        return figure

    def _panel(self, axes: Axes, of: str, factor: float) -> None:
        known = [case for case in self.cases if math.isfinite(getattr(case, of))]
        heights = [getattr(case, of) * factor for case in known]
        axes.set(xscale="log", yscale="log", ylim=(min(heights) / 2, max(heights) * 2))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ticks: list[int] = []
        for case in self.cases:
            if not ticks or case.patches > 1.25 * ticks[-1]:  # nearer labels would touch
                ticks.append(case.patches)
        axes.set_xticks(ticks, [str(tick) for tick in ticks], rotation=45)
        axes.minorticks_off()
        growth = self.growth(of)
        if growth is not None:
            along = np.geomspace(known[0].patches, known[-1].patches, 100)
            axes.plot(along, growth(along) * factor, color=canvas.INK, linewidth=1.3, label="a + bN + cN²")
            for part, label, style in (
                (growth.linear * along, "bN (slope 1)", "--"),
                (growth.quadratic * along**2, "cN² (slope 2)", ":"),
            ):
                axes.plot(along, part * factor, color=canvas.SOFT, linewidth=1, linestyle=style, label=label)
        colours = dict(
            zip(dict.fromkeys(case.patch for case in self.cases), itertools.cycle(canvas.CYCLE), strict=False)
        )
        for patch, colour in colours.items():
            points = [(case.patches, y) for case, y in zip(known, heights, strict=True) if case.patch == patch]
            name = f"patches of {size_text(patch)}"
            axes.plot(*np.array(points).reshape(-1, 2).T, "o", color=colour, markersize=5, label=name)


def _quoted(growth: Growth | None) -> dict[str, float | None] | None:
    if growth is None:
        return None
    crossover = growth.crossover if math.isfinite(growth.crossover) else None
    return asdict(growth) | {"crossover": crossover}


def fit(patches: Array, values: Array) -> Growth:
    """a + b N + c N^2 with a, b, c >= 0 through (n,) positive values at (n,) numbers of patches, n >= 3.

    The relative differences are squared and summed, so that the smallest values count like the largest.
    """
    largest = patches.max()
    powers = (patches[:, None] / largest) ** np.arange(3)  # (n, 3), of like sizes
    found, _ = scipy.optimize.nnls(powers / values[:, None], np.ones(len(values)))
    constant, linear, quadratic = (float(number) for number in found / largest ** np.arange(3))
    ends = np.array([patches.min(), largest])
    rising = linear * ends + 2 * quadratic * ends**2
    first, last = rising / (constant + linear * ends + quadratic * ends**2)
    return Growth(
        constant,
        linear,
        quadratic,
        worst=float(np.abs(powers @ found / values - 1).max()),
        slope=float(np.polyfit(np.log(patches), np.log(values), 1)[0]),
        first=float(first),
        last=float(last),
    )


def scaling(
    config: ViTConfig,
    resolutions: Sequence[int | str | Size],
    patches: Sequence[int | str | Size] | None = None,
    measure: bool = True,
    budget_seconds: float = 60.0,
) -> Scaling:
    """Costs of a model at every resolution and, if given, every patch size.

    Operations follow a + b N + c N^2 exactly when either the patch size or the resolution stays the same; over
    both, the patch embedding, whose cost is that of the pixels, departs from it by a few per cent.

    Args:
        config: the model; its encoder stays, its patch and image size are replaced.
        patches: sizes in the units of ``config.patch``; None: its own alone.
        measure: time a forward pass of one image too: random weights, float32, the threads torch is set to. The
            cases take turns, in rounds, so that a busy moment of the machine does not fall on one of them.
        budget_seconds: for the timing; a case that would burst it is left out, and said to be.

    Raises:
        UserError: a resolution is no whole number of patches.
    """
    if not resolutions or (patches is not None and not patches):
        raise UserError("There is nothing to compare: give at least one resolution and one patch size.")
    sizes = dict.fromkeys(parse_size(resolution) for resolution in resolutions)
    cells = dict.fromkeys(parse_size(patch) for patch in patches) if patches is not None else [config.patch]
    configs = [replace(config, patch=patch, image_size=size) for size in sizes for patch in cells]
    configs.sort(key=lambda one: (one.grid[0] * one.grid[1], one.image_size, one.patch))
    seconds: list[list[float]] = [[] for _ in configs]
    left_out: list[str] = []
    if measure:
        seconds = timed(_passes(configs), [cost.flops(one) for one in configs], budget_seconds)
        left_out = [
            f"{size_text(one.image_size)} in patches of {size_text(one.cell)} would take longer than the "
            f"{budget_seconds:g} seconds set."
            for one, found in zip(configs, seconds, strict=True)
            if not found
        ]
    return Scaling(tuple(map(_case, configs, seconds)), tuple(left_out))


def timed(
    passes: Sequence[Callable[[], object]],
    work: Sequence[float],
    budget: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each pass in turn, round after round; an empty list for what the budget does not allow.

    Args:
        work: of each pass, in any unit: a pass that was not run yet is expected to take its share of the last one's
            seconds. The smallest comes first, and after one that is too long none is tried.
        budget: seconds for all of it.
    """

    def once(number: int) -> float:
        start = clock()
        passes[number]()
        return clock() - start

    def fits(each: float) -> bool:
        return clock() - begin + LEAST * (sum(taken.values()) + each) <= budget

    begin, taken, rate = clock(), dict[int, float](), 0.0
    for number in sorted(range(len(passes)), key=lambda number: work[number]):
        # What it is expected to take, then takes while it warms up, then takes.
        expected = rate * work[number]
        if not (fits(expected) and fits(once(number)) and fits(second := once(number))):
            break
        taken[number], rate = second, second / work[number]
    seconds: list[list[float]] = [[] for _ in passes]
    for turn in range(MOST if taken else 0):
        if turn >= LEAST and clock() - begin + sum(taken.values()) > budget:
            break
        for number in taken:
            seconds[number].append(once(number))
    return seconds


def _passes(configs: Sequence[ViTConfig]) -> list[Callable[[], object]]:
    passes: list[Callable[[], object]] = []
    encoder: Encoder | None = None
    for config in configs:
        model = build(config)
        encoder = encoder or model.encoder
        model.encoder = encoder  # knows no resolution: one serves all and saves their memory
        image = torch.randn(1, config.channels, *config.image_size, generator=torch.Generator().manual_seed(0))

        def run(model: Any = model, image: torch.Tensor = image) -> object:
            with torch.inference_mode():
                return model(image) if model.classifier is not None else model.features(image)

        passes.append(run)
    return passes


def _case(config: ViTConfig, seconds: Sequence[float]) -> Case:
    low, median, high = np.percentile(seconds, [25, 50, 75]).tolist() if seconds else [math.nan] * 3
    flops = cost.flops(config)
    return Case(
        image_size=config.image_size,
        patch=config.cell,
        patches=config.grid[0] * config.grid[1],
        tokens=config.sequence,
        flops=flops,
        attention_share=cost.attention_flops(config) / flops,
        parameters=cost.parameters(config),
        inference_bytes=cost.inference_bytes(config),
        training_bytes=cost.training_bytes(config),
        seconds=median,
        low=low,
        high=high,
    )
