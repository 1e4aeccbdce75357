"""Seeded data for the benchmarks, made from the two photographs in scikit-learn and from word lists."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from PIL import Image

_WORDS = (
    "the of and a to in is you that it he was for on are as with his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could "
    "people my than first water been call who oil its now find long down day did get come made may part photograph"
).split()


def texts(count: int, *, kind: str, seed: int = 0) -> list[str]:
    """`short`: 4 to 14 words, like spoken requests. `long`: log-normal length, median 47 words, at most 400."""
    rng = np.random.default_rng(seed)
    if kind == "short":
        lengths = rng.integers(4, 15, count)
    else:
        lengths = np.clip(rng.lognormal(np.log(47), 1.0, count), 1, 400).astype(int)
    return [" ".join(rng.choice(_WORDS, n)) for n in lengths]


def jpegs(count: int, *, size_px: tuple[int, int], seed: int = 0) -> list[bytes]:
    """Crops of the two photographs, enlarged to `size_px` (width, height), with fresh noise."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    made = []
    for index in range(count):
        photo = photos[index % 2]
        width = int(rng.integers(photo.width // 2, photo.width))
        height = min(photo.height, width * size_px[1] // size_px[0])
        x, y = int(rng.integers(0, photo.width - width + 1)), int(rng.integers(0, photo.height - height + 1))
        pixels = np.asarray(photo.crop((x, y, x + width, y + height)).resize(size_px, Image.Resampling.BICUBIC))
        noisy = np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, "JPEG", quality=88)
        made.append(out.getvalue())
    return made


def sounds(count: int, *, seed: int = 0, rate_hz: int = 16_000) -> list[bytes]:
    """WAV of gliding tones in noise, 0.5 to 8 s."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        time_s = np.arange(int(rng.uniform(0.5, 8.0) * rate_hz)) / rate_hz
        wave = 0.3 * np.sin(2 * np.pi * (rng.uniform(80, 400) + rng.uniform(-30, 30) * time_s) * time_s)
        out = io.BytesIO()
        soundfile.write(out, wave + rng.normal(0, 0.02, len(wave)), rate_hz, format="WAV", subtype="PCM_16")
        made.append(out.getvalue())
    return made


def write_parquet(path: Path, column: str, values: list[str] | list[bytes], *, files: int = 4) -> None:
    """Values as `files` Parquet files with an id column."""
    path.mkdir(parents=True, exist_ok=True)
    bounds = np.linspace(0, len(values), files + 1).astype(int)
    for file, (start, stop) in enumerate(pairwise(bounds)):
        ids = [f"r{i:07d}" for i in range(start, stop)]
        table = pa.table({"id": ids, column: values[start:stop]})
        pq.write_table(table, path / f"{file:03d}.parquet", row_group_size=256)


def small_clip(folder: Path, *, seed: int = 0) -> str:
    """A CLIP of random weights whose vision tower has about 5.5 million, with a byte-level tokenizer made here."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    tower = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "<|startoftext|>", "<|endoftext|>"])}
    ends = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(vocabulary), "pad_token_id": ends["eos_token_id"]},
        vision_config={**tower, "image_size": 224, "patch_size": 32},
        projection_dim=256,
    )
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>", special_tokens=[(t, vocabulary[t]) for t in list(vocabulary)[-2:]]
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|startoftext|>", eos_token="<|endoftext|>",
        pad_token="<|endoftext|>", model_max_length=77,
    ).save_pretrained(folder)  # fmt: skip
    return str(folder)


def talker(folder: Path, *, seed: int = 0) -> str:
    """A bundle that answers dialogues as large as the recipe xdailydialog-dialogue's, with a decoder that is random."""
    import torch

    from mmbm_core.bpe import train_bpe
    from mmbm_core.encoders import build_encoder
    from mmbm_core.model import Model
    from mmbm_core.saved import save_model
    from mmbm_core.spec import ModelSpec

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    made_up = ["".join(rng.choice(list("aeioubdfgklmnprst"), rng.integers(2, 9))) for _ in range(4000)]
    bpe = train_bpe([" ".join(rng.choice(made_up, 12)) for _ in range(4000)], vocab_size=4000)
    decoder = {"layers": 2, "heads": 6, "feed_forward": 4, "vocab_size": 4000, "max_tokens": 48}
    task = {
        "kind": "dialogue", "inputs": {"text": "turn.context"}, "target": "said", "turns": 3, "decoder": decoder,
    }  # fmt: skip
    encoders = {"text": {"model": "minilm", "tokens": "all"}}
    spec = ModelSpec.model_validate({"encoders": encoders, "tasks": {"answer": task}})
    minilm = build_encoder("minilm")
    assets = {"answer": {"tokenizer.json": bpe.encode()}}
    model = Model(spec, widths={"text": minilm.width}, encoders={"text": minilm}, assets=assets)
    for weight in model.tasks["answer"].decoder.parameters():  # so large that it does not repeat itself
        weight.data.normal_(0, 0.4) if weight.dim() == 2 else None
    folder.mkdir(parents=True)
    save_model(model.eval(), folder, facts={"metrics": {}})
    return str(folder)
