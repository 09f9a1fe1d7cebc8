"""A real redis-server of one's own (Debian's, unpacked by `make tools`), on a free port; killed and started again where a test wants it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from socket import AF_INET, SOCK_STREAM, socket
from time import monotonic, sleep

import redis

from server.state.redis.link import Place
from tests.tools import tool

UP = 20.0  # seconds that it may take to answer


class RedisServer:
    """`folder` holds its data. It keeps them (appendonly) unless `forgets`; more of its settings as in its configuration file."""

    def __init__(self, folder: Path, *settings: str, forgets: bool = False, port: int = 0) -> None:
        self.port = port or free_port()
        self._command = [tool("redis-server"), "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder), "--save", ""]
        self._command += ["--appendonly", "no" if forgets else "yes", "--loglevel", "warning", *settings]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def place(self) -> Place:
        """Where it's reached, with short waits."""
        return Place("127.0.0.1", self.port, timeout=5.0)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self) -> redis.Redis:
        """A client of the test's own."""
        return redis.Redis(port=self.port, socket_timeout=5)

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = monotonic() + UP
        while not self._answers():
            assert self._process.poll() is None, "redis-server has ended"
            assert monotonic() < deadline, "redis-server doesn't answer"
            sleep(0.01)

    def kill(self) -> None:
        """End it without a word, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        """Whether it has read its data: a password may be asked for, or TLS, so any word is an answer."""
        with closing(socket(AF_INET, SOCK_STREAM)) as probe:
            probe.settimeout(1)
            try:
                probe.connect(("127.0.0.1", self.port))
                probe.sendall(b"PING\r\n")
                return not probe.recv(64).startswith(b"-LOADING")
            except OSError:
                return False


@contextmanager
def redis_server(folder: Path, *settings: str, forgets: bool = False, port: int = 0) -> Iterator[RedisServer]:
    """One until the block ends."""
    server = RedisServer(folder, *settings, forgets=forgets, port=port)
    try:
        yield server
    finally:
        server.kill()


def free_port() -> int:
    """One that nobody listens on now."""
    with closing(socket(AF_INET, SOCK_STREAM)) as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port
