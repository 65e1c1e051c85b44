"""A user service in the style of the demo. It answers every login with 401. X-Read has the user
names that several common ways of parsing the body find: base64 of a JSON list. It prints its port
and exits when its standard input closes."""

import base64
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, parse_qsl


def text(body):
    return body.decode("utf-8", "replace")


WAYS = [
    lambda body: json.loads(body)["username"],  # bytes: UTF-8, UTF-16 or UTF-32, detected
    lambda body: json.loads(text(body), strict=False)["username"],
    lambda body: json.loads(body, object_pairs_hook=lambda pairs: dict(reversed(pairs)))["username"],  # the first of two
    lambda body: json.loads(body, parse_int=float)["username"],
    lambda body: parse_qs(text(body))["username"][0],
    lambda body: parse_qs(text(body).replace(";", "&"))["username"][0],  # as parse_qs did before Python 3.9.2
    lambda body: dict(parse_qsl(text(body), keep_blank_values=True))["username"],
    lambda body: parse_qs(text(body))["username[]"][0],
    lambda body: parse_qs(text(body).strip("\0\r\n\t "))["username"][-1].split("\0")[0],
]


def read(way, body):
    try:
        name = way(body)
    except Exception:
        return ""  # it would answer 400
    if isinstance(name, float) and name.is_integer():
        name = int(name)
    return "" if name is None else str(name)


class Users(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        names = json.dumps([read(way, body) for way in WAYS])
        self.send_response(401)
        self.send_header("X-Read", base64.b64encode(names.encode()).decode())
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def end_with_stdin():
    sys.stdin.read()
    os._exit(0)


server = ThreadingHTTPServer(("127.0.0.1", 0), Users)
print(server.server_port, flush=True)
threading.Thread(target=end_with_stdin, daemon=True).start()
server.serve_forever()
