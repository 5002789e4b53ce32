"""A rater without a browser: votes until all trials have a vote, whatever happens to the server.

``python rating_client.py LINK SEED ACKNOWLEDGED``: each vote that the server acknowledged becomes
one line (trial, choice, key) of the file, written only then. A vote without an answer is sent again
with the same key; now and then an acknowledged one is, too. Prints how often each was needed.
"""

import http.client
import json
import random
import sys
import time
from urllib.parse import urlsplit


def ask(connection, path, body=None):
    """The server's answer, however often it takes, and how many tries were without one."""
    failures = 0
    while True:
        try:
            headers = {"Origin": f"http://{connection.host}:{connection.port}"}
            headers["Content-Type"] = "application/json"
            connection.request("POST" if body else "GET", path, body and json.dumps(body), headers)
            reply = connection.getresponse()
            told = reply.read()
            if reply.status == 200:
                return json.loads(told), failures
            if reply.status < 500:
                raise SystemExit(f"refused: {reply.status} {told!r}")
        except (OSError, http.client.HTTPException):
            connection.close()
        failures += 1
        time.sleep(0.1)


def main(link, seed, file):
    address, dice = urlsplit(link), random.Random(int(seed))
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    state, failed = ask(connection, address.path + "trial")
    again = 0
    with open(file, "w") as acknowledged:
        while state["trial"]:
            key = f"{dice.getrandbits(128):032x}"
            choice = dice.choice(["left", "right", "tie"])
            vote = {"trial": state["trial"]["id"], "choice": choice, "key": key, "seconds": 1.0}
            state, failures = ask(connection, address.path + "vote", vote)
            print(vote["trial"], choice, key, file=acknowledged, flush=True)
            failed += failures
            if dice.random() < 0.02:
                again += 1
                repeated, failures = ask(connection, address.path + "vote", vote)
                assert repeated == state, (repeated, state)
                failed += failures
    print(failed, again)


if __name__ == "__main__":
    main(*sys.argv[1:])
