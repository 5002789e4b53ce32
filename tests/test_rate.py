"""The command ``rate``: studies made and gone on with, links, addresses, and what it refuses."""

import re
import shutil
import signal
import socket
import stat
import urllib.error
import urllib.request

import pandas as pd
import pytest
import served_study
import tiny_study
from PIL import Image

from dalle3lib import human, rate
from dalle3lib.__main__ import main
from dalle3lib.vote_store import VoteStore

testclient = pytest.importorskip("starlette.testclient", reason="the extra `label` is missing")
TOKEN = "sixteen letters or more"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Three systems' pictures with captions, in folders of the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in tiny_study.SYSTEMS:
        drawn = tiny_study.samples(name)
        (tmp_path / name).mkdir()
        for prompt, picture in drawn.pictures.items():
            Image.fromarray(picture).save(tmp_path / name / f"{prompt}.png")
        (tmp_path / name / "prompts.txt").write_text("\n".join(drawn.captions.values()))
    return tmp_path


@pytest.fixture
def run(folders, runs_root, monkeypatch, capsys):
    """Run the command without serving: its exit code, what it said, and the page's app or None."""

    def command(arguments):
        served = []
        monkeypatch.setattr(rate, "serve", lambda app, listening: served.append(app))
        code = main(["rate", "--port", "0", *arguments.split()])
        told = capsys.readouterr()
        return code, told.out + told.err, served[0] if served else None

    return command


def links(said):
    return re.findall(r"Rater \d+: (\S+)", said)


def test_a_study_is_made_from_folders_and_the_same_command_goes_on_with_it(run, runs_root):
    arguments = "alpha beta --raters 3 --trials 4 --checks 1 --repeats 1"
    code, said, _ = run(arguments)
    folder = runs_root / "human" / "alpha_vs_beta"
    assert code == 0 and f"Study of alpha, beta in {folder}, 0 votes so far." in said
    assert "A rater compares 4 pairs, 1 of them twice, and 1 with an obvious answer." in said
    assert len(set(links(said))) == 3 and all("http://127.0.0.1:" in link for link in links(said))
    plan = (folder / "plan.json").read_bytes()
    store = VoteStore.open(folder)
    store.vote(1, human.trials(store.plan, 1)[0].id, "tie", "a" * 32)
    for again in (arguments, "beta alpha", f"--out {folder}"):
        code, told, _ = run(again)
        assert code == 0 and "1 votes so far" in told and "(1 of 6)" in told
        assert [a.split("/r/")[1] for a in links(told)] == [a.split("/r/")[1] for a in links(said)]
    assert (folder / "plan.json").read_bytes() == plan


def test_more_raters_may_join_and_none_is_sent_away(run):
    two = [link[-33:] for link in links(run("alpha beta --out s --raters 2")[1])]
    four = [link[-33:] for link in links(run("--out s --raters 4")[1])]
    one = [link[-33:] for link in links(run("--out s --raters 1")[1])]
    assert four[:2] == two and one == four and len(set(four)) == 4


def test_the_links_are_made_of_a_secret_that_only_the_owner_can_read(run, folders):
    first = links(run("alpha beta --out s")[1])
    secret = folders / "s" / "secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_text() not in first[0]
    votes = b"".join(path.read_bytes() for path in (folders / "s").glob("votes.sqlite*"))
    assert first[0].split("/")[-2].encode() not in votes
    shutil.copytree(folders / "s", folders / "t", ignore=shutil.ignore_patterns("votes*", "plan*"))
    other = links(run("alpha beta --out t --seed 1")[1])
    assert other[0].split("/")[-2] != first[0].split("/")[-2], "a link is of one study only"


