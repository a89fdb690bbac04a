"""An HTTP proxy before an S3 server that does on purpose what networks and object stores do by accident.

It passes requests on unchanged (signatures cover the host name, which is the proxy's own) until it is told a kind of
weather; then it strikes the requests that this is about, or a share of them.
"""

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_REFUSALS = {
    "error": (500, "InternalError"),
    "slow-down": (503, "SlowDown"),
    "expired": (403, "ExpiredToken"),
    "read-only": (403, "AccessDenied"),
}

TRICKLE_BYTES_PER_S = 20_000


@dataclass
class Request:
    """One request of a client, whole."""

    method: str
    head: bytes
    """Request line and headers, without the empty line."""

    body: bytes


class FaultProxy:
    """Listens on `port`, passes on to `upstream`; `weather` may be changed at any time.

    Weathers: calm; error (500), slow-down (503); reset (before or after the store has done what was asked); cut-upload
    (half of a body arrives, then nothing); cut-download (half of an answer arrives); trickle (20 kB/s); silent (no
    answer at all); expired (403 for who signs with `expired_key`); read-only (403 for whatever changes something).
    """

    def __init__(self, upstream: int, *, seed: int = 0) -> None:
        self.upstream = upstream
        self.weather = "calm"
        self.share = 1.0
        """Of the requests that the weather is about, how many it strikes."""

        self.expired_key = ""
        self.struck = 0
        """Requests that something was done to."""

        self.port = 0
        self._dice = random.Random(seed)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        """Serves within."""
        self._thread.start()
        self._ready.wait()
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._client, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled at the end, which Python 3.11 would report as an error of the stream's
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while (request := await _read_request(reader, writer)) is not None:
                if not await self._answer(request, writer):
                    break
        with contextlib.suppress(OSError):
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False where the connection is over."""
        weather = self._strike(request)
        if weather in _REFUSALS:
            writer.write(_refusal(*_REFUSALS[weather], request.method))
            await writer.drain()
            return True
        if weather == "reset":
            if self._dice.random() < 0.5:
                await self._pass_on(request)  # It is done, and only the answer is lost
            return _reset(writer)
        if weather == "cut-upload":
            await self._pass_on(request, half=True)
            return _reset(writer)
        if weather == "silent":
            while self.weather == "silent":
                await asyncio.sleep(0.1)
            return _reset(writer)
        answer = await self._pass_on(request)
        if weather == "cut-download":
            writer.write(answer[: len(answer) - len(answer.partition(b"\r\n\r\n")[2]) // 2])
            await writer.drain()
            return _reset(writer)
        if weather == "trickle":
            step = TRICKLE_BYTES_PER_S // 10
            for start in range(0, len(answer), step):
                writer.write(answer[start : start + step])
                await writer.drain()
                await asyncio.sleep(0.1)
            return True
        writer.write(answer)
        await writer.drain()
        return bool(answer)

    def _strike(self, request: Request) -> str:
        """What is done to this request; empty where nothing."""
        weather = self.weather
        about = {
            "calm": False,
            "cut-upload": request.method == "PUT" and len(request.body) > 1,
            "cut-download": request.method == "GET",
            "read-only": request.method in ("PUT", "POST", "DELETE"),
            "expired": f"Credential={self.expired_key}/".encode() in request.head,
        }.get(weather, True)
        if not about or self._dice.random() >= self.share:
            return ""
        self.struck += 1
        return weather

    async def _pass_on(self, request: Request, *, half: bool = False) -> bytes:
        """Answer of the store, whole; nothing where it gives none."""
        own = (b"expect:", b"connection:")  # Between two neighbours only
        lines = [line for line in request.head.split(b"\r\n") if not line.lower().startswith(own)]
        reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
        writer.write(request.body[: len(request.body) // 2] if half else request.body)
        await writer.drain()
        try:
            if half:
                return b""
            answer = await reader.read()
        finally:
            _reset(writer) if half else writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(own)]
        return b"\r\n".join(lines) + b"\r\n\r\n" + body if head else b""


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    head = (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
    headers = dict(line.lower().partition(b":")[::2] for line in head.split(b"\r\n")[1:])
    if b"100-continue" in headers.get(b"expect", b""):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()
    if b"chunked" in headers.get(b"transfer-encoding", b""):
        body = b""
        while True:
            line = await reader.readuntil(b"\r\n")
            chunk = await reader.readexactly(int(line.partition(b";")[0], 16) + 2)
            body += line + chunk
            if len(chunk) == 2:
                break
    else:
        body = await reader.readexactly(int(headers.get(b"content-length", b"0")))
    return Request(head.partition(b" ")[0].decode(), head, body)


def _refusal(status: int, code: str, method: str) -> bytes:
    """An answer of S3 that refuses."""
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'.encode()
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    return head + (b"" if method == "HEAD" else body)


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End a connection as a crash does, with a reset."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False
