"""The client: answers bought once and kept, bounded retries, caps, against a server that fails."""

import json
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest
from misbehaving_server import SAID, Server, reply

from dalle3lib import UserError, budget, chat_server, completions
from dalle3lib.completion_cache import Answer, Cache
from dalle3lib.completions import ATTEMPTS, Client, Failed

OPTIONS = {"max_tokens": 50}
FAILURES = ("429", "after 3", "date 30", "500", "503", "half", "not JSON", "wrong schema")


class Clock:
    """A time that only sleeping moves."""

    def __init__(self):
        self.now, self.slept, self.lock = 1e9, [], threading.Lock()

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        with self.lock:
            self.now += seconds
            self.slept.append(seconds)


def ask(text):
    return [{"role": "user", "content": text}], OPTIONS


@pytest.fixture(scope="module")
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="module")
def send(server):
    return chat_server.connect(server.url, timeout=1.0)


@pytest.fixture
def client(send, tmp_path):
    """A maker of clients with the test's cache file and a clock of their own."""

    def make(model="m", **settings):
        clock = Clock()
        settings = {"sleep": clock.sleep, "clock": clock} | settings
        made = Client(model, settings.pop("send", send), tmp_path / "cache.jsonl", **settings)
        made.test_clock = clock
        return made

    return make


# ---- 200 scripts ---------------------------------------------------------------------------------


def script(number):
    """Contents and what happens to the attempts at each; a cap in tokens or none."""
    draw = random.Random(number)
    contents = [f"script {number} prompt {i}" for i in range(draw.randint(1, 5))]
    words = {c: draw.choices(FAILURES, k=draw.choice((0, 0, 1, 2, 3, 7))) for c in contents}
    if draw.random() < 0.15:
        words[contents[0]].insert(0, "hang")
    return contents, words, draw.choice((None, None, 0, 200, 400, 1000)), draw.randint(1, 4)


def play(number, server, send, folder):
    """Run a script to its end, starting again after each stop, and check what was sent."""
    contents, words, cap, workers = script(number)
    hangs = sum(w.count("hang") for w in words.values())
    doomed = {c for c, w in words.items() if len(w) >= ATTEMPTS}
    server.scripts |= {c: list(w) for c, w in words.items()}
    asked = contents + contents[:1]  # the same content twice
    settings = {"workers": workers}
    stopped, timed_out = "", 0

    def run(limits):
        clock = Clock()
        made = Client(
            "m", send, folder / f"{number}.jsonl", limits=limits, sleep=clock.sleep, clock=clock,
            **settings,
        )  # fmt: skip
        try:
            return made, clock, made.complete([ask(content) for content in asked]), ""
        except UserError as error:
            return made, clock, None, str(error)

    first, clock, answers, stopped = run(budget.Limits(tokens=cap))
    timed_out += first.counts["failed: timed out"]
    assert all(len(server.attempts[c]) <= ATTEMPTS for c in contents)
    assert all(seconds <= 60 for seconds in clock.slept)
    one = max(
        budget.bound({"messages": ask(c)[0], **OPTIONS}, budget.FREE).tokens for c in contents
    )
    if cap is not None:  # at 15 tokens for what the server worked for
        spent = first.budget.paid.tokens + first.budget.lost.tokens
        assert 15 * server.charged(*contents) <= spent < cap + one or spent == cap == 0
    if cap is None and not doomed:
        assert not stopped
    assert stopped or [answer.text for answer in answers] == [SAID] * len(asked)
    assert not (doomed and answers)
    paid = first.budget.paid.tokens
    for _ in range(10):
        if answers:
            break
        before = {c: len(server.attempts[c]) for c in contents if Cache(first.cache.path).get(
            completions.key(first._request(*ask(c))))}  # fmt: skip
        again, _, answers, stopped = run(budget.UNLIMITED)
        assert all(len(server.attempts[c]) == n for c, n in before.items())  # not asked again
        timed_out += again.counts["failed: timed out"]
        paid += again.budget.paid.tokens
    assert [answer.text for answer in answers] == [SAID] * len(asked)
    # Each content was answered once; a machine that stalls may add a time-out or two.
    extra = sum(server.delivered(c) - 1 for c in contents)
    assert 0 <= extra <= max(0, timed_out - hangs)
    assert paid == 15 * len(contents)  # nothing is charged twice
    return bool(stopped), len(doomed)


