"""Looking inside a model as a user does: lazily in Python, and as a folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import Tensor, nn

import vitrail
from vitrail.analyze.attention import relevance
from vitrail.analyze.finding import Finding
from vitrail.config import EncoderConfig, HeadConfig, PositionConfig, PositionKind, Preprocessing, Token, ViTConfig
from vitrail.errors import UserError
from vitrail.model.build import build
from vitrail.model.vision import VisionTransformer
from vitrail.tasks.inspection import PARTS, Inspection
from vitrail.tasks.inspection_facts import of_finding
from vitrail.tasks.inspection_folder import write_inspection
from vitrail.tasks.inspection_pass import TRACED, at_a_time

CONFIG = ViTConfig(EncoderConfig(3, 24, 3, 48), (8, 8), (40, 56), head=HeadConfig(classes=3))
SIZES = ((112, 112), (288, 296))
HOW = Preprocessing(CONFIG.image_size, fit="squash")


class CNN(nn.Module):
    """Two strided convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 8, H / 4, W / 4)."""
        features: Tensor = self.layers(images)
        return features


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pictures, and no time for timing."""
    monkeypatch.setattr("vitrail.tasks.inspection.FEW", 2)
    monkeypatch.setattr("vitrail.tasks.inspection.SECONDS", 0.05)


def toy(config: ViTConfig = CONFIG) -> VisionTransformer:
    torch.manual_seed(0)
    model = build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def inspected(photos: Path, config: ViTConfig = CONFIG) -> Inspection:
    return vitrail.inspect(toy(config), photos / "val", preprocessing=HOW, shown=2)


def test_every_part_is_a_finding_with_a_table_a_summary_and_a_figure(photos: Path) -> None:
    found = inspected(photos)
    for part in PARTS:
        finding = found.find(part)
        assert isinstance(finding, Finding)
        assert finding.name == part
        assert getattr(found, part.replace("-", "_")) is not None
        table = finding.table()
        assert len({len(column) for column in table.values()}) == 1
        json.dumps(finding.summary())
        assert finding.plot().axes


