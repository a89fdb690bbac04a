"""A small HTTP server for downloads: ranges, versions, answers that break off."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path


class FileServer(http.server.BaseHTTPRequestHandler):
    root: Path
    url: str
    asked: list[str | None]
    """Range of each request."""

    version = '"1"'
    """ETag of everything, or "" for a server without."""

    stop_after = 1 << 40
    """Bytes per answer before it breaks off."""

    def do_GET(self):
        kind = type(self)
        content = (kind.root / self.path.lstrip("/")).read_bytes()
        asked = self.headers.get("Range")
        kind.asked.append(asked)
        begin = 0
        if asked and self.headers.get("If-Range") == kind.version:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            if begin >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if kind.version:
            self.send_header("ETag", kind.version)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        self.wfile.write(content[begin : begin + kind.stop_after])

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(root: Path) -> Iterator[type[FileServer]]:
    handler = type("Handler", (FileServer,), {"root": root, "asked": []})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{running.server_port}"
    yield handler
    running.shutdown()
    running.server_close()
