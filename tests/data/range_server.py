"""A web server on this machine that serves a folder: ranges, versions, faults, and a record of what was asked."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Behaviour:
    """What the server does, and what it was asked: (path, Range) in order."""

    folder: Path
    ranges: bool = True
    tags: bool = True
    cut_after: int | None = None  # bytes after which the next connection breaks; once
    cuts: int = 0  # how many more connections break
    failures: list[int] = field(default_factory=list)  # statuses to answer with first
    pause: float = 0.0  # seconds after each block
    asked: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Behaviour]]:
    behaviour = Behaviour(folder)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            behaviour.asked.append((self.path, wanted))
            if behaviour.failures:
                self.send_error(behaviour.failures.pop(0))
                return
            path = behaviour.folder / self.path.rpartition("/")[2].partition("?")[0]
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            tag = f'"{hashlib.md5(content).hexdigest()}"'
            start = 0
            if behaviour.ranges and wanted and self.headers.get("If-Range", tag) == tag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content) > 0 and start:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if behaviour.tags:
                self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            rest = content[start:]
            if behaviour.cuts:
                behaviour.cuts -= 1
                rest = rest[: behaviour.cut_after]
            for place in range(0, len(rest), 8192):
                self.wfile.write(rest[place : place + 8192])
                if behaviour.pause:
                    self.wfile.flush()
                    time.sleep(behaviour.pause)
            self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", behaviour
    finally:
        server.shutdown()
        server.server_close()
