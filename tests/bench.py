"""``make bench``: what the fast paths gain, both sides measured in one run on one thread.

Seconds are CPU seconds, so that a busy machine disturbs little; no number decides a test.
"""

import copy
import time
from collections.abc import Callable

import torch

from dalle3lib import captioner, text

LENGTHS = (20, 40, 76)  # tokens per caption
BATCHES = (16, 128)
CONTEXT = 76


def cpu_seconds(function: Callable[[], object], repeats: int) -> float:
    """The least CPU seconds of ``repeats`` calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def world_captioner() -> captioner.open_clip.CoCa:
    """The world's CoCa with random weights, room for 76 tokens and a vocabulary of 1,024."""
    config = copy.deepcopy(captioner.WORLD_COCA)
    for tower in ("text_cfg", "multimodal_cfg"):
        config[tower]["context_length"] = CONTEXT
    tokenizer = text.train_tokenizer(["a red circle"], start=True)
    tokenizer.add_tokens([f"word{i}" for i in range(1024 - len(tokenizer))])
    return captioner.build(tokenizer, config=config).eval()


def captioning() -> None:
    """Captions per second, cached against uncached greedy decoding of full-length captions."""
    model = world_captioner()
    print("captioning (world CoCa, fp32): captions/s of one core, microseconds per token")
    print(f"{'batch':>5} {'tokens':>6} {'cached':>8} {'uncached':>9} {'ratio':>6} {'us/token':>9}")
    for batch in BATCHES:
        images = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            encoding = cpu_seconds(lambda: model.visual(images), repeats=5)
        for length in LENGTHS:
            cached, uncached = (
                cpu_seconds(lambda: decode(model, images, max_len=length, end_id=-1), repeats)
                for decode, repeats in ((captioner.generate, 3), (captioner.generate_uncached, 1))
            )  # with end_id -1 no caption ends early
            token = 1e6 * (cached - encoding) / (batch * (length - 1))
            print(
                f"{batch:5} {length:6} {batch / cached:8.1f} {batch / uncached:9.1f} "
                f"{uncached / cached:5.1f}x {token:9.1f}",
                flush=True,
            )


def main() -> None:
    """Runs every bench and prints its table."""
    torch.set_num_threads(1)
    captioning()


if __name__ == "__main__":
    main()
