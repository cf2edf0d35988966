"""Writes a roofline into a file: SVG always, PNG where matplotlib is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path
from typing import Any

from ktd.bench.kernels.roofline import Roofline
from ktd.bench.kernels.roofline_svg import RooflineSvg
from ktd.errors import ConfigError


def check_plot(path: Path) -> None:
    """Refuses, before anything is measured, what could not be written after it.

    Raises:
        ConfigError: Another ending, no such folder, or a PNG without matplotlib.
    """
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"--plot {path} is neither .svg nor .png")
    check_folder(path, "--plot")
    if path.suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"--plot {path} needs matplotlib, which is not installed: use .svg")


def check_folder(path: Path, option: str) -> None:
    """Refuses a file whose folder is not there or cannot be written.

    Raises:
        ConfigError: In one sentence.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{option} {path} cannot be written")


def write_plot(roofline: Roofline, path: Path) -> None:
    """Draws into ``path``, which ``check_plot`` has seen."""
    if path.suffix == ".svg":
        path.write_text(RooflineSvg(roofline).text(), encoding="utf-8")
    else:
        _write_png(roofline, path)


def _write_png(roofline: Roofline, path: Path) -> None:
    figures: Any = importlib.import_module("matplotlib.figure")
    figure = figures.Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots()
    low, high = roofline.x_range
    for roof in roofline.roofs:
        at = [low, roof.ridge, high]
        axes.plot(at, [min(x * roof.bandwidth, roof.peak) / 1e12 for x in at], label=roof.name)
    for series in dict.fromkeys(point.series for point in roofline.points):
        chosen = [point for point in roofline.points if point.series == series]
        axes.scatter([p.x for p in chosen], [p.y / 1e12 for p in chosen], label=series)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations a byte",
        ylabel="TFLOP/s",
        title=roofline.title,
        xlim=roofline.x_range,
        ylim=[end / 1e12 for end in roofline.y_range],
    )
    axes.legend(fontsize="small")
    figure.savefig(path)
