"""`mmbm word2vec` and plain gensim on the same sentences: words/s of training, and WordSim-353.

    make bench-word2vec
    python tests/benchmarks/word2vec.py --texts captions.jsonl --column en --times 10

Without `--texts`: the Lee corpus that comes with gensim. Both have the same settings and threads, and take turns; the
plain one holds its sentences as lists in memory. Words/s are those of training, without start-up and counting.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from gensim.models import KeyedVectors, Word2Vec
from gensim.test.utils import datapath

from mmbm_core.words import tokenize

SETTINGS = {"vector_size": 100, "window": 5, "negative": 5, "min_count": 5, "workers": 2}


class Result(NamedTuple):
    """Of one training."""

    words_per_s: float
    wordsim: float
    """Spearman's correlation with the judgements of WordSim-353, of the pairs that are in the vocabulary."""


def wordsim(vectors: Any) -> float:
    """Of KeyedVectors."""
    _, spearman, _ = vectors.evaluate_word_pairs(datapath("wordsim353.tsv"))
    return float(spearman.statistic)


def ours(file: Path, folder: Path, epochs: int, seed: int) -> Result:
    """`mmbm word2vec`."""
    output = Path(tempfile.mkdtemp(dir=folder))
    settings = SETTINGS | {"epochs": epochs, "seed": seed}
    command = [str(Path(sys.executable).with_name("mmbm")), "word2vec", str(file), "--output", str(output)]
    done = subprocess.run(
        [*command, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    vectors = KeyedVectors.load_word2vec_format(str(output / "vectors.bin"), binary=True)
    return Result(json.loads(done.stdout)["words_per_s"], wordsim(vectors))


def plain(sentences: list[list[str]], epochs: int, seed: int) -> Result:
    """gensim as its documentation uses it."""
    model = Word2Vec(sg=1, hs=0, sample=1e-3, seed=seed, **SETTINGS)
    model.build_vocab(sentences)
    began = time.monotonic()
    model.train(sentences, total_examples=model.corpus_count, epochs=epochs)
    return Result(epochs * model.corpus_total_words / (time.monotonic() - began), wordsim(model.wv))


def main() -> None:
    """One line a turn on stderr, the medians on stdout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", help="JSON lines")
    parser.add_argument("--column", default="text", help="of --texts")
    parser.add_argument("--times", type=int, default=1, help="how often the texts follow each other")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    if args.texts:
        texts = [json.loads(line)[args.column] for line in Path(args.texts).read_text().splitlines()]
    else:
        texts = Path(datapath("lee_background.cor")).read_text().splitlines()
    texts = texts * args.times
    sentences = [[word.lower() for word in tokenize(text)] for text in texts]
    turns = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "texts.jsonl")
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        for seed in range(1, args.repeats + 1):
            turns.append((ours(file, Path(folder), args.epochs, seed), plain(sentences, args.epochs, seed)))
            print(f"seed {seed}: mmbm {turns[-1][0]}, gensim {turns[-1][1]}", file=sys.stderr)
    speed = statistics.median(mine.words_per_s / theirs.words_per_s for mine, theirs in turns)
    mine, theirs = (statistics.mean(turn[side].wordsim for turn in turns) for side in (0, 1))
    print(f"words/s: {speed:.2f} of plain gensim; WordSim-353: {mine:.3f}, plain gensim {theirs:.3f}")


if __name__ == "__main__":
    main()
