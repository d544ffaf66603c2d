"""A small server of file batches for tests: the calls of OpenAI and DashScope, on loopback.

It answers lines in reverse order, and loses, refuses or holds back what it is told to. Files and
batches are known to the key alone that has made them, as if each were an account's. It runs in a
thread of its own, so that a client may be another process that gets killed.
"""

import asyncio
import json
import threading
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web


def answered(text, prompt_tokens=10, completion_tokens=5):
    """The body of a whole answer."""
    message = {"role": "assistant", "content": text}
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }


def refused(status, code):
    return {"status_code": status, "body": {"error": {"code": code, "message": f"no: {code}"}}}


def _key(request):
    return request.headers.get("Authorization", "")


def _unknown():
    return web.json_response({"error": {"message": "no such object"}}, status=404)


@dataclass
class BatchServer:
    """`respond(body, number)` gives a line's answer (a body or what `refused` gives), None where
    the line is lost; `number` counts how often these messages were in a batch, from 0.

    Attributes:
      num_open_looks: looks at a batch after which it has ended.
      hold: an event after which `POST /batches` is answered; the batch is made at once.
      stall_after: lines of a file after which nothing more comes, the first time it is read.
      is_cut: whether the connection is closed then.
      faults: statuses with which the next calls of a path are answered, by "POST /batches", and
        of looks at a batch by "GET /batches/".
    """

    respond: object = lambda body, number: answered("SCORE: 8")
    num_open_looks: int = 0
    hold: threading.Event | None = None
    stall_after: int | None = None
    is_cut: bool = False
    faults: dict = field(default_factory=dict)
    status: str = "completed"
    files: dict = field(default_factory=dict)
    batches: dict = field(default_factory=dict)
    asked: Counter = field(default_factory=Counter)
    owners: dict = field(default_factory=dict)
    """The Authorization that each file and batch was made with."""
    used: list = field(default_factory=list)
    """That of each call about them."""
    billed: Counter = field(default_factory=Counter)
    """How often each line was answered by an HTTP 200, by its messages."""
    base_url: str = ""

    def __enter__(self):
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *exc_info):
        if self.hold is not None:
            self.hold.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self, started):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=1 << 28, middlewares=[self._faulty])
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/files", self._upload)
        app.router.add_get("/v1/files/{id}/content", self._content)
        app.router.add_post("/v1/batches", self._make)
        app.router.add_get("/v1/batches", self._list)
        app.router.add_get("/v1/batches/{id}", self._look)
        runner = web.AppRunner(app, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _faulty(self, request, handler):
        path = request.path.removeprefix("/v1")
        name = f"{request.method} {path if path.count('/') == 1 else path.rpartition('/')[0] + '/'}"
        self.asked[name] += 1
        response = None
        if not path.startswith("/chat"):
            self.used.append(_key(request))
        if pending := self.faults.get(name):
            status, is_done_all_the_same = pending.pop(0)
            if is_done_all_the_same:
                await handler(request)
            response = web.json_response({"error": {"message": "no"}}, status=status)
        return response or await handler(request)

    async def _chat(self, request):
        """What is asked before money is spent: whether the model is there."""
        return web.json_response(answered("OK"))

    async def _upload(self, request):
        form = await request.post()
        assert form["purpose"] == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].file.read()
        self.owners[name] = _key(request)
        return web.json_response({"id": name, "object": "file"})

    async def _make(self, request):
        wanted = await request.json()
        assert wanted["endpoint"] == "/v1/chat/completions"
        if not self._is_owner(request, wanted["input_file_id"]):
            return _unknown()
        name = f"batch-{len(self.batches)}"
        self.owners[name] = _key(request)
        self.batches[name] = {"id": name, "input_file_id": wanted["input_file_id"], "looks": 0}
        if self.hold is not None:
            await asyncio.to_thread(self.hold.wait)
        return web.json_response({**self.batches[name], "status": "validating"})

    async def _list(self, request):
        own = [b for b in self.batches.values() if self._is_owner(request, b["id"])]
        return web.json_response({"data": own[::-1]})

    async def _look(self, request):
        if not self._is_owner(request, request.match_info["id"]):
            return _unknown()
        batch = self.batches[request.match_info["id"]]
        batch["looks"] += 1
        is_open = batch["looks"] <= self.num_open_looks
        if not is_open and "status" not in batch:
            self._work(batch)
        return web.json_response({"status": "in_progress", **batch})

    def _work(self, batch):
        batch["status"] = self.status
        if self.status == "failed":
            error = {"code": "token_limit_exceeded", "message": "too much waits"}
            batch["errors"] = {"data": [error]}
            return
        good, bad = [], []
        for raw in reversed(self.files[batch["input_file_id"]].splitlines()):
            line = json.loads(raw)
            key = json.dumps(line["body"]["messages"])
            number = sum(key in seen for seen in self._seen(batch))
            if (answer := self.respond(line["body"], number)) is None:
                continue
            is_good = "choices" in answer
            response = {"status_code": 200, "body": answer} if is_good else answer
            self.billed[key] += is_good
            result = {"id": "r", "custom_id": line["custom_id"], "response": response}
            (good if is_good else bad).append(json.dumps({**result, "error": None}))
        for field_name, lines in (("output_file_id", good), ("error_file_id", bad)):
            if lines:
                batch[field_name] = f"{batch['id']}-{field_name}"
                self.owners[batch[field_name]] = self.owners[batch["id"]]
                self.files[batch[field_name]] = "".join(f"{line}\n" for line in lines).encode()

    def _seen(self, batch):
        """The messages of the batches before this one."""
        for other in self.batches.values():
            if other is batch:
                return
            lines = self.files[other["input_file_id"]].splitlines()
            yield {json.dumps(json.loads(raw)["body"]["messages"]) for raw in lines}

    def _is_owner(self, request, name):
        return name in self.owners and self.owners[name] == _key(request)

    async def _content(self, request):
        if not self._is_owner(request, request.match_info["id"]):
            return _unknown()
        lines = self.files[request.match_info["id"]].splitlines(keepends=True)
        response = web.StreamResponse()
        await response.prepare(request)
        for number, line in enumerate(lines):
            if number == self.stall_after:
                self.stall_after = None
                if self.is_cut:
                    request.transport.close()
                    return response
                await asyncio.sleep(60)
            await response.write(line)
        return response
