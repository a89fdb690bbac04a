"""A small HTTP server for downloads: ranges, versions, answers that break off."""

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PIECE_BYTES = 64 << 10


class FileServer(http.server.BaseHTTPRequestHandler):
    root: Path
    url: str
    asked: list[str | None]
    """Range of each request."""

    version = '"1"'
    """ETag of everything, or "" for a server without."""

    stop_after = 1 << 40
    """Bytes per answer before it breaks off."""

    stops = 1 << 40
    """How many answers break off, before whole ones come."""

    ignores_ranges = False
    """Answers with the whole file, whatever part is asked for."""

    ignores_if_range = False
    """Answers with a part even where the file is another one by now."""

    shift = 0
    """Sends parts that begin so many bytes later than was asked for, and says so."""

    page: bytes | None = None
    """Sent as 200 in the place of every file."""

    refuses: int | None = None
    """Status in the place of every answer."""

    bytes_per_second: float | None = None
    """Sends so slowly; None: as fast as it can."""

    sent: list[int]
    """Bytes of the contents sent in each answer, where it sends slowly."""

    def do_GET(self):
        kind = type(self)
        if kind.refuses:
            kind.asked.append(self.headers.get("Range"))
            self.send_error(kind.refuses)
            return
        content = kind.page or (kind.root / self.path.lstrip("/")).read_bytes()
        asked = self.headers.get("Range")
        kind.asked.append(asked)
        begin = 0
        same = kind.ignores_if_range or self.headers.get("If-Range", kind.version) == kind.version
        if asked and same and not kind.ignores_ranges and kind.page is None:
            begin = int(asked.removeprefix("bytes=").rstrip("-")) + kind.shift
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
        kind.stops -= 1
        content = content[begin : begin + kind.stop_after] if kind.stops >= 0 else content[begin:]
        if kind.bytes_per_second is None:
            self.wfile.write(content)
        else:
            self.trickle(content)

    def trickle(self, content: bytes):
        kind, number = type(self), len(type(self).sent)
        kind.sent.append(0)
        with contextlib.suppress(ConnectionError):  # Who asked was killed
            size = max(1, min(PIECE_BYTES, int(kind.bytes_per_second / 20)))  # A small file is slow too
            for at in range(0, len(content), size):
                piece = content[at : at + size]
                self.wfile.write(piece)
                kind.sent[number] += len(piece)
                time.sleep(len(piece) / kind.bytes_per_second)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(root: Path) -> Iterator[type[FileServer]]:
    handler = type("Handler", (FileServer,), {"root": root, "asked": [], "sent": []})
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    handler.url = f"http://127.0.0.1:{running.server_port}"
    yield handler
    running.shutdown()
    running.server_close()
