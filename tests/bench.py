"""``make bench``: what the fast paths gain, both sides measured in one run on one thread.

Seconds are CPU seconds, so that a busy machine disturbs little; no number decides a test.
"""

import copy
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from torch.utils.flop_counter import FlopCounterMode

from dalle3lib import (
    arm,
    captioner,
    decoder_network,
    decoder_samples,
    decoder_scores,
    diffusion,
    paths,
    text,
    unet,
    vae,
)
from dalle3lib.caption_decoding import encode_images
from dalle3lib.images import stack, to_tensor
from dalle3lib.train import update_ema
from dalle3lib.world import World, render, scene

LENGTHS = (20, 40, 76)  # tokens per caption
BATCHES = (16, 128)
CONTEXT = 76
ARMS = (  # widths and batch of a U-Net
    ((32, 64, 96), 64),
    ((32, 64, 96), 128),
    ((64, 96, 128), 128),
)


def cpu_seconds(repeats: int, function: Callable, *arguments, **options) -> float:
    """The least CPU seconds of ``repeats`` calls."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function(*arguments, **options)
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
    rounded = captioner.to_bfloat16(copy.deepcopy(model))
    print("captioning (world CoCa): captions/s of one core, microseconds per token after the image")
    header = (
        f"{'batch':>5} {'tokens':>6} {'uncached':>9} {'cached':>8} {'ratio':>6} {'us/token':>9}"
    )
    print(f"{header} {'bf16':>8} {'us/token':>9}")
    for batch in BATCHES:
        images = torch.randn(batch, 3, 64, 64)
        with torch.inference_mode():
            encoding = cpu_seconds(5, encode_images, model, images)
        for length in LENGTHS:
            task = {"max_len": length, "end_id": -1}  # no caption ends early
            uncached = cpu_seconds(1, captioner.generate_uncached, model, images, **task)
            line = f"{batch:5} {length:6} {batch / uncached:9.1f}"
            for each in (model, rounded):
                cached = cpu_seconds(5, captioner.generate, each, images, **task)
                ratio = f" {uncached / cached:5.1f}x" if each is model else ""
                token = 1e6 * (cached - encoding) / (batch * (length - 1))
                line += f" {batch / cached:8.1f}{ratio} {token:9.1f}"
            print(line, flush=True)


def caption_for(seconds: float) -> float:
    """Captions per second of wall time that one process writes during ``seconds``."""
    torch.set_num_threads(1)
    model, images = world_captioner(), torch.randn(128, 3, 64, 64)
    task = {"max_len": 40, "end_id": -1}
    captioner.generate(model, images, **task)
    rounds, start = 0, time.perf_counter()
    while time.perf_counter() < start + seconds:
        captioner.generate(model, images, **task)
        rounds += 1
    return 128 * rounds / (time.perf_counter() - start)


def two_processes(seconds: float = 5) -> None:
    """Captions per second of two processes side by side, against one alone; wall time."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        alone = pool.submit(caption_for, seconds).result()
        together = sum(pool.map(caption_for, [seconds, seconds]))
    print(f"captions/s (40 tokens, batch 128, wall time): {alone:.0f} with 1 process", end=", ")
    print(f"{together:.0f} with 2; {os.getloadavg()[0]:.1f} processes were busy on this machine")


def rendering() -> None:
    """Scenes drawn from the generator, and pictures rendered, per second."""
    specs = [scene("train", index) for index in range(2000)]
    draw = cpu_seconds(3, lambda: [scene("train", index) for index in range(2000)])
    render_all = cpu_seconds(3, lambda: [render(spec) for spec in specs])
    print(f"world: {2000 / draw:,.0f} scenes/s drawn, {2000 / render_all:,.0f} pictures/s rendered")


