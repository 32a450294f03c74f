"""A model with what it needs to be used: preprocessing, class names, where it came from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vitrail.atomic import new_folder
from vitrail.config import ModelCard, Resampling, Size, parse_size
from vitrail.data.sources import iter_images
from vitrail.errors import UserError
from vitrail.model.build import blank, build
from vitrail.report.terminal import Show
from vitrail.runtime.plan import Runtime
from vitrail.runtime.predictor import Predictor
from vitrail.tasks.prediction import Embedding, Prediction, embeddings, predictions
from vitrail.tasks.running import folder_of, running
from vitrail.weights.load import Loaded, Source, load_weights
from vitrail.weights.report import LoadReport
from vitrail.weights.store import write_model
from vitrail.weights.wheel import Progress

if TYPE_CHECKING:
    from vitrail.tasks.evaluation import Evaluated


class Classifier:
    """A Vision Transformer and its card.

    Attributes:
        model: the ``VisionTransformer`` itself, an ordinary ``torch.nn.Module``.
        card: architecture, preprocessing, class names and provenance.
        report: what happened to every tensor when it was loaded.
        predictor: how it is run here: device, precision, engine.
    """

    def __init__(self, loaded: Loaded, device: str | None = None) -> None:
        with blank():
            self.model = build(loaded.card.architecture)
        self.model.load_state_dict(loaded.tensors, assign=True)
        self.card: ModelCard = loaded.card
        self.report: LoadReport = loaded.report
        self.predictor = Predictor.of(self.model, device)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a logit; numbers as text where the source names no classes."""
        return self.card.class_names or tuple(map(str, range(self.card.architecture.head.classes)))

    def predict(
        self, pictures: str | Path | Iterable[str | Path], top: int = 1, batch_size: int = 32
    ) -> list[Prediction]:
        """Classify files and folders of pictures; unreadable ones come back with a reason.

        Raises:
            UserError: a path does not exist, or the model has no trained classifier.
        """
        return list(predictions(self.predictor, self.card, self.classes(), _paths(pictures), top, batch_size))

    def evaluate(
        self, data: str | Path, batch_size: int = 32, quiet: bool = True, real: str | Path | None = None
    ) -> Evaluated:
        """Accuracy with its interval, per class, confusion, calibration and speed on labelled pictures.

        Args:
            data: a folder of class folders, a folder with val/ in it, a CSV, or a built-in set; its class
                names must be the model's.
            quiet: show no progress bar.
            real: a file of ReaL labels (2006.07159), to judge by those too.

        Raises:
            UserError: the model has no trained classifier, or the data do not fit it or cannot be read.
        """
        from vitrail.tasks.evaluation import evaluate  # brings scipy, which nobody else here needs

        return evaluate(
            self.predictor, self.card, self.classes(), data, Path(self.report.source), batch_size, Show(quiet), real
        )

    def embed(self, pictures: str | Path | Iterable[str | Path], batch_size: int = 32) -> tuple[list[Path], np.ndarray]:
        """Features of files and folders of pictures: the paths that could be read, and an array (n, F) float32.

        Raises:
            UserError: a path does not exist.
        """
        found = list(self.iter_embeddings(_paths(pictures), batch_size))
        read = [(entry.path, entry.features) for entry in found if entry.features is not None]
        features = np.stack([row for _, row in read]) if read else np.empty((0, self.card.architecture.feature_width))
        return [path for path, _ in read], features.astype(np.float32)

    def iter_embeddings(self, pictures: Iterable[Path], batch_size: int = 32) -> Iterator[Embedding]:
        """``embed``, one picture at a time and with the reasons for those that could not be read."""
        return embeddings(self.predictor, self.card.preprocessing, pictures, batch_size)

    def classes(self) -> tuple[str, ...]:
        """``class_names``, once it is sure that the classifier has learned something.

        Raises:
            UserError: there is no classifier, or it is all zeros.
        """
        classifier = self.model.classifier
        if classifier is None:
            raise UserError("This model has no classifier: run vitrail finetune with it first, or use embed.")
        if not classifier.weight.any():
            raise UserError("This model's classifier is all zeros, so it knows no class yet: fine-tune it first.")
        return self.class_names

    def save(self, folder: str | Path) -> Path:
        """Write a model folder (``config.json``, ``model.safetensors``) that ``load`` reads back.

        Raises:
            UserError: the folder exists already, the disk is full, or it cannot be written.
        """
        with new_folder(Path(folder)) as beside:
            write_model(beside, self.card, self.model.state_dict())
        return Path(folder)


def load(
    source: Source,
    image_size: int | str | Size | None = None,
    heads: int | None = None,
    *,
    classes: Sequence[str] | None = None,
    resampling: Resampling | None = None,
    architecture: str | None = None,
    device: str | None = None,
    runtime: str | Runtime | None = None,
    quiet: bool = False,
) -> Classifier:
    """Load a model from anywhere.

    Args:
        source: a run folder or model folder of Vitrail; a Hugging Face folder or hub id (ViT, DeiT,
            DINOv2); a timm folder or hub id; a state dict or its file (then ``architecture`` too); a
            short name such as ``dinov2-small``; ``saliency-s14``; ``none`` for random weights.
        image_size: pixels, ``224``, ``"224x168"`` or (height, width); positions are resampled to its grid.
        heads: number of attention heads, where the source does not say or is to be overruled.
        classes: names for a new, zero-initialised classifier; ``()`` drops the source's; None keeps it.
        resampling: how positions are resampled; None: the source library's own way.
        architecture: what a bare state dict is, as timm calls it, such as ``vit_base_patch16_224``; for
            ``none``, a variant such as ``ViT-B/16``.
        device: ``cpu``, ``cuda`` and so on; None: the fastest here.
        runtime: how to run it: ``eager``, ``compiled``, ``onnx`` or ``openvino``, with a precision as in
            ``openvino:bf16``, or a ``Runtime``; None: as ``vitrail tune`` found, for a model as it is stored.
        quiet: no progress bar while downloading.

    Raises:
        UserError: the source is unknown, unreachable, damaged, or not a model Vitrail can build, or it cannot be
            run as asked.
    """
    size, show = None if image_size is None else parse_size(image_size), Show(quiet)
    with download_progress(show, str(source) if isinstance(source, (str, Path)) else "") as progress:
        loaded = load_weights(
            source,
            image_size=size,
            resampling=resampling,
            heads=heads,
            architecture=architecture,
            classes=classes,
            progress=progress,
        )
    classifier = Classifier(loaded, device)
    as_stored = (size, heads, classes) == (None,) * 3 and str(device or "cpu") == "cpu"
    if runtime is not None or as_stored:
        classifier.predictor = running(classifier.predictor, folder_of(source), runtime, show)
    return classifier


@contextmanager
def download_progress(show: Show, name: str) -> Iterator[Progress]:
    """A callback that opens a progress bar when the first bytes of a download are told of."""
    with ExitStack() as stack:
        bar: list[Progress] = []

        def progress(done: int, total: int) -> None:
            if not bar:
                bar.append(stack.enter_context(show.progress(f"Downloading {name}", unit="bytes")))
            bar[0](done, total)

        yield progress


def _paths(pictures: str | Path | Iterable[str | Path]) -> Iterator[Path]:
    return iter_images([pictures] if isinstance(pictures, (str, Path)) else list(pictures))
