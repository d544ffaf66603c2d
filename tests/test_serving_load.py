"""The endpoint under pressure: full queues, slow readers, who goes away, the end of the process."""

from __future__ import annotations

import io
import json
import os
import queue
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from served import RunningServer, make_adapter, served

from emodistill.configs import ServeConfig
from emodistill.errors import InputError
from emodistill.model import Engine, embedded_path
from emodistill.serving.server import run_server

ROOT = Path(__file__).resolve().parents[1]
LONG = {"model": "student", "messages": [{"role": "user", "content": "Go on."}], "temperature": 0}
LONG |= {"max_tokens": 3000}
SHORT = LONG | {"max_tokens": 2}


@pytest.fixture(scope="module")
def server(tiny_checkpoint):
    """Two slots and a queue of two, for a random student that never ends a reply by itself."""
    config = ServeConfig(
        port=0, student=str(tiny_checkpoint), num_slots=2, max_queue=2, timeout_s=300.0
    )
    with served(config) as running:
        yield running


def opened(server, body, receive_bytes=None):
    """A connection on which a request was sent, its answer not yet read."""
    host, port = server.root.removeprefix("http://").split(":")
    connection = socket.socket()
    if receive_bytes is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(120)
    connection.connect((host, int(port)))
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n"
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + data)
    return connection


def wait_for(condition, seconds=60.0):
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.02)


def test_a_full_queue_is_told_when_to_ask_again(server):
    streams = [opened(server, LONG | {"stream": True}) for _ in range(4)]
    wait_for(lambda: server.metric("emodistill_queue_length") == 2)
    assert server.metric("emodistill_slots_in_use") == 2
    status, headers, content = server.ask(f"{server.url}/chat/completions", SHORT)
    error = json.loads(content)["error"]
    assert status == 429 and error["code"] == "queue_full"
    assert 1 <= int(headers["Retry-After"]) <= 60
    for stream in streams:
        stream.close()
    # Those who went away are generated for no longer, and others are served.
    wait_for(lambda: server.metric("emodistill_slots_in_use") == 0)
    generated = server.metric('emodistill_tokens_total{kind="generated"}')
    assert server.chat(**SHORT)["usage"]["completion_tokens"] == 2
    assert server.metric('emodistill_tokens_total{kind="generated"}') < generated + 20
    assert generated < 4 * 3000


def test_slow_readers_block_nobody(server):
    """More of them than there are slots and places in the queue together."""
    body = LONG | {"max_tokens": 600, "stream": True, "logprobs": True, "top_logprobs": 1}
    slow = []
    for _ in range(6):
        slow.append(opened(server, body, receive_bytes=1024))
        wait_for(lambda: server.metric("emodistill_queue_length") < 2)
    assert server.chat(**SHORT)["usage"]["completion_tokens"] == 2
    wait_for(lambda: server.metric("emodistill_slots_in_use") == 0)
    for connection in slow:  # what they were too slow for is still there
        found = b""
        while not found.endswith(b"0\r\n\r\n"):
            part = connection.recv(1 << 16)
            assert part, "the stream broke off"
            found += part
        assert b"data: [DONE]" in found
        connection.close()


def test_an_engine_that_fails_is_made_anew(server, monkeypatch):
    def broken(engine):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", broken)
        status, answer = server.post("/chat/completions", SHORT)
    assert status == 500
    assert answer["error"]["message"] == "generation failed; ask again."
    assert server.post("/chat/completions", SHORT)[0] == 200


def test_a_request_that_takes_too_long_is_ended(tiny_checkpoint):
    config = ServeConfig(port=0, student=str(tiny_checkpoint), num_slots=2, timeout_s=1.0)
    with served(config) as server:
        server.post("/chat/completions", LONG)  # compiles; may itself take too long
        status, answer = server.post("/chat/completions", LONG | {"max_tokens": 4000})
        assert status == 504 and answer["error"]["type"] == "timeout"
        with opened(server, LONG | {"stream": True, "max_tokens": 4000}) as stream:
            found = b""
            while part := stream.recv(1 << 16):
                found += part
        assert b"the time of this request is up" in found and b"[DONE]" not in found
        wait_for(lambda: server.metric("emodistill_slots_in_use") == 0)
        # A body that never comes is waited for no longer either.
        host, port = server.root.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as torn:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n"
            torn.sendall(head + b"{")
            assert torn.recv(1 << 16).startswith(b"HTTP/1.1 504")


class Told(io.StringIO):
    """Standard output; another thread waits for its lines."""

    def __init__(self):
        super().__init__()
        self.lines = queue.SimpleQueue()

    def write(self, text):
        super().write(text)
        for line in filter(None, text.splitlines()):
            self.lines.put(line)
        return len(text)

    def readline(self):
        return self.lines.get(timeout=60)