def test_a_token_makes_the_links_and_another_one_is_refused(run, folders):
    given = ["--token", TOKEN]
    assert main(["rate", "alpha", "beta", "--out", "s", "--export", "none.csv", *given]) == 0
    store = VoteStore.open("s")
    assert rate.invite(store, 2, TOKEN) == [store.token(TOKEN, n) for n in range(2)]
    for secret in ("another text of some length", rate.kept_secret(store.plan.folder)):
        with pytest.raises(rate.UserError, match="another token: give the --token of the first"):
            rate.invite(store, 2, secret)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "Name the runs or folders to compare"),
        ("--out nowhere", "nowhere holds no study yet"),
        ("alpha", "A comparison needs two or more systems"),
        ("alpha nothing", "nothing"),
        ("alpha beta --raters 0", "A study needs 1 rater or more, not 0"),
        ("alpha beta --trials 0", "must be 1 or more"),
        ("alpha beta --token short", "A token has 16 characters or more"),
        ("alpha beta --host 0.0.0.0", "give --token, 16 characters or more"),
        ("alpha beta --host 192.168.1.5", "others can reach the page"),
        ("alpha beta --host example.org", "others can reach the page"),
        (f"alpha beta --host 0.0.0.0 --token {'a' * 16}", "--address how raters reach"),
        (f"alpha beta --host :: --token {'a' * 16}", "--address how raters reach"),
        ("alpha beta --address example.org:8000", "begins with http:// or https://"),
        ("alpha beta --address http://example.org/rating", "ends after host or port"),
        ("alpha beta --address http://[example.org", "begins with http:// or https://"),
        ("alpha beta --address http://*.org", "begins with http:// or https://"),
        ("alpha beta --host 192.0.2.7 --token 0123456789abcdef", "Cannot listen on 192.0.2.7:0"),
        ("alpha beta --port 99999", "Cannot listen on 127.0.0.1:99999"),
        ("alpha beta --export votes.xls", "exported as .csv or .parquet"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_served(run, arguments, message):
    code, said, app = run(arguments)
    assert code == 1 and app is None
    error = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0]


def test_a_study_of_other_systems_is_not_gone_on_with(run):
    assert run("alpha beta --out s")[0] == 0
    code, said, app = run("alpha gamma --out s")
    assert code == 1 and app is None and "s holds a study of alpha, beta" in said


def test_a_port_that_is_taken_is_said(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said, _ = run(f"alpha beta --port {taken.getsockname()[1]}")
    assert code == 1 and "choose another with --host or --port" in said


def test_the_page_answers_to_the_address_that_raters_were_given(run):
    _, said, app = run(
        f"alpha beta --out s --address https://Study.Example:8443 --token {'a' * 16}"
    )
    assert links(said)[0].startswith("https://Study.Example:8443/r/")
    path = links(said)[0].split("8443")[1]
    hosts = {"study.example:8443": 200, "localhost:9": 200, "evil.example": 400, "example": 400}
    for host, status in hosts.items():
        client = testclient.TestClient(app, base_url=f"http://{host}")
        assert client.get(path).status_code == status


def test_listening_everywhere_does_not_answer_to_every_name(run):
    host = f"--host 0.0.0.0 --address http://192.0.2.7:8000 --token {'a' * 16}"
    _, said, app = run(f"alpha beta --out s {host}")
    path = links(said)[0].split(":8000")[1]
    for name, status in {"192.0.2.7:8000": 200, "0.0.0.0:8000": 400, "192.0.2.8": 400}.items():
        client = testclient.TestClient(app, base_url=f"http://{name}")
        assert client.get(path).status_code == status


def test_what_a_study_leaves_out_is_said(run, folders):
    (folders / "alpha" / "prompts.txt").unlink()
    _, said, _ = run("alpha beta --out s")
    assert "Left out: prompt following is not asked: nothing to ask about alpha." in said


def test_true_pictures_serve_as_checks(run, folders):
    run("alpha beta --out s --references gamma")
    plan = human.load("s")
    checks = [plan.key[row["id"]] for row in plan.checks if row["question"] == "prompt following"]
    assert checks and all(set(two) == {"true picture", human.OTHER} for two in checks)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_votes_are_exported(run, folders, ending):
    run("alpha beta --out s --raters 2")
    store = VoteStore.open("s")
    store.vote(1, human.trials(store.plan, 1)[0].id, "left", "a" * 32)
    code, said, app = run(f"--out s --export votes.{ending}")
    assert code == 0 and app is None and f"1 votes and undos are in votes.{ending}" in said
    read = pd.read_csv if ending == "csv" else pd.read_parquet
    assert read(folders / f"votes.{ending}").choice.tolist() == ["left"]


def test_a_real_server_refuses_ten_megabytes_unread_and_stops_at_ctrl_c(tmp_path):
    folder = tiny_study.make(tmp_path / "study").folder
    process, (link,) = served_study.start(folder, "--port", "0")
    try:
        with urllib.request.urlopen(link) as page:
            assert b"Rater 1" in page.read() and "server" not in page.headers
        address, path = re.fullmatch(r"http://([^/]+)(/.*)", link).groups()
        with socket.create_connection(address.split(":"), timeout=20) as plain:
            head = f"POST {path}vote HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\n"
            plain.sendall(f"{head}Content-Length: 10485760\r\n\r\n".encode())
            assert plain.recv(100).startswith(b"HTTP/1.1 413")
        request = urllib.request.Request(link + "vote", data=b"{}", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request)
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and "Stopped; 0 votes are in" in rest
