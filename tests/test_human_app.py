"""The rating page's server: whole sessions, hostile requests, what raters may learn."""

import asyncio
import fnmatch
import json
import re
import secrets
import sys
import tomllib

import pytest
import tiny_study
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import UserError, human, human_app, paths
from dalle3lib.vote_store import VoteStore

testclient = pytest.importorskip("starlette.testclient", reason="the extra `label` is missing")

SECRET = "a secret of the tests"
HOST = "127.0.0.1:8000"


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """A study of which every test uses a copy of its own."""
    return tiny_study.make(tmp_path_factory.mktemp("planned") / "study").folder


def with_raters(planned, folder):
    """A store with two raters; its pictures and plan are those of ``planned``."""
    folder.mkdir()
    for name in ("images", "plan.json", "key.json"):
        (folder / name).symlink_to(planned / name)
    made = VoteStore.create(folder)
    made.invite(2, SECRET)
    return made


@pytest.fixture
def store(planned, tmp_path):
    return with_raters(planned, tmp_path / "study")


@pytest.fixture
def client(store):
    return browser(store)


@pytest.fixture(scope="module")
def attacked(planned, tmp_path_factory):
    """A study shared by the tests that try to vote and must not; a client of its page."""
    store = with_raters(planned, tmp_path_factory.mktemp("attacked") / "study")
    yield store, browser(store)
    assert len(store.votes()) == 0


def browser(store, host=HOST, **headers):
    """A client that behaves as a browser on the page does."""
    app = human_app.build(store, tokens(store), ["127.0.0.1", "localhost", "[::1]"])
    told = {"Origin": f"http://{host}"} | headers
    return testclient.TestClient(app, base_url=f"http://{host}", headers=told)


def tokens(store):
    return [store.token(SECRET, number) for number in range(2)]


def link(store, rater=0, rest=""):
    return f"/r/{tokens(store)[rater]}/{rest}"


def vote(client, store, trial, choice="left", key=None, rater=0, **more):
    body = {"trial": trial, "choice": choice, "key": key or secrets.token_hex(16)} | more
    return client.post(link(store, rater, "vote"), json=body)


def current(client, store, rater=0):
    return client.get(link(store, rater, "trial")).json()


# ---- sessions ------------------------------------------------------------------------------------


def test_a_session_stores_every_vote_in_the_order_of_the_plan(client, store):
    trials, shown = human.trials(store.plan, 0), current(client, store)
    for place, trial in enumerate(trials):
        assert shown["trial"]["id"] == trial.id
        assert (shown["done"], shown["total"], shown["notice"]) == (place, 18, "")
        for side in ("left", "right"):
            sent = client.get(link(store, 0, shown["trial"][side]))
            assert sent.headers["content-type"] == "image/png"
            assert sent.content == store.image(getattr(trial, side)).read_bytes()
        choice = ("left", "right", "tie")[place % 3]
        shown = vote(client, store, trial.id, choice, seconds=1.5).json()
    assert shown == {"trial": None, "done": 18, "total": 18, "notice": ""} == current(client, store)
    rows = store.votes()
    assert rows.trial.tolist() == [trial.id for trial in trials]
    assert rows.choice.tolist() == ["left", "right", "tie"] * 6 and rows.current.all()
    assert (rows.rater == 0).all() and (rows.seconds == 1.5).all()
    assert current(client, store, rater=1)["done"] == 0


def test_a_page_opened_again_goes_on_with_the_first_trial_without_a_vote(client, store):
    first = current(client, store)["trial"]["id"]
    second = vote(client, store, first).json()["trial"]
    assert browser(store).get(link(store, 0, "trial")).json()["trial"] == second


def test_a_rater_learns_what_the_question_needs_and_no_more(client, store):
    assert client.get(link(store)).status_code == 200
    told = client.get(link(store)).text
    for _ in range(18):
        shown = current(client, store)
        assert set(shown["trial"]) == set("id question ask hint caption left right".split())
        captions = shown["trial"]["question"] == "prompt following"
        assert (shown["trial"]["caption"] is not None) == captions
        told += json.dumps(shown)
        vote(client, store, shown["trial"]["id"])
    hidden = [*tiny_study.SYSTEMS, *human.ROLES, "flipped", *store.plan.images]
    hidden += [row["id"] for row in (*store.plan.pairs, *store.plan.checks)]
    told = re.sub(r"</?main\b", "", told)  # the page's element, not the role
    assert [word for word in hidden if re.search(rf"\b{word}\b", told)] == []


