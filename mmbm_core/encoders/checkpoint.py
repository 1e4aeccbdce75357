"""Find a checkpoint by name and see which kind of encoder it is."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmbm_core.compress.layout import LAYOUT_FILE
from mmbm_core.compress.stored import is_compressed, load_network
from mmbm_core.errors import UsageError
from mmbm_core.names import BUNDLE_FILE

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "*/config.json", "*/model.safetensors")
"""What is fetched of a Hugging Face repository: no pickles, no code."""

WORD2VEC_FILE = "word2vec.json"
"""What makes a folder one that `mmbm word2vec` wrote."""

_UNUSED = {"pooler", "masked_spec_embed", "mask_token"}
"""Parts that many checkpoints lack and that no vector of a single tower needs."""


def locate(name: str, *, presets: tuple[str, ...]) -> str:
    """Folder of the checkpoint: `name` itself where it is a folder, else fetched from the Hugging Face Hub.

    Word vectors may be a file.

    Raises:
        UsageError: not a checkpoint folder and not reachable on the Hub.
    """
    folder = Path(name).expanduser()
    if _is_word2vec(folder):
        return str(folder)
    if folder.is_dir():
        if (folder / BUNDLE_FILE).is_file():
            raise UsageError(f"{name} is a trained bundle, not an encoder: give one of its encoders, {name}/encoders/M")
        if not (folder / "config.json").is_file():
            raise UsageError(
                f"model folder {name} has no config.json: give the folder of a transformers checkpoint, or of a "
                f"trained bundle, which has a {BUNDLE_FILE}"
            )
        return str(folder)
    if folder.is_absolute() or name.startswith("."):
        raise UsageError(f"no such model folder: {name}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return snapshot_download(name, allow_patterns=list(_FILES))
    except HFValidationError as error:
        raise UsageError(_unknown(name, presets, "it is no valid Hugging Face id")) from error
    except Exception as error:  # the Hub's client raises many kinds; for the user it is one: not reachable
        raise UsageError(_unknown(name, presets, f"{type(error).__name__} from the Hugging Face Hub")) from error


def kind_of(folder: str) -> str:
    """`word2vec`, or from the checkpoint's config `text`, `vision`, `speech`, `clip` or `clap`.

    Raises:
        UsageError: a model type that transformers does not know.
    """
    if _is_word2vec(Path(folder)):
        return "word2vec"
    from transformers.models.auto import modeling_auto as auto

    model_type = json.loads((Path(folder) / "config.json").read_text()).get("model_type")
    if model_type in ("clip", "siglip", "siglip2"):
        return "clip"
    if model_type == "clap":
        return "clap"
    if model_type in auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES or model_type == "whisper":
        return "speech"
    images = {*auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, *auto.MODEL_FOR_IMAGE_MAPPING_NAMES}
    if model_type in images or str(model_type).endswith("_vision_model"):
        return "vision"
    if model_type in auto.MODEL_MAPPING_NAMES:
        return "text"
    raise UsageError(f"model type {model_type!r} of {folder} is not supported: no text, image, audio or joint encoder")


def _is_word2vec(path: Path) -> bool:
    return path.is_file() or (path / WORD2VEC_FILE).is_file()


def load_model(folder: str, *, loader: Any = None, whole: bool = False) -> tuple[Any, set[str]]:
    """The model of a checkpoint folder in float32, and the names of its weights that the checkpoint lacks.

    Lacking weights that no vector needs (poolers, mask tokens, decoders) are zero instead of random, so that two
    loads have one fingerprint.

    Args:
        loader: a transformers model class; None takes AutoModel.
        whole: every weight is needed.

    Raises:
        UsageError: no model.safetensors, or it lacks weights that are needed.
    """
    import torch
    from transformers import AutoModel

    if is_compressed(Path(folder)):
        return _load_compressed(Path(folder), loader or AutoModel), set()
    try:
        with _quiet():
            model, report = (loader or AutoModel).from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
            )
    except OSError as error:
        raise UsageError(f"model folder {folder} can't be loaded: {error}") from error
    missing = set(report["missing_keys"])
    unused = (
        set() if whole else _UNUSED | ({"decoder"} if getattr(model.config, "is_encoder_decoder", False) else set())
    )
    needed = sorted(name for name in missing if not unused & set(name.split(".")))
    if needed or report["mismatched_keys"]:
        wrong = needed + sorted(str(key) for key in report["mismatched_keys"])
        raise UsageError(f"the weights of {folder} do not fit its config.json: {', '.join(wrong[:5])} ({len(wrong)})")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in missing:
                parameter.zero_()
    return model, missing


def _load_compressed(folder: Path, loader: Any) -> Any:
    """A model that `mmbm compress` made smaller than its config says."""
    from transformers import AutoConfig

    with _quiet():
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model = (loader.from_config if hasattr(loader, "from_config") else loader._from_config)(config)
    load_network(model, folder)
    model.name_or_path = str(folder)
    return model


def save_checkpoint(model: Any, folder: Path) -> None:
    """Save a transformers model beside copies of what its checkpoint holds: tokenizer, preprocessor, pooling."""
    source = Path(model.name_or_path)
    for file in {file for pattern in _FILES for file in source.glob(pattern)}:
        anew = ".safetensors" in file.name or file.name == LAYOUT_FILE  # its weights, and what they are cut to
        if file.parent == source and anew:
            continue
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    with _quiet():
        model.save_pretrained(folder)


def load_tokenizer(folder: str) -> Any:
    """The tokenizer of a checkpoint folder.

    Raises:
        UsageError: no tokenizer files.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(_lacks(folder, "tokenizer.json and tokenizer_config.json")) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes an empty one where files are missing
        raise UsageError(_lacks(folder, "tokenizer.json and tokenizer_config.json"))
    return tokenizer


def load_preprocessor(folder: str, *, loader: Any) -> Any:
    """The image processor or feature extractor of a checkpoint folder.

    Args:
        loader: AutoImageProcessor or AutoFeatureExtractor of transformers.

    Raises:
        UsageError: no preprocessor file.
    """
    try:
        return loader.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(_lacks(folder, "preprocessor_config.json")) from error


def settings(preprocessor: Any) -> dict[str, Any]:
    """What a feature extractor does, without the names that only say where it came from."""
    return {k: v for k, v in preprocessor.to_dict().items() if not k.startswith("_") and k != "processor_class"}


def _lacks(folder: str, files: str) -> str:
    return f"model folder {folder} lacks {files}: copy them from where the checkpoint came from"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and tables on standard error."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _unknown(name: str, presets: tuple[str, ...], why: str) -> str:
    return (
        f"unknown model {name!r} ({why}). Allowed: a preset ({', '.join(presets)}), a checkpoint folder, or a Hugging "
        f"Face id. Offline: run `hf download {name} --local-dir DIR` where there is a network and give DIR"
    )