def test_one_pass_serves_all_that_need_no_more(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    run = VisionTransformer.encode

    def counted(self: VisionTransformer, images: Tensor, *rest: object) -> tuple[Tensor, ...]:
        passes.append(len(images))
        return run(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(VisionTransformer, "encode", counted)
    found = inspected(photos)
    assert passes == []
    assert found.attention_distance.images == 12
    assert sum(passes) == 12
    _ = found.attention_entropy, found.layer_similarity, found.token_norms, found.patch_components
    assert sum(passes) == 12


def test_tensors_and_files_give_the_same_numbers(photos: Path) -> None:
    files = inspected(photos)
    images = torch.cat(list(files.pictures.batches(5)))
    tensors = vitrail.inspect(toy(), images, preprocessing=HOW)
    assert np.allclose(files.attention_distance.mean, tensors.attention_distance.mean, rtol=1e-3)


def test_the_layer_is_the_one_whose_maps_are_shown(photos: Path) -> None:
    first = vitrail.inspect(toy(), photos / "val", preprocessing=HOW, shown=2, layer=1).attention_maps
    last = inspected(photos).attention_maps
    assert list(first.maps) == ["layer 1", "rollout", "for the class"]
    assert list(last.maps) == ["layer 3", "rollout", "for the class"]
    assert np.array_equal(first.maps["rollout"], last.maps["rollout"])
    assert np.allclose(last.maps["layer 3"].sum(axis=(1, 2)), 1.0)
    assert last.maps["rollout"].shape == (2, 5, 7)


def test_the_folder_holds_a_page_figures_and_numbers_that_agree(photos: Path, tmp_path: Path) -> None:
    found = inspected(photos)
    result = write_inspection(found, tmp_path / "out")
    assert list(result.findings) == list(PARTS)
    for part in PARTS:
        table = pyarrow.parquet.read_table(tmp_path / "out" / "numbers" / f"{part}.parquet")
        assert table.column_names == list(found.find(part).table())
        json.loads((tmp_path / "out" / "numbers" / f"{part}.json").read_text())
        for ending in ("png", "svg"):
            assert (tmp_path / "out" / "figures" / f"{part}.{ending}").stat().st_size > 1000
    pixels = pyarrow.parquet.read_table(tmp_path / "out" / "numbers" / "attention-distance.parquet")["pixels"]
    assert np.allclose(pixels.to_numpy(), found.attention_distance.mean.ravel())
    page = (tmp_path / "out" / "inspect.html").read_text(encoding="utf-8")
    assert "Explore its attention" in page
    with pytest.raises(UserError, match="out exists already"):
        write_inspection(found, tmp_path / "out")


def test_parts_that_are_named_are_all_there_is(photos: Path, tmp_path: Path) -> None:
    write_inspection(inspected(photos), tmp_path / "out", ["patch-filters", "cost"])
    assert sorted(path.stem for path in (tmp_path / "out" / "numbers").glob("*.json")) == ["cost", "patch-filters"]


def test_a_cnn_has_what_is_not_about_attention(photos: Path, tmp_path: Path) -> None:
    found = vitrail.inspect(CNN(), photos / "val", preprocessing=HOW)
    for ask in (lambda: found.attention_distance, lambda: found.attention_maps, lambda: found.position_similarity):
        with pytest.raises(
            UserError, match="CNN has no attention, and no positions or patches: it can be asked for eq"
        ):
            ask()
    with pytest.raises(UserError, match="CNN has no attention"):
        write_inspection(found, tmp_path / "one", ["attention-distance"])
    assert not (tmp_path / "one").exists()
    result = write_inspection(found, tmp_path / "all")
    assert list(result.findings) == ["equivariance", "receptive-field"]
    assert result.absent["attention-maps"].startswith("CNN has no attention")
    assert "CNN has no attention" in (tmp_path / "all" / "inspect.html").read_text(encoding="utf-8")
    assert list(found.equivariance.of) == ["CNN", "plain CNN, random weights"]


def test_without_pictures_there_is_what_needs_none(tmp_path: Path) -> None:
    found = vitrail.inspect(toy())
    assert found.position_similarity.grid == (5, 7)
    with pytest.raises(UserError, match="attention-distance needs pictures: name some files, or a folder of them"):
        _ = found.attention_distance
    result = write_inspection(found, tmp_path / "out")
    assert list(result.findings) == ["position-similarity", "patch-filters", "cost"]


@pytest.mark.parametrize("tokens", [(), ("class", "register")])
@pytest.mark.parametrize("kind", ["none", "rope-2d", "relative-1d"])
def test_models_of_other_outlines(photos: Path, kind: PositionKind, tokens: tuple[Token, ...]) -> None:
    head = HeadConfig(("class",) if tokens else ("mean",))
    config = replace(CONFIG, position=PositionConfig(kind), tokens=tokens, head=head)
    found = inspected(photos, config)
    for part in PARTS:
        if (part, kind) == ("position-similarity", "none"):
            with pytest.raises(UserError, match="no position information"):
                found.find(part)
        else:
            found.find(part)
    assert list(found.attention_maps.maps) == ["layer 3", "rollout"]
    assert found.attention_maps.notes[0] == "The model has no trained classifier, so there is no map for a class."


def test_the_map_for_a_class_is_asked_for_by_what_the_head_reads(photos: Path) -> None:
    config = replace(CONFIG, head=HeadConfig(("mean",), classes=3))  # with a class token, which is not read
    found = inspected(photos, config)
    image = found.shown[0].image[None]
    expected = relevance(found.transformer, image).matrix[0] - torch.eye(36)
    ours = found.attention_maps.maps["for the class"][0].ravel()
    theirs = expected[1:, 1:].sum(dim=0)
    assert np.allclose(ours, theirs / theirs.sum(), atol=1e-6)
    assert found.attention_maps.notes == (
        "Asked by the class token; for the class, by the tokens that the head reads.",
    )


def test_a_tensor_says_itself_how_large_it_is_and_of_how_many_channels() -> None:
    images = torch.randn(3, 1, 24, 40)
    found = vitrail.inspect(nn.Conv2d(1, 4, 3, 4, 1), images)
    assert found.receptive_field.model.energy.shape == (1, 24, 40)
    assert found.equivariance.model.errors.shape[2] == 2
    grey = replace(CONFIG, channels=1)
    maps = vitrail.inspect(toy(grey), torch.randn(3, 1, 40, 56)).attention_maps
    assert maps.pictures.shape == (3, 40, 56, 3)
    with pytest.raises(UserError, match="tensors of 24x40 pixels already: leave the resolution out"):
        vitrail.inspect(CNN(), torch.randn(3, 3, 24, 40), resolution=16)


def test_many_patches_run_fewer_at_a_time() -> None:
    at_224, at_518 = (replace(CONFIG, encoder=EncoderConfig(1, 24, 6, 8), image_size=size) for size in SIZES)
    assert (at_a_time(at_224), at_a_time(at_518)) == (TRACED, 6)
    assert at_a_time(replace(at_518, image_size=(8000, 8000))) == 4  # of fewer there is no CKA


def test_what_could_not_be_read_is_not_counted(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    files = [tmp_path / "bad.png", *sorted(photos.glob("val/*/*"))[:5]]
    inspection = vitrail.inspect(toy(), files, preprocessing=HOW, shown=2)
    result = write_inspection(inspection, tmp_path / "out", ["attention-maps", "attention-distance", "equivariance"])
    assert result.images == 5
    assert [path.name for path, _ in result.unreadable] == ["bad.png"]
    text = (tmp_path / "out" / "inspect.html").read_text(encoding="utf-8")
    assert "<dt>Measured on</dt><dd>5 images</dd>" in text
    assert "Asked by the class token; for the class" in text
    error = result.findings["equivariance"]["VisionTransformer"]["whole_cell"]["error"]
    assert f"{error:.2f} at a whole cell" in text


def test_every_figure_but_maps_has_its_numbers_beside_it(photos: Path) -> None:
    found = inspected(photos)
    facts = {part: dict(of_finding(part, found.find(part).summary())) for part in PARTS}
    assert [part for part in PARTS if not facts[part]] == ["attention-maps"]
    assert facts["equivariance"]["Pictures"] == facts["receptive-field"]["Pictures"] == "2"  # of more that there are
    ratio = found.token_norms.largest[-1]
    assert facts["token-norms"]["Largest in the last layer"] == f"{ratio:.1f} times the median"


def test_what_is_wrong_is_said_in_a_sentence(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no layer 4: the model has layers 1 to 3"):
        vitrail.inspect(toy(), layer=4)
    for limit in (0, -1):
        with pytest.raises(UserError, match="At least 1 picture must be looked at"):
            vitrail.inspect(toy(), photos / "val", limit=limit)
        with pytest.raises(UserError, match="At least 1 picture must be shown"):
            vitrail.inspect(toy(), photos / "val", shown=limit)
    with pytest.raises(UserError, match="there already, for 40x56 pixels: for another resolution load it"):
        vitrail.inspect(toy(), photos / "val", resolution=16)
    with pytest.raises(UserError, match="heads and architecture are for loading"):
        vitrail.inspect(toy(), photos / "val", heads=2)
    with pytest.raises(UserError, match="Files are read in 3 channels, and the model takes 1"):
        vitrail.inspect(toy(replace(CONFIG, channels=1)), photos / "val")
    with pytest.raises(UserError, match="token-norms needs pictures"):
        _ = vitrail.inspect(toy()).token_norms
    with pytest.raises(UserError, match="There is no part 'attention-distanc'; the nearest is attention-distance"):
        inspected(photos).find("attention-distanc")
    with pytest.raises(UserError, match="There is no file or folder"):
        vitrail.inspect(toy(), tmp_path / "nowhere")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    broken = vitrail.inspect(toy(), tmp_path / "bad.png", preprocessing=HOW)
    with pytest.raises(UserError, match=r"bad.png cannot be read"):
        write_inspection(broken, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    class Flat(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    with pytest.raises(UserError, match=r"Flat gives no feature map \(B, D, h, w\)"):
        _ = vitrail.inspect(Flat(), photos / "val", preprocessing=HOW).equivariance