def test_a_caption_is_data_and_the_page_has_no_code_of_its_own(client, store):
    while (shown := current(client, store)["trial"])["caption"] is None:
        vote(client, store, shown["id"])
    sent = client.get(link(store, 0, "trial"))
    assert "<b>thing</b>" in sent.json()["trial"]["caption"]
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["x-content-type-options"] == "nosniff"
    html = client.get(link(store)).text
    assert re.findall(r"<script\b([^>]*)>(.*?)</script>", html, re.DOTALL) == [
        (' src="/static/rating.js" defer', "")
    ]
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|//", html)


def test_an_undo_opens_the_last_trial_again_and_stays_in_the_history(client, store):
    first = current(client, store)["trial"]["id"]
    second = vote(client, store, first, "left").json()["trial"]["id"]
    vote(client, store, second, "left")
    back = client.post(link(store, 0, "undo"), json={"done": 2, "key": "a" * 32}).json()
    assert (back["trial"]["id"], back["done"]) == (second, 1)
    vote(client, store, second, "right")
    rows = store.votes()
    assert rows.choice.tolist() == ["left", "left", "undo", "right"]
    assert rows.current.tolist() == [True, False, False, True]


@pytest.mark.parametrize("done", [0, 1, 3, 10**30])
def test_an_undo_of_what_is_no_longer_so_takes_back_nothing(client, store, done):
    for _ in range(2):
        vote(client, store, current(client, store)["trial"]["id"])
    said = client.post(link(store, 0, "undo"), json={"done": done, "key": "a" * 32})
    assert said.status_code == 200 and said.json()["done"] == 2 == len(store.votes())


def test_a_vote_or_undo_that_is_sent_again_counts_once(client, store):
    first = current(client, store)["trial"]["id"]
    replies = [vote(client, store, first, "tie", "b" * 32) for _ in range(3)]
    assert [reply.json() for reply in replies] == [replies[0].json()] * 3
    vote(client, store, replies[0].json()["trial"]["id"])
    assert vote(client, store, first, "tie", "b" * 32).json()["done"] == 2 == len(store.votes())
    for _ in range(3):
        client.post(link(store, 0, "undo"), json={"done": 2, "key": "c" * 32})
    assert store.progress(0).done == 1


def test_a_second_page_that_is_behind_is_told_where_the_rater_is(client, store):
    first = current(client, store)["trial"]["id"]
    second = vote(client, store, first, "left").json()["trial"]["id"]
    told = vote(client, store, first, "right").json()
    assert told["trial"]["id"] == second and "another window" in told["notice"]
    assert store.votes().choice.tolist() == ["left"]


def test_a_second_page_that_is_ahead_after_an_undo_is_told_too(client, store):
    first = current(client, store)["trial"]["id"]
    second = vote(client, store, first).json()["trial"]["id"]
    client.post(link(store, 0, "undo"), json={"done": 1, "key": "a" * 32})
    told = vote(client, store, second).json()
    assert told["trial"]["id"] == first and "another window" in told["notice"]
    assert store.progress(0).done == 0


ACTIONS = st.tuples(st.integers(0, 1), st.sampled_from(["vote", "undo", "again", "look"]))


@settings(max_examples=10)
@given(st.lists(ACTIONS, max_size=10))
def test_whatever_two_pages_do_the_votes_are_the_first_trials_once_each(planned, actions):
    """Two pages of one rater, each acting upon what it was last told."""
    for file in planned.glob("votes.sqlite*"):
        file.unlink()
    store = VoteStore.create(planned)
    store.invite(1, SECRET)
    seen, sent = [human_app.state(store, 0)] * 2, [None, None]
    for tab, action in actions:
        done = store.progress(0).done
        if action == "vote" and seen[tab]["trial"]:
            sent[tab] = (seen[tab]["trial"]["id"], "left", secrets.token_hex(16), 1.0)
        if action in ("vote", "again") and sent[tab]:
            seen[tab] = human_app.record(store, 0, *sent[tab])
            assert seen[tab]["done"] in (done, done + 1)
        elif action == "undo":
            store.undo(0, secrets.token_hex(16), after=seen[tab]["done"])
            seen[tab] = human_app.state(store, 0)
        elif action == "look":
            seen[tab] = human_app.state(store, 0)
    rows = store.votes()
    standing = rows[rows.current].sort_values("place").trial.tolist()
    assert standing == [trial.id for trial in human.trials(store.plan, 0)][: len(standing)]
    assert rows.key.is_unique and human_app.state(store, 0)["done"] == len(standing)


# ---- hostile requests ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token", ["", "0", "1", "rater-1", "' OR 1=1 --", "%00", "%F0%9F%90%88", "%ff", "a" * 32, "*"]
)
def test_a_forged_link_is_refused_everywhere(attacked, token):
    store, client = attacked
    body = {"trial": human.trials(store.plan, 0)[0].id, "choice": "left", "key": "a" * 32}
    trial = human.trials(store.plan, 0)[0].id
    replies = [client.get(f"/r/{token}/{rest}") for rest in ("", "trial", f"picture/{trial}/left")]
    replies += [client.post(f"/r/{token}/vote", json=body)]
    replies += [client.post(f"/r/{token}/undo", json={"done": 0, "key": "a" * 32})]
    assert {reply.status_code for reply in replies} == {404}


