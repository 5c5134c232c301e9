"""How alike are these sentences? all-MiniLM-L6-v2 in numpy, on tensors that mrmd lends.

    python minilm.py --model sentence/minilm              # a registered model
    python minilm.py --path model.safetensors             # a file of one's own, through mrmd
    python minilm.py --path model.safetensors --reader safetensors    # without mrmd

The encoder is BERT: six layers of twelve heads. It reads its weights where they lie: with mrm,
that is memory shared by every process on the node.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping

import numpy as np
from fetch_minilm import cache_dir
from tokenizers import Tokenizer

LAYERS, HEADS, EPSILON, TOKENS_MAX = 6, 12, 1e-12, 256
ERFC = np.array([1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592], np.float32)
SENTENCES = [
    "A man is eating food.",
    "Someone is having a meal.",
    "The kernel maps the pages of the file.",
]
Weights = Mapping[str, np.ndarray]


def linear(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    # numpy has no erf. Abramowitz and Stegun 7.1.26: off by 1.5e-7 at most.
    z = np.abs(x) / np.float32(np.sqrt(2))
    t = 1 / (1 + 0.3275911 * z)
    tail = np.exp(-z * z) * t * np.polyval(ERFC, t)
    return x / 2 * (1 + np.sign(x) * (1 - tail))


def attention(w: Weights, name: str, x: np.ndarray) -> np.ndarray:
    tokens, width = x.shape
    query, key, value = (
        linear(w, f"{name}.self.{part}", x).reshape(tokens, HEADS, -1).swapaxes(0, 1)
        for part in ("query", "key", "value")
    )
    scores = query @ key.swapaxes(1, 2) / np.float32(np.sqrt(width // HEADS))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = scores / scores.sum(-1, keepdims=True) @ value
    mixed = mixed.swapaxes(0, 1).reshape(tokens, width)
    return layer_norm(w, f"{name}.output.LayerNorm", x + linear(w, f"{name}.output.dense", mixed))


def encode(w: Weights, ids: list[int]) -> np.ndarray:
    """The sentence as one vector of length 1."""
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(w, "embeddings.LayerNorm", x)
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        x = attention(w, f"{layer}.attention", x)
        inner = gelu(linear(w, f"{layer}.intermediate.dense", x))
        outer = linear(w, f"{layer}.output.dense", inner)
        x = layer_norm(w, f"{layer}.output.LayerNorm", x + outer)
    mean = x.mean(0)
    return mean / np.sqrt((mean * mean).sum())


def read(arguments: argparse.Namespace) -> tuple[Weights, dict[str, object]]:
    """The weights, and what it cost to have them at hand."""
    if arguments.reader == "safetensors":
        from safetensors.numpy import load_file

        start = time.perf_counter()
        weights = load_file(arguments.path)
        return weights, {"open_us": (time.perf_counter() - start) * 1e6, "origin": "file"}
    import mrm

    client = mrm.Client()
    start = time.perf_counter()
    model = client.open_path(arguments.path) if arguments.path else client.open(arguments.model)
    model.raw()[0]
    return model, {"open_us": (time.perf_counter() - start) * 1e6, "origin": model.origin}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sentence/minilm", help="name of the registered model")
    parser.add_argument("--path", help="a file instead; with --reader safetensors it is needed")
    parser.add_argument("--reader", choices=["mrm", "safetensors"], default="mrm")
    parser.add_argument("--tokenizer", default=str(cache_dir() / "tokenizer.json"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--hold", action="store_true", help="go on until standard input ends")
    parser.add_argument("sentences", nargs="*", default=SENTENCES)
    arguments = parser.parse_args()
    if arguments.reader == "safetensors" and not arguments.path:
        parser.error("--reader safetensors needs --path")

    tokenizer = Tokenizer.from_file(arguments.tokenizer)
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS_MAX)
    weights, cost = read(arguments)
    start = time.perf_counter()
    vectors = np.stack([encode(weights, tokenizer.encode(s).ids) for s in arguments.sentences])
    encode_ms = (time.perf_counter() - start) * 1e3
    similarities = vectors @ vectors.T
    if arguments.json:
        report = {"reader": arguments.reader, **cost, "tensors": len(weights)}
        report |= {"encode_ms": encode_ms, "sentences": arguments.sentences}
        print(json.dumps(report | {"similarities": similarities.tolist()}), flush=True)
    else:
        print(f"{cost['origin']}: {cost['open_us']:.0f} us to open, {encode_ms:.0f} ms to encode")
        for sentence, row in zip(arguments.sentences, similarities):
            print(" ".join(f"{value:6.3f}" for value in row), sentence, flush=True)
    if arguments.hold:
        sys.stdin.read()


if __name__ == "__main__":
    main()
