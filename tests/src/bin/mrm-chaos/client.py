"""A client in Python; says what the one in Rust does. Arguments: SOCKET MODELS SEED COUNT."""

import pathlib
import random
import select
import sys

import mrm

HELD_MAX = 1


def say(text):
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def compare(word, model, path):
    """Says `word BYTES` if the model is its file."""
    expected = path.read_bytes()
    if model.raw(0) != expected:
        say("V a model is not its file (Python)")
    elif word:
        say(f"{word} {len(expected)}")


def main():
    socket, directory, seed, count = sys.argv[1:]
    paths = [pathlib.Path(directory) / f"m{at:03}.safetensors" for at in range(int(count))]
    dice = random.Random(int(seed))
    client, held, rests = None, {}, False
    while True:
        ready, _, _ = select.select([0], [], [], None if rests else 0.003)
        if ready:
            if not sys.stdin.buffer.raw.read(64):
                return
            for at, model in held.items():
                compare("c", model, paths[at])
                model.close()
            held, rests = {}, True
            say("holding 0 0")
            continue
        try:
            client = client or mrm.Client(socket)
            at = dice.randrange(1 + dice.randrange(1 + dice.randrange(len(paths))))
            if at in held or len(held) >= HELD_MAX:
                at, model = held.popitem()
                compare(None, model, paths[at])
                model.close()
                continue
            model = client.open(f"m{at:03}", wait=3.0)
            compare("o", model, paths[at])
            held[at] = model
        except mrm.MrmError as error:
            say(f"r {error.code}")


main()
