"""Features of pictures through a frozen model: computed once, kept on disk by content."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vitrail.atomic import new_file
from vitrail.config import HeadConfig, Preprocessing
from vitrail.data.batches import batches
from vitrail.data.read import UnreadableImage, content_hash
from vitrail.model.heads import Pooling
from vitrail.record import to_dict
from vitrail.report.terminal import Show
from vitrail.runtime.predictor import Predictor
from vitrail.weights.store import write_tensors

CHUNK = 256
"""Pictures a file of the cache holds, and so how much a crash can cost."""
NAMED = 5
"""Pictures in both parts that are named; the others are counted."""


@dataclass(frozen=True)
class Extracted:
    """Features of those pictures that could be read."""

    features: np.ndarray
    """(n, L, P, D) float32: the last L blocks, oldest first; the P parts of each; width D."""
    kept: list[int]
    """Position in the input of each of the n."""
    failures: list[tuple[int, str]]
    """Position in the input, and reason."""
    computed: int
    """How many were computed now, the rest having been in the cache."""
    seconds: float


class FeatureCache:
    """Features by the content of a picture, for one model, preprocessing and precision.

    A file holds up to ``CHUNK`` pictures' features as float16, in safetensors, with their content
    hashes in its metadata. Files are only ever added, whole; a damaged one is passed over.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[str, tuple[Path, int]] = {}
        # Path.glob would raise for a folder that is closed to us; whoever writes there explains that.
        for path in sorted(folder.glob("*.safetensors")) if os.path.isdir(folder) else ():
            for row, digest in enumerate(_metadata(path)):
                self.places[digest] = (path, row)

    def read(self, digests: Sequence[str]) -> np.ndarray:
        """(n, L, P, D) float32 for digests that are all in ``places``."""
        wanted: dict[Path, list[int]] = {}
        for position, digest in enumerate(digests):
            wanted.setdefault(self.places[digest][0], []).append(position)
        result: np.ndarray | None = None
        for path, positions in wanted.items():
            with safe_open(path, "pt") as file:
                chunk = file.get_tensor("features").float().numpy()
            if result is None:
                result = np.empty((len(digests), *chunk.shape[1:]), np.float32)
            result[positions] = chunk[[self.places[digests[position]][1] for position in positions]]
        assert result is not None, "there is at least one digest"
        return result

    def add(self, digests: Sequence[str], features: Tensor) -> None:
        """Keep features (n, L, P, D) of the pictures with these contents.

        Raises:
            UserError: the disk is full.
        """
        path = self.folder / f"{hashlib.sha256(''.join(digests).encode()).hexdigest()[:32]}.safetensors"
        # What bf16 arithmetic gives has fewer digits than float16 holds; its largest number is no limit
        # a normalised feature comes near, but infinity would spoil a whole fit.
        limit = torch.finfo(torch.float16).max
        with new_file(path) as beside:
            tensors = {"features": features.clamp(-limit, limit).half().contiguous()}
            write_tensors(beside, tensors, {"contents": json.dumps(list(digests))})
        self.places.update({digest: (path, row) for row, digest in enumerate(digests)})


def cache_folder(root: Path, predictor: Predictor, how: Preprocessing, pooling: HeadConfig) -> Path:
    """The folder for one model, preprocessing, precision and pooling: all a feature depends on but the picture."""
    digest = hashlib.sha256(json.dumps([to_dict(how), to_dict(pooling), predictor.precision]).encode())
    digest.update(json.dumps(to_dict(predictor.model.config.with_head(pooling)), sort_keys=True).encode())
    for name, tensor in sorted(predictor.model.state_dict().items()):
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return root / digest.hexdigest()[:32]


def content_hashes(paths: Iterable[Path]) -> list[str | UnreadableImage]:
    """The content hash of each file, or why it has none."""

    def one(path: Path) -> str | UnreadableImage:
        try:
            return content_hash(path)
        except UnreadableImage as error:
            return error

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, paths))


