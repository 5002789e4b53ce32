"""The command ``rate``: a study of human raters from runs or folders, and the page where they vote.

Everything is in one folder: pictures, plan, votes and the secret that the raters' links are made
of. The same command, or the folder alone, goes on with the study; links stay what they were.
"""

import argparse
import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dalle3lib import UserError, files, paths

if TYPE_CHECKING:  # the rest is imported where it is needed: every command imports this module
    from fastapi import FastAPI

    from dalle3lib.vote_store import VoteStore

LOCAL = ("localhost", "127.0.0.1", "[::1]")  # names under which this machine may call itself
EVERYWHERE = ("0.0.0.0", "::", "")  # a server that listens there has no name yet
SHORTEST = 16  # characters of a token that is given: of fewer, all could be tried
PLAN = ("trials", "checks", "repeats", "prompts", "size", "seed")  # options for a new study


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``python -m dalle3lib rate``."""
    add = parser.add_argument
    parser.description = (
        "Make a study of two or more systems, or go on with it: print a personal link for each "
        "rater and serve the page where they compare pictures, until Ctrl-C. The folder of a study "
        "holds its pictures, plan and votes; chapter 09 reads it."
    )
    add("systems", metavar="RUN", nargs="*", type=Path,
        help="runs of 04a_train_arm, or folders of images with equal names")  # fmt: skip
    add("--out", type=Path, metavar="FOLDER", help="of the study (default: in runs/human)")
    add("--raters", type=int, default=1, help="links to make; later more than before: adds raters")
    add("--host", default="127.0.0.1", help="where to listen (default: this machine alone)")
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--address", metavar="URL", help="how raters reach this machine (default: the host)")
    add("--token", help="a secret that the links are made of; needed beyond this machine")
    add("--export", type=Path, metavar="FILE", help="write the votes as .csv or .parquet, and stop")
    new = parser.add_argument_group("for a new study")
    add = new.add_argument
    add("--trials", type=int, default=60, help="pairs a rater compares (60)")
    add("--checks", type=int, default=6, help="further ones with an obvious answer (6)")
    add("--repeats", type=int, default=6, help="pairs that are shown again, sides swapped (6)")
    add("--prompts", type=int, help="of each question, drawn at random (default: all)")
    add(
        "--references", type=Path, metavar="FOLDER", help="true pictures of the prompts, for checks"
    )
    add("--size", type=int, help="scale all pictures to squares of this many pixels")
    add("--seed", type=int, default=0)


def command(options: argparse.Namespace) -> None:
    """Let people compare pictures of runs or folders, on a page with a link for each rater."""
    from dalle3lib import human_app

    reach = address(options.host, options.token, options.address)
    store = open_study(options)
    if options.export:
        print(f"{len(store.votes()):,} votes and undos are in {store.export(options.export)}.")
        return
    tokens = invite(store, options.raters, options.token or kept_secret(store.plan.folder))
    listening = listen(options.host, options.port)
    reach = reach or f"http://{_bracketed(options.host)}:{listening.getsockname()[1]}"
    hosts = {_bracketed(urlsplit(reach).hostname), _bracketed(options.host), *LOCAL} - {*EVERYWHERE}
    app = human_app.build(store, tokens, sorted(hosts))
    print(welcome(store, reach, tokens), flush=True)
    serve(app, listening)
    print(f"Stopped; {_votes(store)} votes are in {store.file}. The same command goes on.")


def open_study(options: argparse.Namespace) -> "VoteStore":
    """The store of the study that the options name, made if there is none.

    Raises UserError if no folder can be told from them, or if it is a study of other systems.
    """
    from dalle3lib import human_samples, human_study
    from dalle3lib.vote_store import VoteStore

    names = sorted(path.expanduser().resolve().name for path in options.systems)
    if not (options.out or names):
        raise UserError("Name the runs or folders to compare, or with --out a study to go on with.")
    folder = (options.out or paths.runs_dir() / "human" / "_vs_".join(names)).expanduser()
    if not (folder / "plan.json").is_file():
        if not names:
            raise UserError(f"{folder} holds no study yet: name the runs or folders to compare.")
        systems = human_samples.read_all(options.systems)
        true = options.references and human_samples.from_folder(options.references)
        given = {name: getattr(options, name) for name in PLAN}
        for reason in human_study.make(folder, systems, references=true, **given).left_out:
            print(f"Left out: {reason}.")
    store = VoteStore.create(folder)
    if names and names != store.plan.systems:
        raise UserError(
            f"{folder} holds a study of {', '.join(store.plan.systems)}: choose another with --out."
        )
    return store


def kept_secret(folder: Path) -> str:
    """The secret that a study keeps for its links where no token is given; made when missing."""
    file = folder / "secret"
    with files.guard(file):
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return file.read_text()
        with open(descriptor, "w") as new:
            new.write(secret := secrets.token_hex())
    return secret


def invite(store: "VoteStore", raters: int, secret: str) -> list[str]:
    """The tokens of all raters, in order, after inviting those who are missing of ``raters``.

    Raises UserError if earlier links were made of another secret: they would no longer be valid.
    """
    from dalle3lib.vote_store import Refused

    if raters < 1:
        raise UserError(f"A study needs 1 rater or more, not {raters}.")
    if (new := raters - store.raters()) > 0:
        store.invite(new, secret)
    tokens = [store.token(secret, number) for number in range(store.raters())]
    try:
        if [store.rater(token) for token in tokens] == list(range(len(tokens))):
            return tokens
    except Refused:
        pass
    raise UserError(
        "This study's links were made of another token: give the --token of the first time (or "
        "none, if none was given)."
    )


def address(host: str, token: str | None, url: str | None) -> str | None:
    """The address for raters as it was given, checked; None if it is the host's and port's own.

    UserError if others could reach the page and no token of ``SHORTEST`` characters is given, and
    if it cannot be told how they would reach it.
    """
    if token is not None and len(token) < SHORTEST:
        raise UserError(f"A token has {SHORTEST} characters or more, so that nobody can guess it.")
    if token is None and not _loopback(host):
        raise UserError(
            f"On {host or 'all addresses'} others can reach the page, so its links must be made of "
            f"a secret of yours: give --token, {SHORTEST} characters or more."
        )
    if url is None and host in EVERYWHERE:
        raise UserError("Say with --address how raters reach this machine, as http://name:port.")
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.path.strip("/") or parts.query or "*" in parts.netloc:
        raise UserError("An --address begins with http:// or https:// and ends after host or port.")
    return f"{parts.scheme}://{parts.netloc}"


def _loopback(host: str) -> bool:
    """Whether only this machine can reach a host."""
    try:
        return host in LOCAL or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; UserError if the port is taken or the host not this machine's."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"Cannot listen on {host}:{port} ({error}): choose another with --host or --port."
        ) from None


def welcome(store: "VoteStore", reach: str, tokens: Sequence[str]) -> str:
    """What is said at the start: the address, each rater's link and how far they are."""
    plan, numbers = store.plan, store.plan.per_rater
    links = []
    for number, token in enumerate(tokens):
        done, total = store.progress(number)
        links.append(f"  Rater {number + 1}: {reach}/r/{token}/  ({done} of {total})")
    return "\n".join(
        [
            f"Study of {', '.join(plan.systems)} in {plan.folder}, {_votes(store)} votes so far. "
            f"A rater compares {numbers['main']} pairs, {numbers['repeat']} of them twice, and "
            f"{numbers['check']} with an obvious answer.",
            "Send each rater one link:",
            *links,
            f"Listening on {reach}; stop with Ctrl-C.",
        ]
    )


def serve(app: "FastAPI", listening: socket.socket) -> None:
    """Answer requests until Ctrl-C; requests that have begun are answered first."""
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn passes it on after it has shut down
        pass


def _votes(store: "VoteStore") -> str:
    """How many trials have a vote, all raters together."""
    return f"{sum(store.progress(rater).done for rater in range(store.raters())):,}"


def _bracketed(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
