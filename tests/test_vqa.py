"""The judge: transformers' own loss and answers, no pads, files anyone can load."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, BlipForQuestionAnswering, BlipProcessor

from dalle3lib import UserError, text
from dalle3lib.evals import vqa
from dalle3lib.evals import vqa_training as training
from dalle3lib.images import to_tensor
from dalle3lib.randomness import rng
from dalle3lib.world import descriptive_caption, questions, render, scene

torch.set_num_threads(1)


def world_scene(index: int):
    return scene("foundation", index, counts=(1, 2, 3))


SPECS = [world_scene(i) for i in range(4)]
IMAGES = np.stack([render(spec) for spec in SPECS])
TOKENIZER = training.train_tokenizer(world_scene, 60)
ASKED = [
    "what colour is the star?",
    "is there a word?",
    "a red star?",
    "where is the big red moon?",
]
SAID = ["red", "no", "yes", "top left"]
OF = [2, 0, 2, 1]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A random judge as transformers writes it; larger weights make its answers differ."""
    path = tmp_path_factory.mktemp("judge")
    model = training.build(TOKENIZER, seed=3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embeddings" not in name:
                weight.mul_(6)
    training.save(model, training.make_processor(TOKENIZER), path)
    return path


@pytest.fixture(scope="module")
def judge(directory):
    return vqa.load(directory)


# ---- the model and its files ---------------------------------------------------------------------


def test_weights_depend_on_the_seed_alone():
    def weights(seed, noise):
        torch.manual_seed(noise)
        return torch.cat([p.flatten() for p in training.build(TOKENIZER, seed).parameters()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


def test_the_vision_tower_starts_with_weights_to_learn_from():
    model = training.build(TOKENIZER, seed=0)  # transformers' default is a deviation of 1e-10
    for name, weight in model.vision_model.named_parameters():
        assert "bias" in name or weight.std() > 0.005 or weight.mean() == 1, name


def test_what_is_loaded_is_what_was_saved(directory, judge):
    model, processor = judge
    assert isinstance(model, BlipForQuestionAnswering) and not model.training
    assert not any(p.requires_grad for p in model.parameters()) and model.dtype == torch.float32
    assert {file.suffix for file in directory.iterdir()} == {".json", ".safetensors"}
    again = BlipForQuestionAnswering.from_pretrained(directory).float().state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    assert processor.tokenizer(ASKED).input_ids == TOKENIZER(ASKED).input_ids
    prepared = processor.image_processor(list(IMAGES), return_tensors="pt").pixel_values
    assert torch.allclose(prepared, to_tensor(IMAGES), atol=1e-6)


def test_saving_leaves_the_model_as_it_is(tmp_path):
    model = training.build(TOKENIZER, seed=0)
    training.save(model, training.make_processor(TOKENIZER), tmp_path)
    assert model.dtype == torch.float32
    saved = vqa.load(tmp_path)[0].state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value.half().float(), saved[name]), name


def test_anyone_can_load_and_ask_it(directory, judge):
    """The calls of the model card of Salesforce/blip-vqa-base give the answers of ``answer``."""
    model = BlipForQuestionAnswering.from_pretrained(directory, dtype=torch.float32)
    said = vqa.answer(*judge, IMAGES, ASKED, OF)
    assert len(set(said)) > 1
    for loader in (BlipProcessor, AutoProcessor):
        processor = loader.from_pretrained(directory)
        for question, number, expected in zip(ASKED, OF, said, strict=True):
            inputs = processor(images=IMAGES[number], text=question, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=vqa.MAX_ANSWER)
            assert processor.decode(ids[0], skip_special_tokens=True).strip() == expected


def test_a_missing_or_damaged_judge_is_named(directory, tmp_path):
    with pytest.raises(UserError, match="nowhere cannot be loaded"):
        vqa.load(tmp_path / "nowhere")
    for file in directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        vqa.load(tmp_path)


# ---- the loss ------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_loss_is_transformers_own(judge):
    """Of one question it is ``model(...).loss``; of several the mean over all their tokens."""
    model, processor = judge
    seen, sums, counts = vqa.look(model, processor, IMAGES)[OF], [], []
    for k, (question, said) in enumerate(zip(ASKED, SAID, strict=True)):
        inputs = processor(images=IMAGES[OF[k]], text=question, return_tensors="pt")
        labels = processor(text=said, return_tensors="pt").input_ids
        labels[:, 0] = model.config.text_config.bos_token_id
        theirs = model(**inputs, labels=labels).loss
        ours = training.answer_loss(model, processor, seen[k : k + 1], [question], [said])
        assert torch.allclose(ours, theirs, atol=1e-5)
        counts.append(labels.shape[1] - 1)
        sums.append(theirs.item() * counts[-1])
    assert len(set(counts)) > 1  # the shorter answers are padded
    together = training.answer_loss(model, processor, seen, ASKED, SAID)
    assert np.isclose(together.item(), sum(sums) / sum(counts), atol=1e-5)


def test_the_loss_is_a_function_of_the_step():
    model, processor = training.build(TOKENIZER, seed=0), training.make_processor(TOKENIZER)
    drawn = []

    def noted(index):
        drawn.append(index)
        return world_scene(index)

    def losses(seed, *steps):
        at = training.step_loss(model, processor, noted, seed=seed, batch=2, pretraining=0)
        return [at(step)["loss"].item() for step in steps]

    a, b = losses(0, 7, 8)
    assert drawn == [14, 15, 16, 17]  # no scene twice
    assert losses(0, 8, 7) == [b, a] and a != b
    assert losses(1, 7) != [a]  # other questions


def test_it_learns_to_describe_before_it_is_asked():
    """The first steps' loss is the captions', token by token what the decoder gives them."""
    model, processor = training.build(TOKENIZER, seed=0), training.make_processor(TOKENIZER)
    loss = training.step_loss(model, processor, world_scene, seed=0, batch=2, pretraining=3)
    random, specs = rng(0, "judge/questions", 2), [world_scene(i) for i in (4, 5)]
    captions = [descriptive_caption(spec, random) for spec in specs]
    seen = vqa.look(model, processor, np.stack([render(spec) for spec in specs]))
    total, count = 0.0, 0
    for states, caption in zip(seen, captions, strict=True):
        ids = processor.tokenizer(caption, return_tensors="pt").input_ids
        given = torch.cat([torch.full((1, 1), model.decoder_start_token_id), ids[:, 1:-1]], 1)
        logits = model.text_decoder(given, encoder_hidden_states=states[None]).logits[0]
        chances = logits.log_softmax(-1)[range(ids.shape[1] - 1), ids[0, 1:]]
        total, count = total - chances.sum().item(), count + len(chances)
    assert np.isclose(loss(2)["loss"].item(), total / count, atol=1e-5)
    assert not np.isclose(loss(3)["loss"].item(), total / count, atol=1e-5)
    loss(2)["loss"].backward()
    assert model.vision_model.embeddings.patch_embedding.weight.grad.abs().max() > 0


def test_every_weight_learns_and_the_loss_falls():
    model, processor = training.build(TOKENIZER, seed=0), training.make_processor(TOKENIZER)
    loss = training.step_loss(model, processor, world_scene, seed=0, batch=1, pretraining=0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    values = []
    for _ in range(10):
        optimizer.zero_grad()
        value = loss(0)["loss"]
        value.backward()
        values.append(value.item())
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


def test_a_scene_is_asked_one_question_of_every_kind():
    for index in range(20):
        random = [np.random.default_rng(index) for _ in range(2)]
        kinds = {q.kind for q in questions(world_scene(index), random[0])}
        asked = [q.kind for q in training.ask(world_scene(index), random[1])]
        assert len(asked) == len(kinds) and set(asked) == kinds


# ---- asking --------------------------------------------------------------------------------------


def test_answers_do_not_depend_on_the_company(judge):
    said, sure = vqa.answer(*judge, IMAGES, ASKED, OF), vqa.p_yes(*judge, IMAGES, ASKED, OF)
    assert sure.dtype == np.float64 and sure.shape == (4,) and np.ptp(sure) > 1e-3
    assert ((sure > 0) & (sure < 1)).all()
    for k in range(4):  # alone, and so without any pads
        alone = *judge, IMAGES[OF[k]][None], [ASKED[k]]
        assert vqa.answer(*alone) == [said[k]] and np.allclose(
            vqa.p_yes(*alone), sure[k], atol=1e-5
        )
    assert vqa.answer(*judge, IMAGES[OF], ASKED, batch=2) == said  # a picture for each question
    assert np.allclose(vqa.p_yes(*judge, IMAGES, ASKED, OF, batch=1), sure, atol=1e-5)


def test_a_picture_is_encoded_once_for_all_its_questions(judge):
    model, seen = judge[0], []
    hook = model.vision_model.register_forward_hook(
        lambda _, __, output: seen.append(len(output.last_hidden_state))
    )
    vqa.answer(*judge, IMAGES, ASKED * 3, OF * 3)
    hook.remove()
    assert seen == [3]  # picture 3 is not asked about


@torch.no_grad()
def test_p_yes_compares_yes_with_no(directory):
    """With no weights but the last biases, the logits are these: p = 1 / (1 + e^(b - a))."""
    model, processor = vqa.load(directory)
    output = model.text_decoder.cls.predictions
    output.transform.LayerNorm.weight.zero_()
    output.transform.LayerNorm.bias.zero_()
    yes, no = (TOKENIZER(word).input_ids[1] for word in ("yes", "no"))
    output.decoder.bias.fill_(5)  # other tokens do not matter
    output.decoder.bias[yes], output.decoder.bias[no] = 2, 0.5
    assert np.allclose(vqa.p_yes(model, processor, IMAGES[:1], ["a star?"]), 1 / (1 + np.exp(-1.5)))


def test_questions_that_nobody_can_ask_are_refused(judge):
    for ask in (vqa.answer, vqa.p_yes):
        with pytest.raises(UserError, match="4 pictures but 1 questions"):
            ask(*judge, IMAGES, ["a star?"])
    bytes_only = training.make_processor(text.train_tokenizer(["a"], 300, start=True))
    with pytest.raises(UserError, match="alike"):
        vqa.p_yes(judge[0], bytes_only, IMAGES[:1], ["a star?"])


def test_accuracy_counts_by_kind(judge, monkeypatch):
    """A judge that always says yes is right in half of the yes/no questions and nowhere else."""
    monkeypatch.setattr(
        vqa, "answer", lambda m, p, pictures, questions, of: ["yes"] * len(questions)
    )
    right = vqa.accuracy(*judge, [world_scene(i) for i in range(100)])
    assert right["colour"] == right["shape"] == right["count"] == 0
    assert 0.45 < right["colour-shape"] < 0.55 and 0.45 < right["relation"] < 0.55
    assert 0.2 < right["all"] < 0.4
