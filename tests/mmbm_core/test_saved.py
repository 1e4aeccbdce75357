"""Bundles: the same outputs in another process, and no damage that goes unseen."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmbm_core.bpe import train_bpe
from mmbm_core.encoders.image_cnn import ImageCnnConfig, ImageCnnEncoder
from mmbm_core.encoders.scratch import build_scratch
from mmbm_core.errors import UsageError
from mmbm_core.model import Batch, Model, Values
from mmbm_core.saved import _own_digest, load_model, read_bundle, save_model
from mmbm_core.spec import ModelSpec

TEXTS = ["a red thing", "two green things", "blue"] * 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A model with an image and a text encoder and a task that has files of its own."""
    torch.manual_seed(0)
    tokenizer = train_bpe(TEXTS, vocab_size=300)
    bert = {"kind": "bert", "vocab_size": 300, "max_tokens": 16, "width": 16, "layers": 1, "heads": 2}
    spec = ModelSpec.model_validate({
        "encoders": {
            "image": {"model": "image", "training": "full", "tokens": 2},
            "text": {"model": bert, "training": "full", "tokens": "all"},
        },
        "width": 32, "fusion": {"kind": "attention", "layers": 1},
        "tasks": {
            "color": {"kind": "recognition", "inputs": {"image": "i", "text": "t"}, "label": "l", "labels": ["a", "b"],
                      "unimodal_logits": True},
            "say": {"kind": "captioning", "inputs": {"image": "i"}, "target": "c",
                    "decoder": {"layers": 1, "heads": 2, "vocab_size": 300, "max_tokens": 8}},
        },
    })  # fmt: skip
    encoders: dict[Any, Any] = {
        "image": ImageCnnEncoder(ImageCnnConfig(size_px=16, widths=(8, 8), depths=(0, 0))),
        "text": build_scratch(spec.encoders["text"].model, tokenizer=tokenizer),
    }
    assets = {"say": {"tokenizer.json": tokenizer.encode()}}
    model = Model(spec, widths={m: e.width for m, e in encoders.items()}, encoders=encoders, assets=assets).eval()
    model.tasks["color"].temperature.fill_(1.7)  # type: ignore[operator, union-attr]
    folder = tmp_path_factory.mktemp("saved")
    save_model(model, folder, facts={"metrics": {"color/accuracy": 0.5}, "result": {"metrics": {}}})
    return model, folder


def outputs(model: Model) -> list[float]:
    """Of three rows, one without its image."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 255, (2, 3, 16, 16), dtype=np.uint8))
    from mmbm_core.encoders.base import Item

    encoder: Any = model.encoders["image"]
    text: Any = model.encoders["text"]
    items = text.prepare("text", TEXTS[:3])
    values = {
        ("image", "i"): Values(torch.tensor([0, 2]), [encoder.collate("image", [Item(i, cost=1) for i in images])]),
        ("text", "t"): Values(torch.arange(3), [text.collate("text", items)]),
    }
    targets = {"color": {"label": torch.tensor([0, 1, 1])}}
    with torch.inference_mode():
        batch = Batch(["a", "b", "c"], values, targets)  # type: ignore[arg-type]
        encoded = model.encode_batch(batch)
        logits = model.heads(batch, encoded)["color"].predictions["logits"]
        task: Any = model.tasks["color"]
        view = model.represent({"image": "i"}, encoded, 3)
        return [*task.probabilities(logits).flatten().tolist(), *view.fused.tokens.flatten().tolist()]


def test_a_fresh_process_gives_the_same(saved: tuple[Model, Path]) -> None:
    model, folder = saved
    code = (
        "import json, sys; from pathlib import Path; from mmbm_core.saved import load_model;"
        "from tests.mmbm_core.test_saved import outputs; m, c = load_model(Path(sys.argv[1]));"
        "print(json.dumps([outputs(m), c['metrics'], 'ray' in sys.modules]))"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=root)
    assert found.returncode == 0, found.stderr
    there, metrics, ray = json.loads(found.stdout.splitlines()[-1])
    np.testing.assert_allclose(there, outputs(model), atol=1e-6)
    assert metrics == {"color/accuracy": 0.5} and ray is False


def test_saving_what_was_loaded_changes_nothing(saved: tuple[Model, Path], tmp_path: Path) -> None:
    _, folder = saved
    model, content = load_model(folder)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    save_model(model, tmp_path, facts={key: content[key] for key in ("metrics", "result")})
    before, after = content["files"], read_bundle(tmp_path)["files"]
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"encoders/text/config.json"}  # transformers adds what it did not know before
    np.testing.assert_array_equal(outputs(load_model(tmp_path)[0]), outputs(model))


def copied(folder: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, target))


def test_every_file_is_watched(saved: tuple[Model, Path], tmp_path: Path) -> None:
    _, folder = saved
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert {"bundle.json", "model.safetensors", "tasks/say/tokenizer.json", "encoders/text/config.json"} <= set(names)
    rng = np.random.default_rng(0)
    broken = copied(folder, tmp_path / "b")
    for name in names:
        file, whole = broken / name, (folder / name).read_bytes()
        flips = 40 if name == "bundle.json" else 2
        spoilt = [whole[: len(whole) // 2], whole[:-1], b""]
        for at in rng.integers(len(whole) * 8, size=flips).tolist():
            spoilt.append(whole[: at // 8] + bytes([whole[at // 8] ^ (1 << at % 8)]) + whole[at // 8 + 1 :])
        for data in spoilt:
            file.write_bytes(data)
            if name == "bundle.json" and _says_the_same(data, whole):
                continue
            with pytest.raises(UsageError, match="damaged|no bundle|this program reads") as error:
                read_bundle(broken)
            assert str(broken) in str(error.value) and "\n" not in str(error.value)
        file.unlink()
        with pytest.raises(UsageError, match="missing|no bundle"):
            load_model(broken)
        file.write_bytes(whole)
    load_model(broken)


def _says_the_same(data: bytes, whole: bytes) -> bool:
    """A flipped bit of white space, or of the case of an escape."""
    try:
        return bool(json.loads(data) == json.loads(whole))
    except ValueError:
        return False


def test_other_bundles_are_refused(saved: tuple[Model, Path], tmp_path: Path) -> None:
    _, folder = saved
    broken = copied(folder, tmp_path / "b")
    content = json.loads((folder / "bundle.json").read_text())

    def write(**changed: Any) -> None:
        made = {k: v for k, v in (content | changed).items() if k != "sha256"}
        (broken / "bundle.json").write_text(json.dumps(made | {"sha256": _own_digest(made)}))

    (broken / "bundle.json").write_text(json.dumps({k: v for k, v in content.items() if k != "sha256"}))
    with pytest.raises(UsageError, match="is damaged"):
        load_model(broken)
    write(format=99)
    with pytest.raises(UsageError, match="has format 99, this program reads 1: use the one that wrote it"):
        load_model(broken)
    write(files=content["files"] | {"../outside": "00"})
    with pytest.raises(UsageError, match="names ../outside, which lies outside the bundle"):
        load_model(broken)
    write(spec=content["spec"] | {"width": 48})
    with pytest.raises(UsageError, match="does not fit"):
        load_model(broken)
    write(spec=content["spec"] | {"fusion": None})
    with pytest.raises(UsageError, match="weights do not fit the spec: .*fusion"):
        load_model(broken)
    with pytest.raises(UsageError, match="is no bundle: it has no bundle.json"):
        load_model(tmp_path)
