"""The only saved form of a trained model: a folder of JSON, safetensors and tokenizer files.

bundle.json      format, spec, widths, metrics, space, sha256 of every other file and of itself; written last
model.safetensors  adapters, fusion, task heads
layout.json      here and in encoders/M: the sizes of what `mmbm compress` made smaller than spec or config say
tasks/NAME/      files of tasks that need some: vocabularies
encoders/M/      each modality's encoder, as `build_encoder` reads it: a transformers encoder is a plain checkpoint;
                 model.onnx beside it where `mmbm export` wrote the bundle
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from pydantic import ValidationError
from torch import Tensor

from mmbm_core.compress.layout import LAYOUT_FILE, apply_layout, read_layout
from mmbm_core.compress.onnx import ONNX_FILE
from mmbm_core.compress.stored import finish_network, is_packed, read_weights
from mmbm_core.encoders import PRESETS, build_encoder
from mmbm_core.encoders.base import ENCODER_FILE, Encoder
from mmbm_core.errors import UsageError
from mmbm_core.model import Model
from mmbm_core.names import BUNDLE_FILE, split_part
from mmbm_core.sample import MODALITIES, Modality
from mmbm_core.spec import EncoderConfig, ModelSpec

WEIGHTS_FILE = "model.safetensors"
FORMAT = 1
_ENCODERS = "encoders"
_TASKS = "tasks"
_OWN_DIGEST = "sha256"
"""Of all else that bundle.json says."""


def save_model(model: Model, folder: Path, *, facts: Mapping[str, Any]) -> None:
    """Write a bundle into an empty folder.

    Args:
        model: holds all its encoders.
        facts: more for bundle.json: metrics, training, versions.
    """
    encoders = {}
    for modality, encoder in model.encoders.items():
        target = folder / _ENCODERS / modality
        target.mkdir(parents=True)
        encoder.save(target)  # type: ignore[operator]
        if encoder.cut or encoder.int8:
            finish_network(encoder.network, target, cut=encoder.cut, int8=encoder.int8)  # type: ignore[arg-type]
        config = model.spec.encoders[modality]  # type: ignore[index]
        options = {} if (target / ENCODER_FILE).is_file() else config.options  # that file holds them
        encoders[modality] = EncoderConfig(model=f"{_ENCODERS}/{modality}", tokens=config.tokens, options=options)
    for name, task in model.tasks.items():
        for file, content in task.assets().items():  # type: ignore[operator]
            path = folder / _TASKS / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    spec = model.spec.model_copy(update={"encoders": encoders})
    weights = {n: t.detach().cpu().contiguous().clone() for n, t in own_state(model).items()}
    safetensors.torch.save_file(weights, folder / WEIGHTS_FILE)
    finish_network(model, folder, cut=model.cut, int8=model.int8, leave=(f"{_ENCODERS}.",))
    digests = file_digests(folder)
    content = {
        "format": FORMAT,
        "space": hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16],
        "spec": spec.model_dump(mode="json"),
        "widths": {m: e.width for m, e in model.encoders.items()},
        **facts,
        "files": digests,
    }
    content[_OWN_DIGEST] = _own_digest(content)
    (folder / BUNDLE_FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False))


def file_digests(folder: Path) -> dict[str, str]:
    """The sha256 of every file of a bundle but bundle.json, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / BUNDLE_FILE)
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def onnx_file(folder: Path, modality: Modality) -> Path:
    """Where a bundle holds the ONNX of an encoder."""
    return folder / _ENCODERS / modality / ONNX_FILE


def with_facts(data: bytes, facts: Mapping[str, Any]) -> bytes:
    """Another bundle.json of the same bundle, with more facts or other ones."""
    content = {k: v for k, v in json.loads(data).items() if k != _OWN_DIGEST} | dict(facts)
    content[_OWN_DIGEST] = _own_digest(content)
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def own_state(model: Model) -> dict[str, Tensor]:
    """What a model holds beside its encoders."""
    return {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("encoders.")}


def read_content(folder: Path) -> dict[str, Any]:
    """bundle.json, with no look at the files it names.

    Raises:
        UsageError: no bundle, a version that this program does not know, a bundle.json that is damaged.
    """
    file = folder / BUNDLE_FILE
    if not file.is_file():
        raise UsageError(f"{folder} is no bundle: it has no {BUNDLE_FILE}")
    try:
        content = json.loads(file.read_bytes())
        version = content["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{file} is damaged ({type(error).__name__}): copy the bundle again") from error
    if version != FORMAT:
        raise UsageError(
            f"bundle {folder} has format {version}, this program reads {FORMAT}: use the one that wrote it"
        )
    if content.get(_OWN_DIGEST) != _own_digest(content) or not {"files", "space", "spec", "widths"} <= set(content):
        raise UsageError(f"{file} is damaged (its content does not fit its sha256): copy the bundle again")
    return content  # type: ignore[no-any-return]


