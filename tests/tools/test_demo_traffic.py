"""The demo's services and its client, joined directly: what the daemons stand between."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tools.demo import traffic
from tools.demo.backends import Backend, Sent, sent_files
from tools.demo.traffic import TrafficError, download, echo_datagrams, write_random_file

SIZE = 3 * traffic.CHUNK_BYTES + 17


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[Backend]:
    (tmp_path / "files").mkdir()
    with Backend(("files", str(tmp_path / "files")), tmp_path / "files.log") as backend:
        yield backend


@pytest.fixture
def serve_once() -> Iterator[Callable[[bytes], int]]:
    """A server that answers one connection with given bytes and hangs up."""
    threads = []

    def start(answer: bytes) -> int:
        listener = socket.create_server(("127.0.0.1", 0))

        def run() -> None:
            with listener:
                client, _ = listener.accept()
                with client:
                    client.recv(4096)
                    client.sendall(answer)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        port: int = listener.getsockname()[1]
        return port

    yield start
    for thread in threads:
        thread.join(5)


def get(port: int, path: str = "/random.bin", limit_s: float = 10.0) -> traffic.Download:
    return download(port, path, time.monotonic() + limit_s, lambda _s: None, lambda _n: None)


def test_downloaded_file_has_the_digest_it_was_written_with(tmp_path: Path, file_server: Backend) -> None:
    digest = write_random_file(tmp_path / "files" / "random.bin", SIZE)
    progress: list[int] = []
    first_byte: list[float] = []
    done = download(
        file_server.port, "/random.bin", time.monotonic() + 10, first_byte.append, progress.append
    )
    assert (done.bytes_received, done.sha256) == (SIZE, digest)
    assert digest == hashlib.sha256((tmp_path / "files" / "random.bin").read_bytes()).hexdigest()
    assert progress[-1] == SIZE
    assert first_byte == [done.first_byte_s]
    assert 0 < done.first_byte_s <= done.seconds
    assert done.bytes_per_second > 0


def wait_for_record(directory: Path) -> Sent:
    deadline = time.monotonic() + 10
    while not (sent := sent_files(directory)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (only,) = sent
    return only


def test_server_records_what_it_sent(tmp_path: Path, file_server: Backend) -> None:
    digest = write_random_file(tmp_path / "files" / "random.bin", SIZE)
    assert sent_files(tmp_path / "files") == []
    get(file_server.port)
    assert wait_for_record(tmp_path / "files") == Sent(SIZE, digest)


def test_server_records_no_more_than_it_sent_to_a_client_that_goes_away(
    tmp_path: Path, file_server: Backend
) -> None:
    size = 64 << 20  # more than the kernel takes for a client that does not read
    write_random_file(tmp_path / "files" / "random.bin", size)
    with socket.create_connection(("127.0.0.1", file_server.port), 10) as client:
        client.sendall(b"GET /random.bin HTTP/1.1\r\n\r\n")
        assert client.recv(1000)
    sent = wait_for_record(tmp_path / "files")
    assert 0 < sent.size < size
    with (tmp_path / "files" / "random.bin").open("rb") as file:
        assert sent.sha256 == hashlib.sha256(file.read(sent.size)).hexdigest()


def test_two_random_files_differ(tmp_path: Path) -> None:
    assert write_random_file(tmp_path / "a", 100) != write_random_file(tmp_path / "b", 100)


def test_missing_file_is_an_error_that_says_404(file_server: Backend) -> None:
    with pytest.raises(TrafficError, match="404"):
        get(file_server.port, "/absent.bin")


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"", "RemoteDisconnected"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", "5 bytes|5 of 100 bytes"),
    ],
    ids=["hangs up at once", "hangs up in the body"],
)
def test_connection_that_ends_early_is_an_error(
    serve_once: Callable[[bytes], int], answer: bytes, complaint: str
) -> None:
    with pytest.raises(TrafficError, match=complaint):
        get(serve_once(answer))


def test_download_past_its_deadline_is_given_up(tmp_path: Path, file_server: Backend) -> None:
    write_random_file(tmp_path / "files" / "random.bin", SIZE)
    with pytest.raises(TrafficError, match="too long"):
        get(file_server.port, limit_s=-1.0)


def test_datagrams_of_every_size_come_back(tmp_path: Path) -> None:
    with Backend(("echo",), tmp_path / "echo.log") as echo:
        echoes = echo_datagrams(echo.port)
    assert [each.size for each in echoes] == list(traffic.ECHO_SIZES)
    assert all(each.sends >= 1 and each.round_trip_s > 0 for each in echoes)


def test_lost_datagram_is_sent_again_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "ECHO_LIMIT_S", 0.05)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def drop_the_first() -> None:
            server.recvfrom(100)
            payload, source = server.recvfrom(100)
            server.sendto(b"late echo of another", source)
            server.sendto(payload, source)

        thread = threading.Thread(target=drop_the_first)
        thread.start()
        (echo,) = echo_datagrams(server.getsockname()[1], [10])
        thread.join(5)
    assert echo.sends == 2


def test_datagram_that_never_returns_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "ECHO_LIMIT_S", 0.01)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        with pytest.raises(TrafficError, match="10 bytes did not come back, sent 4 times"):
            echo_datagrams(silent.getsockname()[1], [10])


def test_service_that_cannot_start_is_an_error_that_names_its_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"b\.log"):
        Backend(("nonsense",), tmp_path / "b.log")