def test_all_tokens_are_compared_and_each_in_constant_time(client, store, monkeypatch):
    compared, real = [], secrets.compare_digest
    monkeypatch.setattr(secrets, "compare_digest", lambda a, b: compared.append(a) or real(a, b))
    for rest in (link(store, 0), link(store, 1), "/r/forged/"):
        compared.clear()
        client.get(rest)
        assert compared == [token.encode() for token in tokens(store)]


def test_a_trial_of_another_rater_or_of_nobody_is_refused(attacked):
    store, client = attacked
    mine = {trial.id for trial in human.trials(store.plan, 0)}
    other = next(t.id for t in human.trials(store.plan, 1) if t.id not in mine)
    for name in (other, "0" * 16, "", "p00000", "../../key", "\ud800"):
        body = json.dumps({"trial": name, "choice": "left", "key": "a" * 32})
        kind = {"Content-Type": "application/json"}
        assert client.post(link(store, 0, "vote"), content=body, headers=kind).status_code == 404
    assert client.get(link(store, 0, f"picture/{'0' * 16}/left")).status_code == 404
    assert client.get(link(store, 0, f"picture/{other}/left")).status_code == 404
    assert client.get(link(store, 1, f"picture/{other}/left")).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "{r}picture/..%2f..%2f..%2fkey.json/left",
        "{r}picture/%2e%2e/%2e%2e/key.json",
        "{r}picture/{t}/..%2f..%2fplan.json",
        "{r}picture/{t}/middle",
        "{r}picture/{t}/left%00.png",
        "{r}picture/{i}/left",
        "{r}../../plan.json",
        "{r}%2e%2e/%2e%2e/votes.sqlite",
        "/static/../page.html",
        "/static/%2e%2e/page.html",
        "/static/..%2f..%2fhuman_app.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/images/{i}",
        "/docs",
        "/openapi.json",
        "/r/",
        "/",
    ],
)
def test_nothing_else_in_the_folder_or_on_the_machine_can_be_read(attacked, path):
    store, client = attacked
    trial = human.trials(store.plan, 0)[0]
    sent = client.get(path.format(r=link(store), t=trial.id, i=trial.left))
    assert sent.status_code in (404, 422)
    assert len(sent.content) < 100 and sent.headers["content-type"].startswith("text/plain")


@pytest.mark.parametrize(
    "origin",
    ["", "null", "http://evil.example", "http://127.0.0.1", "http://127.0.0.1:8001", "file://"]
    + ["http://127.0.0.1:8000.evil.example", "http://evil.example#127.0.0.1:8000"],
)
def test_a_vote_from_a_foreign_page_is_refused(attacked, origin):
    store, _ = attacked
    foreign = browser(store, Origin=origin)
    trial = human.trials(store.plan, 0)[0].id
    assert vote(foreign, store, trial).status_code == 403
    undo = foreign.post(link(store, 0, "undo"), json={"done": 0, "key": "a" * 32})
    assert undo.status_code == 403


def test_a_vote_without_an_origin_is_refused(attacked):
    store, _ = attacked
    client = browser(store)
    del client.headers["Origin"]
    assert vote(client, store, human.trials(store.plan, 0)[0].id).status_code == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8000", "", "a b", "[::2]"]
)
def test_a_foreign_host_is_refused(attacked, host):
    store, _ = attacked
    client = browser(store)
    for headers in ({"Host": host}, {"Host": host, "Origin": f"http://{host}"}):
        assert client.get(link(store), headers=headers).status_code == 400
        assert client.post(link(store, 0, "vote"), headers=headers).status_code in (400, 403)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "[::1]:8000", "localhost"])