def test_200_scripts_of_failures(server, send, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        played = list(pool.map(lambda n: play(n, server, send, tmp_path), range(200)))
    assert len(played) == 200
    kinds = {word for words in server.attempts.values() for word in words}
    assert {*FAILURES, "hang", "ok"} <= kinds


# ---- waiting -------------------------------------------------------------------------------------


def test_retry_after_is_honoured_in_seconds_and_as_a_date(server, client):
    server.scripts["patient"] = ["after 7", "date 40", "429"]
    made = client()
    assert made.complete([ask("patient")])[0].text == SAID
    first, second, third = made.test_clock.slept
    assert first == 7 and 30 < second <= 40 and 1 <= third <= 2  # the third attempt's own wait
    assert made.report()["failed: status 429"] == 3


def test_a_wait_that_is_asked_of_one_request_holds_for_all(server, client):
    server.scripts["first"] = ["after 100"]
    made = client(workers=1)
    made.complete([ask("first"), ask("second")])
    assert made.test_clock.slept == [100]
    assert made.test_clock.now == 1e9 + 100


def test_nobody_waits_for_hours(server, client):
    server.scripts["hours"] = ["after 7200"]
    made = client()
    with pytest.raises(UserError, match="asked to wait 7200 s.*0 of 1 answers"):
        made.complete([ask("hours")])
    assert made.test_clock.slept == [] and server.attempts["hours"] == ["after 7200"]


def test_waits_double_with_jitter_and_end():
    waits = []
    for name in "abcdefgh":
        made = Client("m", None, os.devnull, sleep=waits.append)
        for attempt in range(10):
            made._back_off(name, attempt, Failed("status 500"))
    rows = [waits[i : i + 10] for i in range(0, 80, 10)]
    for attempt, some in enumerate(zip(*rows, strict=True)):
        longest = min(0.5 * 2**attempt, 60)
        assert all(longest / 2 <= wait <= longest for wait in some) and len(set(some)) == 8


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ({"retry-after": "5"}, 5),
        ({"retry-after": "2.5"}, 2.5),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": formatdate(1090, usegmt=True)}, 90),
        ({"retry-after": formatdate(900, usegmt=True)}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_reading_retry_after(said, seconds):
    assert chat_server.retry_after(said, now=1000.0) == seconds


# ---- caps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", (1, 8))
@pytest.mark.parametrize("limits", (budget.Limits(tokens=500), budget.Limits(cost=500e-6)))
def test_at_most_one_request_passes_a_cap(server, client, workers, limits):
    """Forty requests of 15 tokens: 500 tokens are 34 of them at the most."""
    name = f"{workers} {limits}"
    made = client(workers=workers, limits=limits, prices=budget.Prices(1.0, 1.0))
    asked = [ask(f"{name} {i}") for i in range(40)]
    with pytest.raises(UserError, match="cap of .* is reached: .* of 40 answers are there"):
        made.complete(asked)
    assert 500 <= made.budget.paid.tokens < 515
    assert sum(server.delivered(content[0]["content"]) for content, _ in asked) == 34
    with pytest.raises(UserError, match="34 of 40"):  # the same again spends nothing more
        client(workers=workers, limits=limits, prices=budget.Prices(1.0, 1.0)).complete(asked)
    assert sum(server.delivered(content[0]["content"]) for content, _ in asked) == 34
    done = client(workers=workers).complete(asked)
    assert sum(answer.cached for answer in done) == 34


def test_concurrent_requests_reserve_before_they_are_sent(client):
    """Each may cost all that is left, so they go one by one."""
    flying, most = [], []

    def send(request):
        flying.append(1)
        most.append(len(flying))
        time.sleep(0.01)
        flying.pop()
        return Answer("a", "stop", 60, 50)

    made = client(send=send, workers=8, limits=budget.Limits(tokens=300))
    with pytest.raises(UserError, match="3 of 9 answers"):
        made.complete([ask(str(i)) for i in range(9)])
    assert made.budget.paid.tokens == 330 and max(most) <= 2


def test_what_may_have_been_charged_counts(server, client):
    server.scripts["lost"] = ["half", "half", "half", "half"]
    bound = budget.bound({"messages": ask("lost")[0], **OPTIONS}, budget.FREE).tokens
    made = client(limits=budget.Limits(tokens=2 * bound))
    with pytest.raises(UserError, match="cap"):
        made.complete([ask("lost")])
    assert made.report()["lost tokens"] == 2 * bound and len(server.attempts["lost"]) == 2


def test_a_cap_needs_a_longest_answer_and_zero_sends_nothing(server, client):
    made = client(limits=budget.Limits(tokens=0))
    with pytest.raises(UserError, match="max_tokens"):
        made.complete([([{"role": "user", "content": "zero"}], {})])
    with pytest.raises(UserError, match="cap of 0 tokens"):
        made.complete([ask("zero")])
    assert not server.attempts["zero"]


def test_prices_are_of_a_million_tokens(client):
    made = client(prices=budget.Prices(2.0, 10.0))
    (answer,) = made.complete([ask("priced")])
    assert answer.cost == pytest.approx((10 * 2 + 5 * 10) / 1e6) and answer.tokens == 15
    (again,) = client(prices=budget.Prices(5.0, 5.0)).complete([ask("priced")])
    assert again.cached and again.cost == answer.cost  # what it was bought for


def test_an_answer_without_usage_counts_as_the_most_it_can_be(server, client):
    server.scripts["silent"] = ["no usage"]
    prices = budget.Prices(1.0, 100.0)
    (answer,) = client(prices=prices).complete([ask("silent")])
    most = budget.bound({"messages": ask("silent")[0], **OPTIONS}, prices)
    assert (answer.tokens, answer.cost) == most and answer.cost > 50 * 100 / 1e6


# ---- bought once ---------------------------------------------------------------------------------


def test_the_same_content_under_way_twice_is_one_request(server, client):
    gate = threading.Event()
    server.scripts["twin"] = [
        lambda handler: (gate.wait(20), handler.send(200, json.dumps(reply("twin's"))))
    ]
    made = client(workers=4, send=chat_server.connect(server.url, timeout=20))
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(made.complete([ask("twin")] * 2)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while not server.attempts["twin"]:
        time.sleep(0.01)
    gate.set()
    for thread in threads:
        thread.join()
    assert len(server.attempts["twin"]) == 1
    flat = [answer for some in results for answer in some]
    assert [answer.text for answer in flat] == ["twin's"] * 6
    assert sum(not answer.cached for answer in flat) == 1


def test_content_is_model_messages_and_options(client, server):
    made = client()
    made.complete([ask("content"), (ask("content")[0], {"max_tokens": 51})])
    client("other").complete([ask("content")])
    assert server.delivered("content") == 3
    assert all(answer.cached for answer in client("other").complete([ask("content")]))


def test_an_answer_is_on_the_disk_before_it_is_used(server, client, tmp_path, monkeypatch):
    """What was answered before others failed for good is not asked again."""
    server.scripts |= {"bad": ["400"] * 9}
    with pytest.raises(UserError, match=r"1 requests failed \(status 400: .*2 of 3 answers"):
        client().complete([ask("good 1"), ask("bad"), ask("good 2")])
    server.scripts.pop("bad")
    done = client().complete([ask("good 1"), ask("bad"), ask("good 2")])
    assert [answer.cached for answer in done] == [True, False, True]

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dalle3lib.completion_cache.os.fsync", full)
    with pytest.raises(UserError, match="disk is full"):
        client().complete([ask("unkept")])


def test_a_half_written_line_is_listed_and_passed_over(client, tmp_path):
    client().complete([ask("one"), ask("two")])
    path = tmp_path / "cache.jsonl"
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        cache = Cache(path)
        lost = cut > 1  # without its newline alone the line is whole
        assert len(cache) == 2 - lost
        assert cache.problems == ["line 2 is cut short or damaged"] * lost
    path.write_bytes(whole[:-30])
    made = client()
    assert sum(answer.cached for answer in made.complete([ask("one"), ask("two")])) == 1
    assert made.report()["problems"] == ["line 2 is cut short or damaged"]
    again = Cache(path)
    assert len(again) == 2 and again.problems == ["line 2 is cut short or damaged"]


def test_lines_damaged_in_the_middle_are_listed(tmp_path):
    path = tmp_path / "c.jsonl"
    cache = Cache(path)
    with cache.hold():
        for name in "abc":
            cache.put(name, {"messages": name}, Answer(name, "stop", 1, 2, 0.5))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + '{"key": "b"}\n' + lines[2])
    again = Cache(path)
    assert again.problems == ["line 2 is cut short or damaged"]
    assert again.get("c") == Answer("c", "stop", 1, 2, 0.5) and again.get("b") is None


def test_two_processes_share_a_file(server, tmp_path):
    """They ask the same; whoever comes second finds what the first has bought."""
    code = (
        "import sys; from dalle3lib import chat_server; "
        "c = chat_server.client('m', sys.argv[1], cache=sys.argv[2]); "
        "c.complete([([{'role': 'user', 'content': f'shared {i}'}], {}) for i in range(9)])"
    )
    command = [sys.executable, "-c", code, server.url, str(tmp_path / "shared.jsonl")]
    running = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    assert [server.delivered(f"shared {i}") for i in range(9)] == [1] * 9
    assert len(Cache(tmp_path / "shared.jsonl")) == 9


# ---- when to give up -----------------------------------------------------------------------------


def test_a_server_that_is_down_is_not_asked_for_everything(client, server):
    contents = [f"down {i}" for i in range(30)]
    server.scripts |= {content: ["500"] * 20 for content in contents}
    made = client(workers=2)
    with pytest.raises(UserError, match="were then not sent"):
        made.complete([ask(content) for content in contents])
    asked = [content for content in contents if server.attempts[content]]
    assert completions.GIVE_UP <= len(asked) <= completions.GIVE_UP + 2
    assert made.report()["failed: status 500"] <= ATTEMPTS * len(asked)


def test_an_interruption_sends_nothing_more(client, monkeypatch):
    sent = []

    def send(request):
        sent.append(request)
        return Answer("a", "stop", 1, 1)

    def interrupted(*_):
        raise KeyboardInterrupt

    made = client(send=send, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(completions, "as_completed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.complete([ask(f"stop {i}") for i in range(50)])
    done = made.complete([ask(f"stop {i}") for i in range(50)])
    assert len(sent) == 50 and len(done) == 50


def test_options_that_change_what_comes_back_are_refused(client):
    for name, value in (("stream", True), ("n", 2), ("model", "x")):
        with pytest.raises(UserError, match=name):
            client().complete([(ask("x")[0], {name: value})])


def test_messages_may_hold_images(server, client, tmp_path):
    path = tmp_path / "dot.png"
    path.write_bytes(b"\x89PNG not really")
    content = [{"type": "text", "text": "what is this"}, completions.image(path)]
    made = client(limits=budget.Limits(tokens=10_000))
    made.complete([([{"role": "user", "content": content}], OPTIONS)])
    sent = server.requests[-1]["messages"][0]["content"][1]["image_url"]["url"]
    assert sent.startswith("data:image/png;base64,")
    line = (tmp_path / "cache.jsonl").read_text()
    assert "data URL with SHA-256" in line and "base64" not in line
    path.write_bytes(b"\x89PNG another")
    other = [content[0], completions.image(path)]
    made.complete([([{"role": "user", "content": other}], OPTIONS)])
    assert server.delivered("what is this") == 2  # another picture is another content
    with pytest.raises(UserError, match="no PNG"):
        completions.image("notes.txt")
