"""How captions are chosen: against brute force, by hand, and with the reader of a real model."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_coca import random_images, random_model, roberta_model, tiny_tokenizer

from dalle3lib import UserError, caption_search, captioner

END = 1


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_model(tokenizer)


class Table:
    """A reader whose logits are random numbers, drawn once for each image and prefix."""

    def __init__(self, images: int, vocabulary: int, seed: int, beams: int = 1, shift: float = 0):
        self.image = torch.arange(images).repeat_interleave(beams)
        self.vocabulary, self.seed, self.shift = vocabulary, seed, shift

    def logits(self, image: int, prefix: tuple[int, ...]) -> np.ndarray:
        generator = np.random.default_rng([self.seed, image, *prefix])
        return generator.normal(0, 2, self.vocabulary) + self.shift * generator.normal()

    def log_p(self, image: int, prefix: tuple[int, ...]) -> np.ndarray:
        logits = self.logits(image, prefix)
        return logits - np.log(np.exp(logits).sum())

    def keep(self, rows) -> None:
        self.image = self.image[rows]

    def __call__(self, tokens) -> torch.Tensor:
        assert len(tokens) == len(self.image)
        rows = zip(self.image.tolist(), tokens.tolist(), strict=True)
        return torch.tensor(np.array([self.logits(image, tuple(row)) for image, row in rows]))


def padded(caption: tuple[int, ...], max_len: int) -> list[int]:
    return [*caption, *[0] * (max_len - len(caption))]


def score(table: Table, image: int, caption: tuple[int, ...], start: int) -> float:
    places = range(start, len(caption))
    return sum(table.log_p(image, caption[:place])[caption[place]] for place in places)


def every_caption(table: Table, prompt: tuple[int, ...], max_len: int):
    """All captions that end, or reach ``max_len`` without having ended."""
    for length in range(len(prompt) + 1, max_len + 1):
        for words in itertools.product(range(table.vocabulary), repeat=length - len(prompt)):
            ended, early = words[-1] == END, END in words[:-1]
            if not early and (ended or length == max_len):
                yield prompt + words


def textbook_beam(table: Table, image: int, prompt, max_len: int, beams: int):
    """Beam search on lists: (log-probability, caption) of the best that ended or was cut."""
    view, ended = [(0.0, prompt)], []
    for _ in range(len(prompt), max_len):
        results = [
            (value + log_p, caption + (token,))
            for value, caption in view
            for token, log_p in enumerate(table.log_p(image, caption))
        ]
        results.sort(reverse=True)
        ended += [result for result in results[:beams] if result[1][-1] == END]
        view = [result for result in results if result[1][-1] != END][:beams]
    return max(ended + view)


def search(table: Table, prompts: list, max_len: int, beams: int) -> list[list[int]]:
    tokens = torch.tensor([padded(prompt, max_len) for prompt in prompts])
    return caption_search.beam_search(table, tokens, len(prompts[0]), END, beams)[0].tolist()


# ---- beam search ---------------------------------------------------------------------------------

cases = {
    "seed": st.integers(0, 10**6),
    "vocabulary": st.integers(2, 5),
    "length": st.integers(1, 3),
}


@given(**cases, beams=st.integers(1, 6), more=st.integers(1, 4))
def test_beam_search_is_the_textbook_s(seed, vocabulary, length, beams, more):
    prompts = np.random.default_rng(seed).integers(0, vocabulary, (4, length)).tolist()
    prompts = [tuple(prompt[:-1]) + (0,) for prompt in prompts]  # an end inside is no end
    found = search(Table(4, vocabulary, seed, beams), prompts, length + more, beams)
    plain = Table(4, vocabulary, seed)
    for image, prompt in enumerate(prompts):
        _, expected = textbook_beam(plain, image, prompt, length + more, beams)
        assert found[image] == padded(expected, length + more)


@given(seed=st.integers(0, 10**6), vocabulary=st.integers(2, 4), max_len=st.integers(2, 5))
def test_enough_beams_find_the_most_probable_caption_of_all(seed, vocabulary, max_len):
    beams = vocabulary ** (max_len - 1)
    (found,) = search(Table(1, vocabulary, seed, beams), [(0,)], max_len, beams)
    plain = Table(1, vocabulary, seed)
    captions = list(every_caption(plain, (0,), max_len))
    chances = [score(plain, 0, caption, 1) for caption in captions]
    assert math.isclose(sum(map(math.exp, chances)), 1)  # nothing is missing, nothing counts twice
    assert found == padded(captions[int(np.argmax(chances))], max_len)
    greedy = caption_search.token_by_token(
        Table(1, vocabulary, seed),
        torch.tensor([padded((0,), max_len)]),
        *(1, END, caption_search.most_probable),
    )
    length = next((i + 1 for i in range(1, max_len) if greedy[0, i] == END), max_len)
    assert max(chances) >= score(plain, 0, tuple(greedy[0, :length].tolist()), 1) - 1e-9


@given(seed=st.integers(0, 10**6), beams=st.integers(1, 4))
def test_beams_add_up_probabilities_and_not_logits(seed, beams):
    """A number added to all logits of a place changes no probability, so no caption either."""
    prompts = [(0,), (0,), (0,)]
    shifted = search(Table(3, 5, seed, beams, shift=50), prompts, 5, beams)
    for image, caption in enumerate(shifted):
        plain = Table(3, 5, seed, shift=50)
        _, expected = textbook_beam(plain, image, (0,), 5, beams)
        assert caption == padded(expected, 5)


def test_a_caption_that_ended_early_is_overtaken_by_a_better_one():
    class Fixed(Table):
        """Ends at once with probability 0.4; 'three, end' has 0.6 * 0.9 = 0.54."""

        def log_p(self, image, prefix):
            after = {(0,): [0, 0.4, 0, 0.6], (0, 3): [0.1, 0.9, 0, 0]}.get(prefix, [1, 0, 0, 0])
            return np.log(np.array(after) + 1e-12)

        logits = log_p

    assert search(Fixed(1, 4, 0, beams=2), [(0,)], 5, 2) == [[0, 3, 1, 0, 0]]


# ---- the strategies over a real model ------------------------------------------------------------


@given(data=st.data())
def test_every_strategy_gives_the_tokens_of_the_whole_model(model, tokenizer, data):
    images = random_images(data.draw(st.integers(1, 4)), data.draw(st.integers(0, 99)))
    max_len = data.draw(st.integers(3, 14))
    length = data.draw(st.integers(1, min(4, max_len)))
    rows = st.lists(st.integers(1, len(tokenizer) - 1), min_size=length, max_size=length)
    options = {"max_len": max_len, "prompt": torch.tensor([data.draw(rows) for _ in images])}
    strategy = data.draw(st.sampled_from(["greedy", "beam", "sample"]))
    options |= {"strategy": strategy, "return_log_probability": True}
    if strategy == "beam":
        options["num_beams"] = data.draw(st.integers(1, 5))
    elif strategy == "sample":
        options["temperature"] = data.draw(st.sampled_from([0.5, 1.0, 4.0]))
        options["top_k"] = data.draw(st.sampled_from([None, 5, 10**6]))
        options["top_p"] = data.draw(st.sampled_from([None, 0.3, 0.99]))
    seed = data.draw(st.integers(0, 99))

    def both(end_id: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            function(
                model,
                images,
                end_id=end_id,
                generator=torch.Generator().manual_seed(seed) if strategy == "sample" else None,
                **options,
            )
            for function in (captioner.generate, captioner.generate_uncached)
        ]

    likely = both(-1)[0][0][:, length - 1 :].flatten().tolist()
    model.text.pad_id = data.draw(st.sampled_from([0, *likely]))  # a token that does get written
    if model.text.pad_id in options["prompt"][:, 0]:
        model.text.pad_id = 0
    end_id = data.draw(st.sampled_from([-1, *likely]))  # captions end early
    (cached, score), (plain, _) = both(end_id)
    known = {"prompt_length": length, "end_id": end_id}
    expected = captioner.log_probability(model, images, plain, **known)
    model.text.pad_id = 0
    assert torch.equal(cached, plain)
    torch.testing.assert_close(score, expected, rtol=1e-4, atol=1e-4)


def test_one_beam_or_one_choice_is_greedy(model):
    images = random_images(12)
    end_id = int(captioner.generate(model, images, max_len=20, end_id=-1)[3, 6])
    greedy = captioner.generate(model, images, max_len=20, end_id=end_id)
    noise = {"strategy": "sample", "generator": torch.Generator().manual_seed(0)}
    for options in (
        {"strategy": "beam", "num_beams": 1},
        {**noise, "top_k": 1},
        {**noise, "top_p": 1e-6},
        {**noise, "temperature": 1e-4},
    ):
        tokens = captioner.generate(model, images, max_len=20, end_id=end_id, **options)
        assert torch.equal(tokens, greedy), options


def test_beams_of_a_batch_are_those_of_each_image_alone(model):
    images = random_images(8)
    options = {"max_len": 16, "strategy": "beam", "num_beams": 3}
    end_id = int(captioner.generate(model, images, end_id=-1, **options)[2, 5])
    together = captioner.generate(model, images, end_id=end_id, **options)
    assert len({int((row == 0).sum()) for row in together}) > 1  # of several lengths
    alone = [captioner.generate(model, x[None], end_id=end_id, **options)[0] for x in images]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("size", [1, 3, 5])
def test_samples_depend_on_the_generator_and_not_on_the_batch(model, size):
    images = random_images(15)
    options = {"max_len": 18, "strategy": "sample", "temperature": 3.0}
    end_id = int(
        captioner.generate(model, images, generator=torch.Generator(), end_id=-1, **options)[1, 4]
    )

    def sample(parts, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        options["generator"] = generator
        return torch.cat([captioner.generate(model, x, end_id=end_id, **options) for x in parts])

    together = sample([images], 0)
    assert torch.equal(sample(images.split(size), 0), together)
    assert not torch.equal(sample([images], 1), together)
    assert (together == end_id).any()
    # other images in the batch, with other lengths: the first caption is the same
    others = torch.cat([images[:1], random_images(14, seed=9)])
    assert torch.equal(sample([others], 0)[0], together[0])


# ---- sampling by hand ----------------------------------------------------------------------------


def test_sampling_probabilities_by_hand():
    chances = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    shape = caption_search.sampling_probabilities

    def check(expected, **options):
        found = shape(chances.log() + 5, **options)
        torch.testing.assert_close(found, torch.tensor([expected]).double(), atol=1e-6, rtol=0)

    check([0.1, 0.4, 0.2, 0.3])
    squares = np.array([0.01, 0.16, 0.04, 0.09])
    check((squares / squares.sum()).tolist(), temperature=0.5)
    check([0, 4 / 7, 0, 3 / 7], top_k=2)
    check([0.1, 0.4, 0.2, 0.3], top_k=9)
    check([0, 1, 0, 0], top_p=0.39)
    check([0, 4 / 7, 0, 3 / 7], top_p=0.41)  # the token that crosses the share is kept
    check([0, 4 / 9, 2 / 9, 3 / 9], top_p=0.71)
    check([0.1, 0.4, 0.2, 0.3], top_p=1)
    # of the two kept by top_k, one alone has 4/7: the shares are counted among those kept
    check([0, 1, 0, 0], top_k=2, top_p=0.5)
    check([0, 16 / 25, 0, 9 / 25], temperature=0.5, top_p=0.6)


def test_tokens_are_drawn_in_proportion():
    chances = torch.tensor([0.125, 0.5, 0.0, 0.375])
    noise = (torch.arange(800) + 0.5) / 800  # evenly spread
    choose = caption_search.sampler(torch.stack([noise, 1 - noise], dim=1))
    rows = torch.arange(800)
    for place in (0, 1):
        drawn = choose(chances.log().expand(800, -1), rows, place)
        assert drawn.bincount(minlength=4).tolist() == [100, 400, 0, 300]
    # a caption's noise is its own, wherever it stands in the batch by now
    some = choose(chances.log().expand(3, -1), torch.tensor([799, 0, 300]), 0)
    assert some.tolist() == [3, 0, 1]
    extreme = caption_search.sampler(torch.tensor([[0.0], [1 - 2**-24]]), top_k=2)
    logits = torch.tensor([[-9.0, 1.0, 0.0, -9.0]]).expand(2, -1)
    assert extreme(logits, torch.arange(2), 0).tolist() == [1, 2]


# ---- log-probability -----------------------------------------------------------------------------


def one_by_one(model, images, tokens, start: int, end_id: int) -> list[float]:
    """Log-probabilities of captions, each token after a plain reading of those before."""
    sums = []
    for image, row in zip(images, tokens, strict=True):
        total = 0.0
        for place in range(start, len(row)):
            if row[place - 1] == end_id:
                break
            with torch.no_grad():
                logits = model(image[None], row[None, :place], output_labels=False)["logits"]
            total += float(logits[0, -1].log_softmax(dim=-1)[row[place]])
        sums.append(total)
    return sums


def test_log_probability_counts_each_token_up_to_the_end(model):
    images = random_images(8)
    prompt = torch.randint(2, 300, (8, 2), generator=torch.Generator().manual_seed(0))
    prompt[0, 0] = end_id = int(captioner.generate(model, images, max_len=12, end_id=-1)[2, 5])
    prompt[1, 1] = end_id  # has ended before it began
    options = {"strategy": "sample", "generator": torch.Generator().manual_seed(0)}
    tokens = captioner.generate(
        model, images, max_len=12, end_id=end_id, prompt=prompt, temperature=3.0, **options
    )
    found = captioner.log_probability(model, images, tokens, prompt_length=2, end_id=end_id)
    assert found.dtype == torch.float32 and found[1] == 0
    expected = one_by_one(model, images, tokens, 2, end_id)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert len(set((tokens == 0).sum(dim=1).tolist())) > 1  # of several lengths


def test_each_token_has_its_own_log_probability(model):
    images = random_images(4)
    tokens = captioner.generate(model, images, max_len=12)
    each = captioner.token_log_probabilities(model, images, tokens)
    assert each.shape == (4, 11)
    for shorter in range(2, 12):  # the sum up to any place is that of the caption cut there
        cut = captioner.log_probability(model, images, tokens[:, :shorter])
        torch.testing.assert_close(each[:, : shorter - 1].sum(dim=1), cut, rtol=1e-4, atol=1e-4)
    end_id = int(tokens[0, 4])
    place = tokens[0].tolist().index(end_id, 1)
    early = captioner.token_log_probabilities(model, images, tokens, end_id=end_id)
    torch.testing.assert_close(early[0, :place], each[0, :place])
    assert (early[0, place:] == 0).all()


def test_log_probability_without_a_cls_token(tokenizer):
    model, images = random_model(tokenizer, text_cfg__embed_cls=False), random_images(3)
    tokens = captioner.generate(model, images, max_len=9, end_id=-1)
    found = captioner.log_probability(model, images, tokens, end_id=-1)
    with torch.no_grad():
        full = torch.nn.functional.pad(tokens, (0, 40 - 9))
        log_p = model(images, full, output_labels=False)["logits"].log_softmax(dim=-1)
    expected = log_p[:, :8].gather(2, tokens[:, 1:, None]).sum(dim=(1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_log_probability_of_a_text_encoder_that_looks_both_ways(tmp_path):
    model, images = roberta_model(tmp_path), random_images(3)
    tokens = captioner.generate(model, images, max_len=9)
    found = captioner.log_probability(model, images, tokens)
    expected = one_by_one(model, images, tokens, 1, model.end_id)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_more_beams_find_captions_at_least_as_probable(model):
    images = random_images(20)
    scores = []
    for beams in (1, 2, 8):
        tokens = captioner.generate(model, images, max_len=8, strategy="beam", num_beams=beams)
        scores.append(captioner.log_probability(model, images, tokens))
    assert (scores[2] > scores[0] + 0.1).any()  # on average, not always for each image
    assert scores[0].mean() < scores[1].mean() < scores[2].mean()


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "beams"}, "no strategy 'beams': choose one of greedy"),
        ({"num_beams": 3}, "num_beams is 3 with strategy 'greedy'"),
        ({"strategy": "beam", "num_beams": 0}, "num_beams is 0.*1 or more"),
        ({"top_p": 0.9}, "top_p would change nothing with strategy 'greedy'"),
        ({"strategy": "beam", "generator": torch.Generator()}, "generator would change nothing"),
        ({"strategy": "sample"}, "Sampling needs generator"),
        ({"strategy": "sample", "temperature": 0.0}, "temperature is 0.0"),
        ({"strategy": "sample", "temperature": math.nan}, "temperature is nan"),
        ({"strategy": "sample", "top_k": 0}, "top_k is 0"),
        ({"strategy": "sample", "top_p": 0.0}, "top_p is 0.0"),
        ({"strategy": "sample", "top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_options_that_do_not_fit_are_named(model, options, message):
    if options.get("strategy") == "sample" and len(options) > 1:
        options = {**options, "generator": torch.Generator()}
    with pytest.raises(UserError, match=message):
        captioner.generate(model, random_images(1), max_len=5, **options)