def gemm_rate(size: int = 1024) -> float:
    """FLOP/s of a square fp32 matrix product: what the core can do at best."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / cpu_seconds(10, torch.matmul, a, b)


def one_step(model, loss: Callable) -> Callable[[], None]:
    """Everything a training step does, as a function: loss, backward pass, AdamW, average."""
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    average = {name: value.clone() for name, value in model.state_dict().items()}

    def step() -> None:
        loss(0)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_ema(average, model, decay=0.995, step=1000)

    return step


def training() -> None:
    """Training steps of arms' U-Nets: images per second, and the share of the GEMM rate.

    First of loss and backward pass alone, then of the whole step, whose clipping, AdamW and moving
    average hardly multiply matrices and cost the same for a batch of any size.
    """
    latents = torch.randn(256, 4, 8, 8)
    states = [torch.randn(15 + i % 16, 128).half() for i in range(256)]
    best = gemm_rate()
    print(f"training an arm (fp32), one core; GEMM {best / 1e9:.0f} GFLOP/s")
    print(f"{'':40} {'backward':>14} {'whole step':>14}")
    for channels, batch in ARMS:
        model = unet.build(channels).to(memory_format=torch.channels_last)
        options = {"seed": 0, "batch": batch, "ratio": 95, "dropout": 0.1}
        loss = diffusion.step_loss(model, latents, states, states, **options)

        def backward(loss=loss) -> None:
            loss(0)["loss"].backward()

        with FlopCounterMode(display=False) as counter:
            backward()
        flops = counter.get_total_flops() / batch
        line = f"{'/'.join(map(str, channels)):>11} batch {batch:3} {flops / 1e9:.2f} GFLOP/image:"
        for part in (backward, one_step(model, loss)):
            rate = batch / cpu_seconds(5, part)
            line += f" {rate:5.0f}/s ({rate * flops / best:4.0%})"
        print(line, flush=True)


def caching(batch: int = 64) -> None:
    """A training step from the cache beside one that encodes its images and captions first.

    Encoding in the loop is what diffusers' ``train_text_to_image.py`` does; the U-Net and all else
    is the same.
    """
    records = list(World("train", 2 * batch))
    pictures, captions = stack(records), [r.descriptive for r in records]
    autoencoder = vae.load(paths.foundation("vae"))
    encoder, tokenizer = text.load(paths.foundation("t5"))
    options = {"seed": 0, "batch": batch, "ratio": 95, "dropout": 0.1}

    def encode(rows: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        with torch.no_grad():
            latents = autoencoder.encode(to_tensor(pictures[rows])).latent_dist.mean
        return latents, text.encode(encoder, tokenizer, [captions[i] for i in rows])

    latents, states = encode(list(range(len(records))))
    model = unet.build().to(memory_format=torch.channels_last)
    cached = one_step(model, diffusion.step_loss(model, latents, states, states, **options))

    def in_the_loop() -> None:
        encode(list(range(batch)))
        cached()

    slow, fast = cpu_seconds(5, in_the_loop), cpu_seconds(5, cached)
    print(f"an arm's training step, batch {batch}: {batch / slow:.0f} images/s with both encoders "
          f"in the loop, {batch / fast:.0f} from the cache: {slow / fast:.2f}x")  # fmt: skip


def variants(batch: int = 64) -> None:
    """A training step of the same U-Net in other number formats and memory layouts."""
    latents = torch.randn(256, 4, 8, 8)
    states = [torch.randn(15 + i % 16, 128).half() for i in range(256)]
    options = {"seed": 0, "batch": batch, "ratio": 95, "dropout": 0.1}
    print(f"an arm's training step, batch {batch}, images/s:", end="")
    for name, layout, rounded in (
        ("fp32", torch.contiguous_format, False),
        ("fp32 channels-last", torch.channels_last, False),
        ("bf16 autocast", torch.contiguous_format, True),
        ("bf16 autocast channels-last", torch.channels_last, True),
    ):
        model = unet.build().to(memory_format=layout)
        loss = diffusion.step_loss(model, latents, states, states, **options)

        def autocast(step: int, loss=loss, rounded=rounded) -> dict[str, torch.Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
                return loss(step)

        print(f" {batch / cpu_seconds(5, one_step(model, autocast)):.0f} {name};", end="")
    print(flush=True)


def compiling(batch: int = 64) -> None:
    """A training step of the same U-Net as it is and compiled, and what compiling cost first."""
    latents = torch.randn(256, 4, 8, 8)
    states = [torch.randn(15 + i % 16, 128).half() for i in range(256)]
    options = {"seed": 0, "batch": batch, "ratio": 95, "dropout": 0.1}
    model = unet.build().to(memory_format=torch.channels_last)
    plain = one_step(model, diffusion.step_loss(model, latents, states, states, **options))
    fused = diffusion.step_loss(
        arm.compiled(model), latents, states, states, multiple=arm.TOKENS, **options
    )
    first = cpu_seconds(1, one_step(model, fused))
    before, after = cpu_seconds(5, plain), cpu_seconds(5, one_step(model, fused))
    print(f"an arm's training step, batch {batch}: {batch / before:.0f} images/s as it is, "
          f"{batch / after:.0f} compiled: {before / after:.2f}x, after {first:.0f} s")  # fmt: skip


def decoding(pictures: int = 16) -> None:
    """What the consistency decoder costs beside the autoencoder's own, in time and memory."""
    model = vae.load(paths.foundation("vae"))
    teacher, student = (
        decoder_network.load(paths.foundation(name)) for name in ("decoder-teacher", "decoder")
    )
    ways = decoder_scores.decoders(model, teacher, student)
    table = decoder_samples.cost(torch.randn(pictures, 4, 8, 8), ways)
    print(f"decoding {pictures} pictures of 64 pixels; time and memory are ratios to the VAE's")
    print(table.round(2).to_string())


def main() -> None:
    """Runs every bench and prints its table."""
    torch.set_num_threads(1)
    rendering()
    training()
    variants()
    compiling()
    decoding()
    caching()
    captioning()
    two_processes()


if __name__ == "__main__":
    main()
