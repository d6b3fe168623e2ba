"""A web server on this machine that misbehaves on demand."""

import threading
from collections import Counter, defaultdict
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site:
    """What the server holds and how it fails.

    Attributes:
        files: Content by path.
        busy: Number of 503 answers to give first, by path.
        cut: Bytes after which GETs break off, one for each GET, by path.
        moved: Target of a redirect, by path.
        ranges: False to ignore Range headers.
        gets: (path, Range header) of every GET.
        sent: Bytes sent, by path.
    """

    def __init__(self):
        self.files, self.busy, self.cut, self.moved = {}, Counter(), defaultdict(list), {}
        self.ranges, self.gets, self.sent = True, [], Counter()


@contextmanager
def serve(site):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def _plain(self, status, **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self):
            path, asked = self.path, self.headers.get("Range")
            site.gets.append((path, asked))
            if site.busy[path] > 0:
                site.busy[path] -= 1
                return self._plain(503)
            if path in site.moved:
                return self._plain(302, Location=site.moved[path])
            if path not in site.files:
                return self._plain(404)
            data, start = site.files[path], 0
            if asked and site.ranges:
                start = int(asked.removeprefix("bytes=").rstrip("-"))
                if start >= len(data):
                    return self._plain(416)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            rest = data[start:]
            if site.cut[path]:
                rest = rest[: site.cut[path].pop(0)]
                self.close_connection = True
            site.sent[path] += len(rest)
            self.wfile.write(rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
