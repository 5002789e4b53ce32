"""How a caption is chosen: greedy, sampled, or by beam search; and how probable it is.

Each strategy is written once, over a reader that says what may follow (``caption_decoding``).
``generate`` gives it the fast reader, ``generate_uncached`` the whole model: the only difference
between the two is how the numbers are computed, and the tokens are the same.

The score of a caption is its log-probability, the sum over its tokens of the logarithm of the
probability that the model gives them after the ones before (equation 1). Adding up logits instead
would favour places where the network happens to put out large numbers. Nothing makes up for
length: of two captions the more probable one wins, and that tends to be the shorter one.
"""

from collections.abc import Callable

import open_clip
import torch
from torch import LongTensor, Tensor
from torch.nn import functional as F

from dalle3lib import UserError
from dalle3lib.caption_decoding import (
    WholeModel,
    all_logits,
    context_length,
    encode_images,
    is_causal,
    reader,
)

STRATEGIES = ("greedy", "beam", "sample")
BEAMS = 4  # unless told otherwise

# ---- strategies ----------------------------------------------------------------------------------


def most_probable(logits: Tensor, rows: Tensor, position: int) -> LongTensor:
    """Greedy choice: the most probable token of each row of logits [N, vocabulary], as [N]."""
    return logits.max(dim=-1).indices  # on a processor much faster than argmax