def read_bundle(folder: Path) -> dict[str, Any]:
    """bundle.json, every file it names checked against its sha256.

    Raises:
        UsageError: as `read_content`, or a file is missing, changed or cut off.
    """
    file, content = folder / BUNDLE_FILE, read_content(folder)
    for name, digest in content["files"].items():
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            raise UsageError(f"{file} names {name}, which lies outside the bundle")
        if not path.is_file() or _sha256(path) != digest:
            raise UsageError(
                f"bundle file {path} is {'damaged' if path.is_file() else 'missing'}: copy the bundle again"
            )
    return content


class Part(NamedTuple):
    """A trained bundle, or some of its encoders, as a model's name gives it."""

    name: str
    """Of the bundle."""
    folder: Path
    modalities: tuple[Modality, ...]

    @property
    def parts(self) -> dict[str, tuple[Modality, ...]]:
        """Name of each encoder, with what it encodes."""
        return {f"{self.name}#{m}": (m,) for m in self.modalities}


def find_part(name: str, *, folders: Mapping[str, Path] | None = None) -> Part | None:
    """The trained bundle of this name, `BUNDLE#text` for its encoder of texts alone; None where it is none.

    Args:
        folders: where bundles lie that are not named by their folder.

    Raises:
        UsageError: bundle.json can't be used, or the bundle has no such encoder.
    """
    base, modality = split_part(name)
    if name in PRESETS:
        return None
    for candidate, only in {name: "", base: modality}.items():
        folder = (folders or {}).get(candidate, Path(candidate).expanduser())
        if (folder / BUNDLE_FILE).is_file():
            known = read_content(folder)["spec"]["encoders"]
            if only and only not in known:
                raise UsageError(f"bundle {base} has no encoder of {only}; it has those of {', '.join(known)}")
            return Part(candidate, folder, tuple(m for m in MODALITIES if m in known and only in ("", m)))
    return None


def load_model(folder: Path, *, only: Collection[Modality] | None = None) -> tuple[Model, dict[str, Any]]:
    """The model of a bundle, ready for inference, and bundle.json.

    Args:
        only: modalities whose encoders are loaded; None loads all.

    Raises:
        UsageError: as `read_bundle`, or the spec and the weights do not fit.
    """
    content = read_bundle(folder)
    _check_layouts(folder, content)
    try:
        spec = ModelSpec.model_validate(content["spec"])
        encoders: dict[Modality, Encoder] = {
            m: build_encoder(str(folder / _ENCODERS / m), **config.options)
            for m, config in spec.encoders.items()
            if only is None or m in only
        }
        for modality, encoder in encoders.items():
            file = onnx_file(folder, modality)  # only where its sha256 is checked
            encoder.onnx = file if file.relative_to(folder).as_posix() in content["files"] else None
        assets = {n: _assets(folder / _TASKS / n) for n in spec.tasks if (folder / _TASKS / n).is_dir()}
        model = Model(spec, widths=content["widths"], encoders=encoders, assets=assets)
        if (layout := read_layout(folder)) is not None:
            apply_layout(model, layout)
        model.cut, model.int8 = layout is not None, is_packed(folder)
        state = read_weights(folder)
        wrong = model.load_state_dict(state, strict=False)
    except (ValidationError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise UsageError(f"bundle {folder} does not fit this program: {' '.join(str(error).split())[:300]}") from error
    lacking = [name for name in wrong.missing_keys if not name.startswith("encoders.")]
    if lacking or wrong.unexpected_keys:
        raise UsageError(f"bundle {folder}: weights do not fit the spec: {', '.join(lacking + wrong.unexpected_keys)}")
    return model.eval().requires_grad_(False), content


def _check_layouts(folder: Path, content: Mapping[str, Any]) -> None:
    """Raises: UsageError: sizes that bundle.json knows nothing of, or that are an encoder's and not in its folder."""
    names = [LAYOUT_FILE, *(f"{_ENCODERS}/{m}/{LAYOUT_FILE}" for m in MODALITIES)]
    strange = [name for name in names if (folder / name).is_file() and name not in content["files"]]
    own = read_layout(folder)
    if own is not None:
        strange += [n for n in (*own.layers, *own.shapes) if n.split(".")[0] == _ENCODERS]
    if strange:
        raise UsageError(f"bundle {folder} is damaged: it has {strange[0]} where none belongs; copy the bundle again")


def _assets(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _own_digest(content: Mapping[str, Any]) -> str:
    """Of all that JSON keeps of `content`, but for the digest itself."""
    rest = json.loads(json.dumps({k: v for k, v in content.items() if k != _OWN_DIGEST}))
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = [
    "BUNDLE_FILE",
    "Part",
    "file_digests",
    "find_part",
    "load_model",
    "onnx_file",
    "own_state",
    "read_bundle",
    "read_content",
    "save_model",
    "with_facts",
]
