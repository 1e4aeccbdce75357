"""A trained bundle as a model: its vectors are those of the model itself, whatever is missing or damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbm_core.bundle import load_bundle
from mmbm_core.encoders import build_encoder, modalities_of
from mmbm_core.errors import UsageError
from mmbm_core.saved import load_model, read_bundle
from tests.bundles import FUSIONS, make_model, pooled_alone, save_bundle, subset_rows

TOKENS = {"text": 3, "image": 4, "audio": 2}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # several only wait for each other on models this small


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory, text_model: str) -> Path:
    """A bundle with a fusion of several tokens, which no test changes."""
    model = make_model(text_model, fusion=FUSIONS["attention"], tokens=TOKENS)
    return Path(save_bundle(tmp_path_factory.mktemp("fused") / "bundle", model))


@pytest.mark.parametrize("kind", ["none", "none, all tokens", *FUSIONS])
def test_every_subset_gets_the_vectors_of_the_model_itself(text_model: str, tmp_path: Path, kind: str) -> None:
    tokens = dict.fromkeys(TOKENS, "all") if "all" in kind else TOKENS if kind in ("attention", "bottleneck") else {}
    model = make_model(text_model, fusion=FUSIONS.get(kind), tokens=tokens)
    rows = subset_rows()
    bundle = load_bundle(save_bundle(tmp_path / "bundle", model))
    together = bundle.embed(rows).to_pylist()
    worst = 0.0
    for row, made in zip(rows, together, strict=True):
        alone = bundle.embed([row]).to_pylist()[0]
        present = [m for m in TOKENS if row[m] is not None]
        expected = {"embedding": pooled_alone(model, row)}
        if len(present) > 1:
            expected |= {f"{m}_embedding": pooled_alone(model, {m: row[m]}) for m in present}
        assert made["modalities"] == present and made["error"] == ""
        for name in ("embedding", *(f"{m}_embedding" for m in TOKENS)):
            assert (made[name] is None) == (name not in expected)
            if name in expected:
                assert len(made[name]) == 20
                worst = max(worst, *(np.abs(np.subtract(each[name], expected[name])).max() for each in (made, alone)))
    print(f"{kind}: {worst:.1e}")
    assert worst < 1e-4
    assert len({tuple(np.round(row["embedding"], 3)) for row in together}) == len(rows)


def test_it_is_known_by_its_folder(fused: Path, text_model: str) -> None:
    space = read_bundle(fused)["space"]
    bundle = load_bundle(str(fused))
    assert modalities_of(str(fused)) == ("text", "image", "audio")
    assert bundle.spaces == {str(fused): space} and bundle.model is not None
    assert bundle.kernels == {f"{fused}#{m}": "exact" for m in TOKENS}
    assert bundle.widths == dict.fromkeys(TOKENS, 20) and bundle.tokens == TOKENS
    assert load_bundle(text_model).model is None
    with pytest.raises(UsageError, match="is a trained bundle, not an encoder"):
        build_encoder(str(fused))


def test_a_part_of_it_makes_the_same_vectors(fused: Path) -> None:
    rows = [{"text": row["text"], "image": row["image"]} for row in subset_rows()[:5]]
    rows = [row for row in rows if any(row.values())]
    part = load_bundle(f"{fused}#text,{fused}#image")
    assert modalities_of(f"{fused}#image") == ("image",) and set(part.encoders) == {"text", "image"}
    assert part.spaces == load_bundle(str(fused)).spaces
    expected = load_bundle(str(fused)).embed(rows)
    for name in ("embedding", "text_embedding"):
        for one, other in zip(part.embed(rows)[name].to_pylist(), expected[name].to_pylist(), strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                np.testing.assert_allclose(one, other, atol=1e-5)
    text_only = save_bundle(fused.parent / "text", make_model(str(fused / "encoders" / "text"), modalities=["text"]))
    with pytest.raises(UsageError, match="has no encoder of audio; it has those of text"):
        modalities_of(f"{text_only}#audio")


def test_lists_go_into_a_fusion_as_the_mean_of_their_vectors(fused: Path) -> None:
    bundle = load_bundle(str(fused))
    captions = ["a red disc", "seven green rings under one star"]
    image = subset_rows()[1]["image"]
    made = bundle.embed([{"text": captions, "image": image}]).to_pylist()[0]
    encoded = bundle.encode_values("text", captions).values
    values = {"text": encoded.mean(0, keepdims=True), "image": bundle.encode_values("image", [image]).values}
    assert bundle.fuse is not None
    both = bundle.fuse(values, {"text": np.ones(1, bool), "image": np.ones(1, bool)})
    np.testing.assert_allclose(made["embedding"], both[0], atol=1e-5)
    alone = bundle.fuse({"text": values["text"]}, {"text": np.ones(1, bool)})
    np.testing.assert_allclose(made["text_embedding"], alone[0], atol=1e-5)


def test_lists_without_a_fusion_are_the_mean_of_unit_vectors(text_model: str, tmp_path: Path) -> None:
    bundle = load_bundle(save_bundle(tmp_path / "b", make_model(text_model, modalities=["text", "image"])))
    captions = ["a red disc", "one star"]
    each = [bundle.embed([{"text": c}]).to_pylist()[0]["embedding"] for c in captions]
    made = bundle.embed([{"text": captions}]).to_pylist()[0]["embedding"]
    np.testing.assert_allclose(made, np.sum(each, 0) / np.linalg.norm(np.sum(each, 0)), atol=1e-5)


def test_one_encoder_without_an_adapter(text_model: str, tmp_path: Path) -> None:
    model = make_model(text_model, modalities=["text"], width=None)
    bundle = load_bundle(save_bundle(tmp_path / "b", model))
    made = bundle.embed([{"text": "a red disc"}, {"text": ""}]).to_pylist()
    np.testing.assert_allclose(made[0]["embedding"], pooled_alone(model, {"text": "a red disc"}), atol=1e-5)
    assert made[1]["embedding"] is None and made[1]["error"] == "no text in this row"
    plain = load_bundle(text_model).embed([{"text": "a red disc"}]).to_pylist()[0]["text_embedding"]
    np.testing.assert_allclose(made[0]["embedding"], np.array(plain) / np.linalg.norm(plain), atol=1e-5)


def test_bad_values_leave_the_rest_of_the_row(fused: Path) -> None:
    rows = [{"text": "a red disc", "image": b"bad"}, {"text": None, "image": b"bad"}, {"text": "a red disc"}]
    made = load_bundle(str(fused)).embed(rows).to_pylist()
    assert [row["modalities"] for row in made] == [["text"], [], ["text"]]
    assert [bool(row["error"]) for row in made] == [True, True, False]
    assert made[0]["embedding"] == pytest.approx(made[2]["embedding"], abs=1e-5)
    assert made[1]["embedding"] is None and made[0]["text_embedding"] is None


def test_a_fusion_that_overflows_gives_an_error(text_model: str, tmp_path: Path) -> None:
    model = make_model(text_model, fusion=FUSIONS["low_rank"], modalities=["text", "image"])
    assert model.fusion is not None
    for parameter in model.fusion.parameters():
        parameter.data *= 1e30
    bundle = load_bundle(save_bundle(tmp_path / "b", model))
    rows = [row for row in subset_rows(["text", "image"]) if row["text"] and row["image"]]
    (made,) = bundle.embed(rows).to_pylist()
    assert "the fusion gave a vector that is not finite" in made["error"]
    assert made["modalities"] == [] and made["embedding"] is None


def test_what_can_not_be_combined_is_refused(fused: Path, text_model: str, clip_model: str, tmp_path: Path) -> None:
    sound = save_bundle(tmp_path / "sound", make_model(text_model, modalities=["audio"]))
    seen = save_bundle(tmp_path / "seen", make_model(text_model, modalities=["image"]))
    for model, message in (
        (f"{fused},mfcc", "two models encode audio"),
        (f"{fused}, {sound}", "each with a space of its own; give one of them"),
        (f"{sound},{clip_model}", "have each a shared space of their own"),
    ):
        with pytest.raises(UsageError, match=message):
            load_bundle(model)
    made = load_bundle(f"{text_model},{seen}").embed([{"text": "a star", "image": subset_rows()[1]["image"]}])
    assert {"text_embedding", "embedding"} <= set(made.column_names) and "image_embedding" not in made.column_names
    with pytest.raises(UsageError, match="trained with options of its own: leave out pooling of text"):
        load_bundle(str(fused), options={"text": {"pooling": "cls"}})


def test_a_fusion_of_all_tokens_says_what_to_train(text_model: str, tmp_path: Path) -> None:
    model = make_model(text_model, fusion=FUSIONS["attention"], tokens={"text": "all"})
    saved = save_bundle(tmp_path / "b", model)
    with pytest.raises(UsageError, match=r"fuses all tokens of text.*encoders\.text\.tokens=16"):
        load_bundle(saved)
    assert set(load_bundle(f"{saved}#image").encoders) == {"image"}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "flipped": flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_one_usage_error(fused: Path, tmp_path: Path, damage: str) -> None:
    names = sorted(path.relative_to(fused) for path in fused.rglob("*") if path.is_file())
    assert len(names) > 8
    for name in names:
        folder = tmp_path / name.as_posix().replace("/", "-")
        shutil.copytree(fused, folder)
        DAMAGES[damage](folder / name)
        known = "unknown model|no such model folder|has no config.json" if name.name == "bundle.json" else ""
        with pytest.raises(UsageError, match=f"damaged|missing|has format|{known}" if known else "damaged|missing"):
            load_bundle(str(folder))
        shutil.rmtree(folder)


def test_a_bit_flipped_anywhere_in_bundle_json_is_seen(fused: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(fused, folder)
    file = folder / "bundle.json"
    whole = file.read_bytes()
    own = range(whole.index(b'"sha256"'), whole.index(b'"sha256"') + 8)  # without that name the rest is as it was
    for at in range(0, len(whole), 3):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 7]) + whole[at + 1 :])
        if at not in own:
            with pytest.raises(UsageError, match="damaged|has format"):
                modalities_of(str(folder))


def test_other_wrongs_of_bundle_json(fused: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(fused, folder)
    content = json.loads((folder / "bundle.json").read_text())
    for wrong, message in (
        ("not json", "damaged"), ("[]", "damaged"), ("{}", "damaged"), (b"\xff\xfe", "damaged"),
        ({**content, "format": 2}, "has format 2, this program reads 1"),
        ({**content, "widths": {"text": 1}}, "does not fit its sha256"),
        ({k: v for k, v in content.items() if k not in ("spec", "sha256")}, "damaged"),
    ):  # fmt: skip
        made = json.dumps(wrong) if isinstance(wrong, dict) else wrong
        (folder / "bundle.json").write_bytes(made if isinstance(made, bytes) else made.encode())
        for load in (load_bundle, modalities_of):
            with pytest.raises(UsageError, match=message):
                load(str(folder))
    with pytest.raises(UsageError, match="is no bundle"):
        load_model(tmp_path)
