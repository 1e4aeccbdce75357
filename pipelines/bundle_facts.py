"""What `mmbm inspect` says of a trained bundle."""

import json
from pathlib import Path
from typing import Any

from mmbm_core.encoders.base import ENCODER_FILE
from mmbm_core.encoders.checkpoint import WORD2VEC_FILE
from mmbm_core.sample import MODALITIES
from mmbm_core.saved import read_bundle
from workers.bundles import local_bundle

_TASK_FACTS = ("kind", "inputs", "left", "right", "label", "score", "target")
_LABELS = 20
"""Shown at most."""


def bundle_facts(path: str) -> dict[str, Any]:
    """What a trained bundle holds. Each of its files is checked; a bundle behind a URL is fetched.

    Raises:
        UsageError: no bundle, or a damaged one.
    """
    with local_bundle(path) as folder:
        content = read_bundle(folder)
        sizes = {name: (folder / name).stat().st_size for name in content["files"]}
        configs = {m: content["spec"]["encoders"][m] for m in MODALITIES if m in content["spec"]["encoders"]}
        encoders = {
            m: {
                "kind": _encoder_kind(folder / config["model"]),
                "tokens": config["tokens"],
                "width": content["widths"][m],
                "size_bytes": sum(size for name, size in sizes.items() if name.startswith(f"{config['model']}/")),
            }
            for m, config in configs.items()
        }
    spec = content["spec"]
    return {
        "kind": "bundle",
        "format": content["format"],
        "tasks": {name: _task_facts(config) for name, config in spec["tasks"].items()},
        "modalities": list(encoders),
        "encoders": encoders,
        "fusion": (spec["fusion"] or {}).get("kind"),
        "width": spec["width"] or content["widths"][next(iter(encoders))],
        "metrics": content.get("metrics", {}),
        **({"compression": content["compression"]} if "compression" in content else {}),
        "space": content["space"],
        "files": len(sizes),
        "size_bytes": sum(sizes.values()),
    }


def _encoder_kind(folder: Path) -> str:
    """Of an encoder in a bundle: MMBM's name for its own kinds, the model type of a transformers checkpoint."""
    if (folder / WORD2VEC_FILE).is_file():
        return "word2vec"
    file = folder / ENCODER_FILE
    facts = json.loads((file if file.is_file() else folder / "config.json").read_bytes())
    return str(facts.get("kind") or facts.get("model_type"))


def _task_facts(config: dict[str, Any]) -> dict[str, Any]:
    """Its kind, the columns that it reads, and its first labels."""
    facts = {name: config[name] for name in _TASK_FACTS if name in config}
    labels = config.get("labels")
    return {**facts, "num_labels": len(labels), "labels": labels[:_LABELS]} if labels else facts