def twins(
    show: Show, train: Sequence[Path], held_out: Sequence[Path], digests: Sequence[str | UnreadableImage]
) -> list[tuple[int, int]]:
    """Find and name pictures that stand in both parts, which make the result look better than it is.

    Args:
        digests: content hashes of ``train`` and then of ``held_out``.

    Returns:
        Their places in ``train`` and in ``held_out``.
    """
    places = {digest: at for at, digest in enumerate(digests[: len(train)]) if isinstance(digest, str)}
    judged = enumerate(digests[len(train) :])
    found = [(places[digest], at) for at, digest in judged if isinstance(digest, str) and digest in places]
    if found:
        show.warn(flattering([(train[one], held_out[other]) for one, other in found]))
    return found


def flattering(pairs: Sequence[tuple[Path, Path]]) -> str:
    """A sentence on pictures that are trained on and held out."""
    named = "; ".join(f"{one} = {other}" for one, other in pairs[:NAMED])
    more = f"; and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    return f"{len(pairs)} held-out pictures are also trained on, so the result flatters: {named}{more}."


def measured_speed(predictor: Predictor, how: Preprocessing, paths: Sequence[Path], batch_size: int) -> float:
    """Pictures read and run through the model a second on this machine, from one batch after a warm-up."""
    seconds, count = 0.0, 0
    for part in (paths[:4], paths[:batch_size]):
        start = time.perf_counter()
        for batch in batches(part, how, batch_size):
            if batch.index:
                predictor.features(batch.images)
        seconds, count = time.perf_counter() - start, len(part)
    return count / seconds


def extract(
    predictor: Predictor,
    how: Preprocessing,
    paths: Sequence[Path],
    digests: Sequence[str | UnreadableImage],
    cache: FeatureCache,
    pooling: HeadConfig,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Extracted:
    """Features of pictures, from the cache where they are, computed and added to it where not.

    Args:
        paths: the pictures.
        digests: their content hashes, as ``content_hashes`` gives them.
        pooling: which blocks and which parts of their output.
        progress: told how many of the pictures that had to be computed are done.

    Raises:
        UserError: the disk is full.
    """
    failures = {i: digest.reason for i, digest in enumerate(digests) if isinstance(digest, UnreadableImage)}
    contents = {i: digest for i, digest in enumerate(digests) if isinstance(digest, str)}
    first = {digest: i for i, digest in reversed(contents.items()) if digest not in cache.places}
    missing = sorted(first.values())
    start = time.perf_counter()
    unreadable = _compute(
        predictor, how, [(contents[i], paths[i]) for i in missing], cache, pooling, batch_size, progress
    )
    seconds = time.perf_counter() - start
    failures |= {i: unreadable[digest] for i, digest in contents.items() if digest in unreadable}
    kept = [i for i in contents if i not in failures]
    shape = (0, pooling.layers, len(pooling.parts), predictor.model.config.width)
    features = cache.read([contents[i] for i in kept]) if kept else np.empty(shape, np.float32)
    return Extracted(features, kept, sorted(failures.items()), len(missing) - len(unreadable), seconds)


def _compute(
    predictor: Predictor,
    how: Preprocessing,
    missing: Sequence[tuple[str, Path]],
    cache: FeatureCache,
    pooling: HeadConfig,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> dict[str, str]:
    """Add the features of (content hash, path) pairs to the cache; content hash -> reason for the unreadable."""
    pool = Pooling(pooling, predictor.model.config.tokens)
    reasons: dict[str, str] = {}
    digests: list[str] = []
    rows: list[Tensor] = []
    try:
        for batch in batches((path for _, path in missing), how, batch_size):
            reasons |= {missing[position][0]: reason for position, reason in batch.failures}
            if batch.index:
                flat = predictor.features(batch.images, pool)  # (B, L * P * D)
                digests += [missing[position][0] for position in batch.index]
                rows.append(flat.view(len(flat), pooling.layers, len(pooling.parts), -1))
            if len(digests) >= CHUNK:
                full, digests, rows = (digests, torch.cat(rows)), [], []
                cache.add(*full)
            progress(batch.start + len(batch.paths), len(missing))
    finally:  # an interruption costs one batch
        if rows:
            cache.add(digests[: sum(map(len, rows))], torch.cat(rows))
    return reasons


def _metadata(path: Path) -> list[str]:
    """The content hashes a file of the cache holds; none if it is damaged."""
    try:
        with safe_open(path, "pt") as file:
            contents = json.loads((file.metadata() or {}).get("contents", "[]"))
    except (OSError, SafetensorError, json.JSONDecodeError):
        return []
    return [str(digest) for digest in contents]