def signalled(read_line, send_signal):
    """Ask a server that starts, signal it while two answers are under way; all that it printed."""
    line = read_line()
    server = RunningServer(line.split(" at ")[1].split(";")[0], "sk-secret-argv")
    assert server.ask(f"{server.root}/health")[0] == 200
    body = LONG | {"max_tokens": 200}
    expected = server.text(**body)
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(server.text, **body)
        stream = pool.submit(server.events, **body)
        wait_for(lambda: server.metric("emodistill_slots_in_use") == 2)
        send_signal()
        assert read_line().startswith("finishing what is under way")
        refused = server.ask(f"{server.url}/chat/completions", SHORT)
        assert whole.result(120) == expected
        texts = [chunk["choices"][0]["delta"].get("content") for chunk in stream.result(120)]
        assert "".join(filter(None, texts)) == expected
    assert refused[0] == 503 and int(refused[1]["Retry-After"]) > 0
    return line


def serve_command(checkpoint):
    flags = ["--student", str(checkpoint), "--num-slots", "2", "--port", "0"]
    return ["scripts/serve.py", *flags, "--api-key-env", "SERVED_KEY"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_what_is_under_way_finish(tiny_checkpoint, number, monkeypatch, capsys):
    told, threads, sent = Told(), set(threading.enumerate()), []
    has_ended = threading.Event()

    def send_signal():
        sent.append(True)
        os.kill(os.getpid(), number)

    def ask():
        try:
            return signalled(told.readline, send_signal)
        finally:
            # Without a server nobody handles the signal, and it would end the tests.
            if not sent and not has_ended.is_set():
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(sys, "argv", serve_command(tiny_checkpoint))
    monkeypatch.setattr(sys, "stdout", told)
    monkeypatch.setenv("SERVED_KEY", "sk-secret-argv")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        try:
            runpy.run_path(str(ROOT / "scripts/serve.py"), run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
        finally:
            has_ended.set()
        asked.result(60)
    complaints = capsys.readouterr().err
    assert not code, complaints
    assert "Traceback" not in complaints and "sk-secret" not in told.getvalue() + complaints
    # Nothing is left behind that would keep a process alive.
    wait_for(lambda: all(one.daemon for one in set(threading.enumerate()) - threads))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_a_server_s_own_process(tiny_checkpoint, number):
    process = subprocess.Popen(
        [sys.executable, *serve_command(tiny_checkpoint)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SERVED_KEY": "sk-secret-argv"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = signalled(process.stdout.readline, lambda: process.send_signal(number))
        rest, complaints = process.communicate(timeout=60)
        assert process.returncode == 0, complaints
        assert "Traceback" not in complaints and "sk-secret" not in line + rest + complaints
    finally:
        process.kill()
        process.communicate()


def test_a_port_in_use_is_a_clear_error(server, tiny_checkpoint):
    port = int(server.root.rpartition(":")[2])
    with pytest.raises(InputError, match=rf"--port {port}: .*0 finds a free one"):
        run_server(ServeConfig(port=port, student=str(tiny_checkpoint)))


def test_an_adapter_of_another_base_is_named_when_it_is_asked_for(tmp_path, tiny_checkpoint):
    """A run's adapters are loaded at first use; the base and the server stay."""
    make_adapter(embedded_path(), tmp_path / "crad/sft/default/adapter", seed=0)
    config = ServeConfig(port=0, run=tmp_path, student=str(tiny_checkpoint), num_slots=2)
    with served(config) as server:
        status, answer = server.post("/chat/completions", SHORT | {"model": "sft"})
        assert status == 503 and answer["error"]["code"] == "adapter_unusable"
        assert "another base model" in answer["error"]["message"]
        assert server.chat(**SHORT)
    config = ServeConfig(
        port=0,
        student=str(tiny_checkpoint),
        adapter=(f"other={tmp_path}/crad/sft/default/adapter",),
    )
    with pytest.raises(InputError, match="another base model"), served(config):
        raise AssertionError("never entered")


def test_broken_http_leaks_no_key(server, caplog, capfd):
    host, port = server.root.removeprefix("http://").split(":")
    for data in (b"\x00\r\n\r\n", b"GET / HTTP/1.1\r\nAuthorization Bearer sk-leak\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(data)
            assert b" 400 " in connection.recv(1 << 16)
    assert "sk-leak" not in caplog.text + "".join(capfd.readouterr())
    assert server.chat(**SHORT)
    assert threading.active_count() < 50
