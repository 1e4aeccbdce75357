"""Bundles with ONNX: the same model, one kernel more; what can't be exported is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deploy.cli import main
from mmbm_core.bundle import load_bundle
from mmbm_core.compress import onnx as onnx_module
from mmbm_core.compress.pruning import Importance, prune, sizes_for
from mmbm_core.encoders.mfcc import MfccEncoder
from mmbm_core.errors import RunError, UsageError
from mmbm_core.model import Model
from mmbm_core.sample import MODALITIES
from mmbm_core.saved import load_model, read_bundle
from mmbm_core.spec import ModelSpec
from pipelines.export import ExportRequest, export
from tests.bundles import FUSIONS, make_model, save_bundle, subset_rows

pytest.importorskip("onnxscript", reason="needs mmbm[onnx]")
pytest.importorskip("onnxruntime", reason="needs mmbm[onnx]")

ROWS = subset_rows()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, text_model: str) -> Path:
    """A bundle with a fusion, which no test changes."""
    model = make_model(text_model, fusion=FUSIONS["gated"])
    return Path(save_bundle(tmp_path_factory.mktemp("export") / "original", model))


@pytest.fixture(scope="module")
def exported(original: Path) -> Path:
    """What became of it; no test changes it."""
    output = original.parent / "exported"
    done = export(ExportRequest(bundle=str(original), output=str(output)))
    assert set(done["exported"]) == set(MODALITIES) and done["left"] == {}
    assert all(0 <= worst < 1e-5 for worst in done["exported"].values())
    return output


def _vectors(bundle: Any, rows: list[dict[str, Any]] = ROWS) -> np.ndarray:
    table = bundle.embed(rows)
    assert not any(table["error"].to_pylist())
    return np.array(table["embedding"].to_pylist())


def _onnx(folder: Path) -> dict[str, str]:
    """The ONNX kernel of each encoder."""
    every = load_bundle(str(folder)).fast_kernels
    return {name: next(k for k in kernels if k.startswith("onnx")) for name, kernels in every.items()}


def test_the_copy_is_the_same_model(original: Path, exported: Path) -> None:
    before, after = read_bundle(original), read_bundle(exported)
    new = {f"encoders/{m}/model.onnx" for m in MODALITIES}
    assert set(after["files"]) == set(before["files"]) | new
    assert {k: v for k, v in after.items() if k not in ("files", "sha256")} == {
        k: v for k, v in before.items() if k not in ("files", "sha256")
    }
    one, other = load_bundle(str(original)), load_bundle(str(exported))
    assert list(one.spaces.values()) == list(other.spaces.values())
    assert np.array_equal(_vectors(one), _vectors(other))
    assert not list(original.parent.glob("*.exporting"))
    assert str(Path(__file__).parents[2]).encode() not in (exported / "encoders/text/model.onnx").read_bytes()


def test_onnx_agrees_with_torch_alone_and_in_any_batch(exported: Path) -> None:
    kernels = _onnx(exported)
    assert kernels == {
        f"{exported}#text": "onnx", f"{exported}#image": "onnx+jpeg-3x", f"{exported}#audio": "onnx",
    }  # fmt: skip
    exact, fast = load_bundle(str(exported)), load_bundle(str(exported), kernels=kernels)
    assert fast.kernels == kernels
    expected = _vectors(exact)
    alone = np.concatenate([_vectors(fast, [row]) for row in ROWS])
    for made in (_vectors(fast), alone):
        cosine = (made * expected).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosine.min() > 0.9999
        np.testing.assert_allclose(made, expected, atol=1e-4)
    assert not np.array_equal(alone, expected)
    for encoder in fast.encoders.values():
        inner: Any = encoder.encoder.encoder
        assert inner.stand_in is not None and not any(hasattr(inner, part) for part in inner.core_parts)


def test_without_onnxruntime_the_kernel_is_not_there(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = _onnx(exported)
    monkeypatch.setattr("mmbm_core.encoders.base.runs_onnx", lambda: False)
    assert not any("onnx" in k for every in load_bundle(str(exported)).fast_kernels.values() for k in every)
    with pytest.raises(UsageError, match="can't run .* with onnx"):
        load_bundle(str(exported), kernels=kernels)


def test_damaged_onnx_is_refused(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "out")
    file = tmp_path / "out" / "encoders" / "image" / "model.onnx"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UsageError, match=r"model\.onnx is damaged"):
        load_bundle(str(tmp_path / "out"))


def test_a_file_that_the_bundle_does_not_name_is_no_kernel(original: Path, exported: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(original, tmp_path / "b"))
    (bundle / "encoders/image/model.onnx").write_bytes((exported / "encoders/image/model.onnx").read_bytes())
    assert not any("onnx" in k for every in load_bundle(str(bundle)).fast_kernels.values() for k in every)


def _with_mfcc(text_model: str) -> Model:
    """Images and sounds, whose encoder has no network."""
    model = make_model(text_model, modalities=("image", "audio"))
    sounds = MfccEncoder()
    configs = {"image": model.spec.encoders["image"], "audio": {"model": "mfcc"}}
    spec = ModelSpec.model_validate({"encoders": configs, "width": 20, "tasks": model.spec.tasks})
    image: Any = model.encoders["image"]
    widths: Any = {"image": image.width, "audio": sounds.width}
    return Model(spec, widths=widths, encoders={"image": image, "audio": sounds}).eval().requires_grad_(False)


def test_an_encoder_without_a_network_is_left_and_named(text_model: str, tmp_path: Path) -> None:
    bundle = save_bundle(tmp_path / "b", _with_mfcc(text_model))
    done = export(ExportRequest(bundle=bundle, output=str(tmp_path / "out")))
    assert list(done["exported"]) == ["image"] and "MfccEncoder has no network" in done["left"]["audio"]
    kernels = load_bundle(str(tmp_path / "out")).fast_kernels
    assert kernels[f"{tmp_path / 'out'}#audio"] == () and "onnx+jpeg-3x" in kernels[f"{tmp_path / 'out'}#image"]


@pytest.mark.parametrize("trouble", ["differs", "fails"])
def test_nothing_is_written_where_nothing_can_be_exported(
    trouble: str, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise TypeError("an operator is unknown")

    monkeypatch.setattr(onnx_module, "_export", fail)
    if trouble == "differs":
        monkeypatch.setattr(onnx_module, "_export", lambda encoder, file: file.write_bytes(b""))
        monkeypatch.setattr(onnx_module, "OnnxNetwork", lambda file: None)
        monkeypatch.setattr(onnx_module, "_difference", lambda *_: float("nan"))
    expected = {"differs": "text: its ONNX differs", "fails": "text: TypeError: an operator is unknown"}[trouble]
    with pytest.raises(RunError, match=f"nothing is written.*{expected}.*audio"):
        export(ExportRequest(bundle=str(original), output=str(tmp_path / "out")))
    assert not any(tmp_path.iterdir())


def test_the_check_sees_a_network_that_is_not_the_encoders(original: Path, exported: Path, tmp_path: Path) -> None:
    encoder: Any = load_model(original)[0].encoders["audio"]
    network = onnx_module.OnnxNetwork(exported / "encoders/audio/model.onnx")
    assert onnx_module._difference(encoder, network) < 1e-5
    encoder.norm.bias += 0.01
    assert onnx_module._difference(encoder, network) > 1e-4
    encoder.norm.bias[0] = np.nan
    assert not onnx_module._difference(encoder, network) <= 1e-4


@pytest.mark.slow
def test_a_pruned_model_is_exported_too(text_model: str, tmp_path: Path) -> None:
    model = make_model(text_model, modalities=("text", "image"))
    for encoder in model.encoders.values():
        groups: Any = encoder.groups()  # type: ignore[operator]
        encoder.requires_grad_(True)
        importance = Importance(encoder, groups)
        prune(encoder, importance, sizes_for(encoder, groups, share=0.5))
        encoder.requires_grad_(False)
        encoder.cut = encoder.int8 = True  # type: ignore[assignment]
    bundle = save_bundle(tmp_path / "b", model)
    done = export(ExportRequest(bundle=bundle, output=str(tmp_path / "out")))
    assert set(done["exported"]) == {"text", "image"}
    rows = [{m: row[m] for m in ("text", "image")} for row in ROWS if row.get("text") or row.get("image")]
    exact = _vectors(load_bundle(bundle), rows)
    np.testing.assert_allclose(
        _vectors(load_bundle(str(tmp_path / "out"), kernels=_onnx(tmp_path / "out")), rows), exact, atol=1e-4
    )


@pytest.mark.slow
def test_a_text_encoder_from_scratch_is_exported(tmp_path: Path) -> None:
    from mmbm_core.encoders.bert import BertConfig, build_bert
    from tests.seq2seq import BPE

    torch.manual_seed(0)
    config = BertConfig(vocab_size=400, max_tokens=40, width=16, layers=1, heads=2)
    task = {"kind": "understanding", "inputs": {"text": "text"}, "label": "label", "labels": ["no", "yes"]}
    spec = ModelSpec.model_validate(
        {"encoders": {"text": {"model": config, "training": "full"}}, "tasks": {"seen": task}}
    )
    encoder = build_bert(config, tokenizer=BPE)
    bundle = save_bundle(tmp_path / "b", Model(spec, widths={"text": 16}, encoders={"text": encoder}).eval())
    done = export(ExportRequest(bundle=bundle, output=str(tmp_path / "out")))
    assert set(done["exported"]) == {"text"}


def test_the_command(
    text_model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = save_bundle(tmp_path / "b", make_model(text_model, modalities=("image",)))
    assert main.main(["export", bundle, "--output", bundle]) == 2
    assert "holds a bundle already" in capsys.readouterr().err
    assert main.main(["export", bundle, "--output", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bundle"] == str(tmp_path / "out") and set(told) == {"bundle", "exported", "left", "seconds"}
    assert main.main(["export", str(tmp_path / "out"), "--output", str(tmp_path / "out"), "--overwrite"]) == 0
    monkeypatch.setattr("pipelines.export.lacking_packages", lambda: ["onnxscript"])
    assert main.main(["export", bundle, "--output", str(tmp_path / "other")]) == 2
    assert "run pip install 'mmbm[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