def sampling_probabilities(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """What sampling draws from, float64 [N, vocabulary], for logits [N, vocabulary]; sums to 1.

    In this order: logits are divided by ``temperature``; only the ``top_k`` most probable tokens
    are kept; of those, only the fewest most probable ones that together have at least the share
    ``top_p`` (nucleus sampling, Holtzman et al. 2020).
    """
    probabilities = (logits.double() / temperature).softmax(dim=-1)
    if top_k is None and top_p is None:
        return probabilities
    ranked, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ranked[:, top_k:] = 0
    if top_p is not None:
        before = (ranked.cumsum(dim=-1) - ranked) / ranked.sum(dim=-1, keepdim=True)
        ranked = ranked.masked_fill(before >= top_p, 0)
    kept = torch.zeros_like(ranked).scatter(-1, tokens, ranked)
    return kept / kept.sum(dim=-1, keepdim=True)


def sampler(noise: Tensor, **shape) -> Callable[[Tensor, Tensor, int], LongTensor]:
    """A choice of tokens drawn with the uniform numbers ``noise`` [B, max_len], one per place.

    The number says how far to go along the cumulative distribution (inverse transform sampling).
    ``shape`` goes to ``sampling_probabilities``.
    """

    def choose(logits: Tensor, rows: Tensor, position: int) -> LongTensor:
        cumulative = sampling_probabilities(logits, **shape).cumsum(dim=-1)
        # The float32 noise is at most 1 - 2 ** -24, so that this stays below the last entry.
        reached = noise[rows, position, None].double() * cumulative[:, -1:]
        return torch.searchsorted(cumulative, reached, right=True)[:, 0]

    return choose


def adding_up(choose: Callable, total: Tensor) -> Callable:
    """The same choice; the log-probability of what is chosen is added to ``total`` [B], in nats."""

    def scored(logits: Tensor, rows: Tensor, position: int) -> LongTensor:
        tokens = choose(logits, rows, position)
        total[rows] -= F.cross_entropy(logits.float(), tokens, reduction="none")
        return tokens

    return scored


def token_by_token(
    read: Callable, tokens: LongTensor, start: int, end_id: int, choose: Callable
) -> LongTensor:
    """Captions written in one go: tokens [B, max_len], of which the first ``start`` are given.

    ``choose(logits, rows, position)`` says which token comes at ``position`` in captions ``rows``.
    A caption that has ended leaves the batch.
    """
    rows = torch.arange(len(tokens), device=tokens.device)
    for position in range(start, tokens.shape[1]):
        following = choose(read(tokens[rows, :position]), rows, position)
        tokens[rows, position] = following
        going = (following != end_id).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(rows):
            rows = rows[going]
            read.keep(going)
    return tokens


def beam_search(
    read: Callable, tokens: LongTensor, start: int, end_id: int, beams: int
) -> tuple[LongTensor, Tensor]:
    """The most probable caption found for each image: tokens [B, max_len], first ``start`` given.

    Also returns their log-probabilities, float32 [B].

    For each image ``beams`` unfinished captions are in view. Each step extends all of them by all
    tokens and ranks the results by log-probability. Of the first ``beams`` results, one that ends
    is remembered if it beats the best that has ended before; the best ``beams`` that go on are the
    new view. Log-probabilities only fall, so an image is done as soon as its best ended caption is
    at least as probable as the best in view. A caption cut at max_len competes as it is.

    ``read`` holds ``beams`` captions for each image. One beam is greedy decoding.
    """
    best, best_score = tokens.clone(), torch.full([len(tokens)], -torch.inf, device=tokens.device)
    images = torch.arange(len(tokens), device=tokens.device)  # not done yet
    view = tokens.repeat_interleave(beams, dim=0)
    scores = best_score[:, None].repeat(1, beams)
    scores[:, 0] = 0  # all beams begin alike: only one counts
    for position in range(start, tokens.shape[1]):
        log_p = read(view[:, :position]).float().log_softmax(dim=-1)
        total = scores[..., None] + log_p.unflatten(0, (-1, beams))
        # Every beam ends at most once, so that among these at least ``beams`` go on.
        total, index = total.flatten(1).topk(2 * beams)
        beam, token = index // log_p.shape[1], index % log_p.shape[1]
        parents = beam + beams * torch.arange(len(images), device=beam.device)[:, None]
        results = view[parents]
        results[:, :, position] = token

        ends = token == end_id
        score, which = total[:, :beams].masked_fill(~ends[:, :beams], -torch.inf).max(dim=1)
        better = score > best_score[images]
        best_score[images[better]] = score[better]
        best[images[better]] = results[better, which[better]]

        going_on = ends.int().argsort(dim=1, stable=True)[:, :beams]
        scores = total.gather(1, going_on)
        open_images = scores[:, 0] > best_score[images]
        if not open_images.any():
            return best, best_score
        kept = open_images.nonzero(), going_on[open_images]
        images, scores, view = images[open_images], scores[open_images], results[kept].flatten(0, 1)
        read.keep(parents[kept].flatten())
    best[images] = view[::beams]  # cut, and still more probable than what has ended
    best_score[images] = scores[:, 0]
    return best, best_score


# ---- captions ------------------------------------------------------------------------------------


def generate(
    model: open_clip.CoCa,
    images: Tensor,
    *,
    max_len: int,
    strategy: str = "greedy",
    num_beams: int | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    temperature: float | None = None,
    prompt: LongTensor | None = None,
    generator: torch.Generator | None = None,
    end_id: int | None = None,
    make_reader: Callable = reader,
    return_log_probability: bool = False,
) -> LongTensor | tuple[LongTensor, Tensor]:
    """Captions of images float [B, 3, H, W]: token ids int64 [B, max_len].

    Each caption begins with its prompt, goes on until the end token or ``max_len`` tokens in all,
    and is filled up with pads; a row without end token after its prompt was cut. Options:

    - ``max_len``: tokens per caption, the prompt included.
    - ``strategy``: ``"greedy"`` (default) takes the most probable token each time; ``"sample"``
      draws it; ``"beam"`` looks for the most probable caption, see ``beam_search``.
    - ``num_beams``: captions kept in view for each image by beam search (default 4).
    - ``temperature``, ``top_k``, ``top_p``: how sampling changes the distribution, see
      ``sampling_probabilities`` (default: not at all).
    - ``generator``: where sampling gets its noise, one number per image and place, image by image.
      A caption depends on its own numbers alone, not on the others in the batch; batches drawn one
      after the other from one generator give the same captions whatever their size.
    - ``prompt``: int64 [B, P], how the captions begin (default: the model's start token).
    - ``end_id``: the end token (default: the model's own).
    - ``make_reader``: what computes the numbers (default: the fastest exact one).
    - ``return_log_probability``: also return each caption's log-probability given its image, what
      the function of that name computes with this prompt: float32 [B], in nats (default: no).

    The model should be in evaluation mode; its weights may be float32 or bfloat16. Raises
    ``UserError`` for options that do not fit each other or the model, such as a ``max_len`` over
    its context.
    """
    shape = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    shape = {name: value for name, value in shape.items() if value is not None}
    _check_strategy(strategy, num_beams, shape, generator)
    prompt, end_id = _checked(model, images, max_len, prompt, end_id)
    tokens = F.pad(prompt, (0, max_len - prompt.shape[1]), value=model.pad_id)
    beams = num_beams or BEAMS if strategy == "beam" else 1
    choose = most_probable
    open_rows = (prompt[:, -1] != end_id).nonzero()[:, 0]
    if strategy == "sample":  # all noise first: a caption's does not depend on the others
        noise = torch.rand(tokens.shape, generator=generator, device=generator.device)
        choose = sampler(noise.to(images.device)[open_rows], **shape)
    total = torch.zeros(len(tokens), device=tokens.device)
    if len(open_rows) and prompt.shape[1] < max_len:
        with torch.inference_mode():
            read = make_reader(model, images[open_rows], max_len, beams)
            start = (read, tokens[open_rows], prompt.shape[1], end_id)
            if strategy == "beam":
                written, scores = beam_search(*start, beams)
            else:
                scores = total[open_rows]
                choose = adding_up(choose, scores) if return_log_probability else choose
                written = token_by_token(*start, choose)
        tokens[open_rows], total[open_rows] = written, scores
    return (tokens, total) if return_log_probability else tokens


def generate_uncached(model: open_clip.CoCa, images: Tensor, **options) -> LongTensor:
    """The definition of what ``generate`` computes: the whole model on each growing caption."""
    return generate(model, images, make_reader=WholeModel, **options)


def log_probability(model: open_clip.CoCa, images: Tensor, tokens: LongTensor, **given) -> Tensor:
    """Log-probability of captions given their images, in nats: float32 [B].

    The sum of ``token_log_probabilities``, to which everything is given.
    """
    return token_log_probabilities(model, images, tokens, **given).sum(dim=1)


@torch.no_grad()
def token_log_probabilities(
    model: open_clip.CoCa,
    images: Tensor,
    tokens: LongTensor,
    *,
    prompt_length: int = 1,
    end_id: int | None = None,
) -> Tensor:
    """Log-probability of each token given the image and the ones before it: float32 [B, L - 1].

    ``images`` are float [B, 3, H, W], ``tokens`` int64 [B, L] as ``generate`` returns them; token
    t is entry t - 1. Counted are all tokens after the first ``prompt_length`` up to and with the
    end token (default: the model's own); the others are 0. The whole caption passes through the
    model at once, except with a text encoder that looks both ways: there each token is given its
    probability before the later ones are known, as when it was written.
    """
    _, end_id = _checked(model, images, tokens.shape[1], tokens, end_id)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    ends = (tokens == end_id) & (places >= prompt_length - 1)
    counted = (ends.cumsum(dim=1) - ends.long() == 0) & (places >= prompt_length)
    used = max(2, int((counted * (places + 1)).max()))  # what comes later changes nothing
    pads, tokens, counted = tokens.shape[1] - used, tokens[:, :used], counted[:, :used]
    if is_causal(model):
        logits = all_logits(model, encode_images(model, images), tokens[:, :-1])
    else:
        read = reader(model, images, tokens.shape[1])
        logits = [read(tokens[:, :length]) for length in range(1, tokens.shape[1])]
        logits = torch.stack(logits, dim=1)
    log_p = -F.cross_entropy(logits.float().transpose(1, 2), tokens[:, 1:], reduction="none")
    return F.pad(log_p.masked_fill(~counted[:, 1:], 0), (0, pads))


# ---- what is asked for ---------------------------------------------------------------------------


def _check_strategy(
    strategy: str, num_beams: int | None, shape: dict, generator: torch.Generator | None
) -> None:
    """Raises ``UserError`` unless the options belong to the strategy and make sense."""
    if strategy not in STRATEGIES:
        raise UserError(
            f"There is no strategy {strategy!r}: choose one of {', '.join(STRATEGIES)}."
        )
    if num_beams is not None and (strategy != "beam" or num_beams < 1):
        raise UserError(
            f"num_beams is {num_beams} with strategy {strategy!r}: it is 1 or more, with 'beam'."
        )
    if strategy != "sample" and (shape or generator is not None):
        given = [*shape, *(["generator"] if generator is not None else [])]
        raise UserError(
            f"{', '.join(given)} would change nothing with strategy {strategy!r}: leave it out, or "
            "choose 'sample'."
        )
    if strategy == "sample" and generator is None:
        raise UserError(
            "Sampling needs generator=torch.Generator().manual_seed(...), so that the captions can "
            "be made again."
        )
    if not shape.get("temperature", 1) > 0:
        raise UserError(f"temperature is {shape['temperature']}: it is a number above 0.")
    if shape.get("top_k", 1) < 1:
        raise UserError(f"top_k is {shape['top_k']}: it is a number of tokens, 1 or more.")
    if not 0 < shape.get("top_p", 1) <= 1:
        raise UserError(f"top_p is {shape['top_p']}: it is a share above 0 and up to 1.")


def _checked(
    model: open_clip.CoCa,
    images: Tensor,
    max_len: int,
    prompt: LongTensor | None,
    end_id: int | None,
) -> tuple[LongTensor, int]:
    """The prompt [B, P] and the end token with defaults filled in, or why it cannot be done."""
    context = context_length(model)
    if not 1 <= max_len <= context:
        raise UserError(
            f"max_len is {max_len}, but this captioner's context holds 1 to {context} tokens."
        )
    start_id = getattr(model, "start_id", None)
    end_id = getattr(model, "end_id", None) if end_id is None else end_id
    if end_id is None or (prompt is None and start_id is None):
        raise UserError(
            "The start and end tokens of this model are not known: load it with captioner.load or "
            "give prompt and end_id."
        )
    if prompt is None:
        prompt = torch.full((len(images), 1), start_id)
    if prompt.shape[0] != len(images) or not 1 <= prompt.shape[1] <= max_len:
        raise UserError(
            f"The prompt has shape {list(prompt.shape)}; for {len(images)} images and max_len "
            f"{max_len} it needs {len(images)} rows of 1 to {max_len} tokens."
        )
    return prompt.to(images.device), end_id
