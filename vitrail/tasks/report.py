"""A run folder in, ``report.html`` out: gathers the numbers, the pictures, and where the model looked."""

from __future__ import annotations

import base64
import io
from itertools import count
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vitrail.atomic import new_file
from vitrail.config import ViTConfig, size_text
from vitrail.cost import parameters
from vitrail.data.preprocess import load as load_picture
from vitrail.data.read import UnreadableImage, read_image
from vitrail.errors import UserError
from vitrail.model.encoder import Trace
from vitrail.model.vision import VisionTransformer
from vitrail.report.figures import RAMP
from vitrail.report.page import MOST_PICTURES, Album, Mistake, Photo, mistakes, pairs, render
from vitrail.report.run import Predicted, Run, read_run
from vitrail.report.terminal import Show
from vitrail.tasks.classifier import Classifier, load
from vitrail.tasks.pictures import as_shown

T = TypeVar("T")

SMALL = 192
"""Pixels of the longer side of a photo that has no attention over it."""
QUALITY = 72
"""Of JPEG: thumbnails that stand beside each other by the dozen."""


def write_report(folder: Path, show: Show) -> Path:
    """Write ``report.html`` into a run folder, in place of one that stands there, and return its path.

    What the run folder lacks, or what can no longer be read, is said on the page.

    Raises:
        UserError: it is no run folder, the disk is full, or the folder cannot be written.
    """
    run = read_run(folder)
    classifier, why_not = _classifier(run)
    wrong, doubtful, alike = mistakes(run)[:MOST_PICTURES], run.suspects[:MOST_PICTURES], pairs(run)[:MOST_PICTURES]
    total, done = len(wrong) + len(doubtful) + 2 * len(alike) + 1, count(1)
    with show.progress("Writing the report") as advance:

        def told(picture: T) -> T:
            advance(next(done), total)
            return picture

        album = Album(
            [told(_mistake(run, classifier, row, attending=not why_not)) for row in wrong],
            [(row, told(_thumbnail(run, row.path))) for row in doubtful],
            [(row, told(_thumbnail(run, row.path_a)), told(_thumbnail(run, row.path_b))) for row in alike],
            why_not,
        )
        page = told(render(run, album, "" if classifier is None else _described(classifier)))
    path = Path(folder) / "report.html"
    with new_file(path) as beside:
        beside.write_bytes(page.encode("utf-8", "replace"))  # half a surrogate pair has no place in UTF-8
    return path


def class_attention(classifier: Classifier, image: Tensor) -> np.ndarray:
    """(C, H, W) as preprocessed -> (h, w): how much the class token attends to each patch, mean over heads.

    Of the last layer (Dosovitskiy et al., arXiv 2010.11929, appendix D.8 has all layers rolled out; the last
    alone is what DINO shows, Caron et al., arXiv 2104.14294, figure 1).

    Raises:
        UserError: the model has no class token.
    """
    model = classifier.model
    if not isinstance(model, VisionTransformer) or "class" not in model.config.tokens:
        raise UserError("The model has no class token.")
    config = model.config
    seen: list[Tensor] = []
    trace = Trace(lambda kind, layer, weights: seen.append(weights), attention=[config.layers - 1])
    with torch.inference_mode():
        model.encode(image[None].to(classifier.predictor.device), 1, trace)
    row = seen[0][0, :, config.tokens.index("class"), len(config.tokens) :]  # (K, h w)
    return row.float().mean(dim=0).reshape(config.grid).cpu().numpy()


def overlay(picture: Image.Image, attention: np.ndarray) -> Image.Image:
    """The picture in grey under the colours of ``RAMP``, the stronger the more attention (h, w) there is."""
    strength = attention / max(float(attention.max()), 1e-12)
    smooth = Image.fromarray(strength.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    heat = np.clip(np.asarray(smooth), 0.0, 1.0)  # (H, W)
    at = np.linspace(0.0, 1.0, len(RAMP))
    colours = np.stack([np.interp(heat, at, channel) for channel in np.array(RAMP, np.float64).T], axis=-1)
    grey = np.asarray(picture.convert("L"), np.float64)[..., None]
    mixed = 0.42 * grey + 0.58 * colours
    return Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8))


def _classifier(run: Run) -> tuple[Classifier | None, str]:
    """The run's model, and why it can show no attention, if so."""
    try:
        classifier = load(run.folder, quiet=True)
    except UserError as error:
        return None, str(error)
    lacking = "class" not in classifier.card.architecture.tokens
    return classifier, "The model has no class token." if lacking else ""


def _described(classifier: Classifier) -> str:
    config = classifier.card.architecture
    if not isinstance(config, ViTConfig):
        return f"{config.summary}, {parameters(config) / 1e6:.1f} M parameters"
    encoder = config.encoder
    return (
        f"Vision Transformer, {encoder.layers} layers of width {encoder.width}, {encoder.heads} heads, "
        f"patches of {size_text(config.cell)} pixels, {parameters(config) / 1e6:.1f} M parameters"
    )


def _mistake(run: Run, classifier: Classifier | None, row: Predicted, attending: bool) -> Mistake:
    """A photo as the model was shown it, with attention beside it; the whole photo where there is no model."""
    if classifier is None:
        return Mistake(row, _thumbnail(run, row.path), None)
    how = classifier.card.preprocessing
    try:
        picture, image = as_shown(row.path, how), load_picture(row.path, how)
    except UnreadableImage as error:
        return Mistake(row, Photo(run.shown(row.path), reason=error.reason), None)
    photo = Photo(run.shown(row.path), jpeg_uri(picture))
    if not attending:
        return Mistake(row, photo, None)
    over = overlay(picture, class_attention(classifier, image))
    return Mistake(row, photo, Photo(photo.path, jpeg_uri(over)))


def _thumbnail(run: Run, path: str) -> Photo:
    try:
        image = read_image(path)
    except UnreadableImage as error:
        return Photo(run.shown(path), reason=error.reason)
    image.thumbnail((SMALL, SMALL), Image.Resampling.LANCZOS)
    return Photo(run.shown(path), jpeg_uri(image))


def jpeg_uri(image: Image.Image) -> str:
    """``data:image/jpeg;base64,...``"""
    held = io.BytesIO()
    image.save(held, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode("ascii")