def test_this_machine_may_be_called_by_any_of_its_names(store, host):
    client = browser(store, host)
    assert vote(client, store, human.trials(store.plan, 0)[0].id).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Length": str(10 * 2**20)}, 413),
        ({"Content-Length": str(human_app.LIMIT + 1)}, 413),
        ({"Transfer-Encoding": "chunked"}, 411),
        ({"Content-Length": "-1"}, 411),
        ({"Content-Length": "²"}, 411),
    ],
)
def test_a_long_body_is_refused_before_any_of_it_is_read(attacked, headers, status):
    store, _ = attacked

    async def unread():
        raise AssertionError("the body was asked for")

    async def send(message):
        sent.append(message)

    sent = []
    told = {"Host": HOST, "Origin": f"http://{HOST}", "Content-Type": "application/json"} | headers
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
        "scheme": "http", "path": link(store, 0, "vote"), "query_string": b"", "root_path": "",
        "headers": [(k.lower().encode(), v.encode("latin1")) for k, v in told.items()],
    }  # fmt: skip
    app = human_app.build(store, tokens(store), ["127.0.0.1"])
    asyncio.run(app(scope, unread, send))
    assert sent[0]["status"] == status


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[" * 4000,
        b"\xff\xfe",
        b'{"trial": "TRIAL", "choice": "undo", "key": "KEY"}',
        b'{"trial": "TRIAL", "choice": "left"}',
        b'{"trial": "TRIAL", "choice": "left", "key": "short"}',
        b'{"trial": "TRIAL", "choice": "left", "key": "\\ud800"}',
        b'{"trial": "TRIAL", "choice": "left", "key": "KEY\\n"}',
        b'{"trial": ["TRIAL"], "choice": "left", "key": "KEY"}',
        b'{"trial": "TRIAL", "choice": "left", "key": "KEY", "seconds": -1}',
        b'{"trial": "TRIAL", "choice": "left", "key": "KEY", "seconds": NaN}',
        b'{"trial": "TRIAL", "choice": "left", "key": "KEY", "seconds": 1e999}',
    ],
)
def test_what_is_no_vote_is_refused(attacked, body):
    store, client = attacked
    trial = human.trials(store.plan, 0)[0].id
    sent = body.replace(b"TRIAL", trial.encode()).replace(b"KEY", b"a" * 32)
    kind = {"Content-Type": "application/json"}
    reply = client.post(link(store, 0, "vote"), content=sent, headers=kind)
    assert reply.status_code in (400, 422) and len(reply.text) < 100


def test_a_form_or_plain_text_of_another_page_is_no_vote(attacked):
    store, client = attacked
    trial = human.trials(store.plan, 0)[0].id
    body = json.dumps({"trial": trial, "choice": "left", "key": "a" * 32})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        reply = client.post(link(store, 0, "vote"), content=body, headers={"Content-Type": kind})
        assert reply.status_code == 422


def test_a_key_names_one_vote_of_one_rater(client, store):
    first = current(client, store)["trial"]["id"]
    vote(client, store, first, "left", "a" * 32)
    assert vote(client, store, first, "right", "a" * 32).status_code == 404
    other = current(client, store, 1)["trial"]["id"]
    assert vote(client, store, other, "right", "a" * 32, rater=1).json()["done"] == 1
    assert store.votes().choice.tolist() == ["left", "right"]


def test_every_answer_forbids_foreign_frames_scripts_and_copies(client, store):
    answers = [
        client.get(link(store)),
        client.get(link(store, 0, "trial")),
        client.get(link(store, 0, current(client, store)["trial"]["left"])),
        client.get("/static/rating.js"),
        client.get("/r/forged/"),
        client.get(link(store), headers={"Host": "evil.example"}),
        client.post(link(store, 0, "vote"), headers={"Origin": "null"}),
        client.post(link(store, 0, "vote"), content=b"a" * 5000),
        client.request("DELETE", link(store, 0, "vote"), content=b"{}"),
    ]
    assert [a.status_code for a in answers] == [200, 200, 200, 200, 404, 400, 403, 413, 405]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "script-src 'self'" in policy
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"  # the link is not told to others
        assert "server" not in answer.headers and "set-cookie" not in answer.headers


def test_a_store_that_fails_is_no_refusal_and_shows_no_path(client, store, monkeypatch, caplog):
    def broken(*_):
        raise UserError(f"{store.file} cannot be used (disk full).")

    trial = human.trials(store.plan, 0)[0].id
    monkeypatch.setattr(store, "vote", broken)
    reply = vote(client, store, trial)
    assert reply.status_code == 503 and str(store.file) not in reply.text
    assert str(store.file) in caplog.text  # whoever runs the study needs it


def test_refusals_are_logged_without_the_secret_link(client, store, caplog):
    client.post(link(store, 0, "vote"), headers={"Origin": "http://evil.example"})
    assert "refused (403): POST" in caplog.text and tokens(store)[0] not in caplog.text


# ---- the package ---------------------------------------------------------------------------------


def test_an_installation_without_fastapi_says_what_is_missing(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(UserError, match=r'pip install "dalle3lib\[label\]"'):
        human_app.build(store, [], [])


def test_the_page_comes_with_an_installed_package():
    settings = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = settings["package-data"]["dalle3lib"]
    package = human_app.PAGE.parent
    files = [p.relative_to(package).as_posix() for p in human_app.PAGE.rglob("*") if p.is_file()]
    assert len(files) == 4
    assert [f for f in files if not any(fnmatch.fnmatch(f, p) for p in patterns)] == []
