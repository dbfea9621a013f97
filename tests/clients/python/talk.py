#!/usr/bin/env python3
"""Talks in a room with the `websockets` library: talk.py URL TOKEN ROOM COUNT UNTIL.

Subscribes from the beginning, sends COUNT messages (8 open at a time) and takes what comes until seq UNTIL.
Prints one JSON line for each event in the order of the connection: {"seq", "id", "text", "mine"}; a reply to a
send stands in the place of its event.
"""

import json
import sys
from collections import OrderedDict

from websockets.sync.client import connect

WINDOW = 8
PATIENCE_S = 30


def main() -> None:
    url, token, room = sys.argv[1:4]
    count, until = int(sys.argv[4]), int(sys.argv[5])
    with connect(url, subprotocols=["banyan.v1.json"], open_timeout=PATIENCE_S) as socket:
        assert socket.subprotocol == "banyan.v1.json", socket.subprotocol
        socket.send(json.dumps({"id": 1, "auth": {"token": token, "client": "python"}}))
        reply = json.loads(socket.recv(timeout=PATIENCE_S))
        assert "auth" in reply, reply
        socket.send(json.dumps({"id": 2, "subscribe": {"rooms": [{"room": room, "after": 0}]}}))
        since = 0
        last = 0
        sent = 0
        flying: OrderedDict[int, str] = OrderedDict()
        live = False
        while last < until or flying:
            while live and sent < count and len(flying) < WINDOW:
                name = f"python-{sent}"
                number = 100 + sent
                flying[number] = name
                body = {"room": room, "client_msg_id": name, "since": since, "text": f"{name} says grüß Gott 🌳"}
                socket.send(json.dumps({"id": number, "send": body}))
                sent += 1
            frame = json.loads(socket.recv(timeout=PATIENCE_S))
            if frame.get("id") == 2:
                entry = frame["subscribe"]["rooms"][0]
                assert "error" not in entry, entry
                since, live = entry["head"], True
            elif "id" in frame:
                name = flying.pop(frame["id"])
                assert "send" in frame, frame
                last = frame["send"]["seq"]
                print(json.dumps({"seq": last, "id": name, "text": None, "mine": True}))
            elif "event" in frame:
                event = frame["event"]
                last = event["seq"]
                text = event.get("message", {}).get("text")
                print(json.dumps({"seq": last, "id": event.get("client_msg_id"), "text": text, "mine": False}))


main()
