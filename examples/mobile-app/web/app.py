"""Serves a page that posts photographs, and hands them on to a server of edgeserve with its key: PORT.

EDGESERVE_URL, EDGESERVE_MODEL, EDGESERVE_API_KEY and EDGESERVE_CA (a certificate) say which server. Standard library only.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
}
MOST = 20 << 20  # bytes of a photograph
URL = os.environ.get("EDGESERVE_URL", "http://localhost:8000").rstrip("/")
MODEL = os.environ.get("EDGESERVE_MODEL", "classifier")
KEY = os.environ.get("EDGESERVE_API_KEY", "")
CA = os.environ.get("EDGESERVE_CA")


def asked(photo: bytes) -> tuple[int, bytes]:
    """The status and the JSON of the server's answer."""
    headers = {"Content-Type": "image/jpeg"} | ({"Authorization": f"Bearer {KEY}"} if KEY else {})
    request = urllib.request.Request(f"{URL}/v2/models/{MODEL}/predict?top_k=5", photo, headers)
    context = ssl.create_default_context(cafile=CA) if URL.startswith("https") else None
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 502, json.dumps({"error": f"the server cannot be reached: {error}"}).encode()


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = FILES.get(self.path)
        if found is None:
            self.answer(404, b'{"error": "no such page"}', "application/json")
        else:
            name, kind = found
            self.answer(200, (HERE / name).read_bytes(), kind)

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if self.path != "/predict" or not length.isdigit():
            self.answer(404, b'{"error": "photographs go to /predict"}', "application/json")
        elif int(length) > MOST:
            self.answer(
                413, b'{"error": "the photograph is larger than 20 MB"}', "application/json"
            )
        else:
            status, body = asked(self.rfile.read(int(length)))
            self.answer(status, body, "application/json")

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", "default-src 'self'; img-src 'self' blob:")
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    with ThreadingHTTPServer(
        ("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 8080), Page
    ) as server:
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
