"""An OpenAI-compatible server that answers as it is told; `python stub_server.py PORT` answers True after 50 ms."""

import asyncio
import json
import sys
from collections import Counter
from threading import Thread

YES, NO = "<think>fine</think><judge>True</judge>", "<think>not so</think><judge>False</judge>"


def by_prompt(number, body):
    """Judges by the prompt alone: one in seven is a no, one in fifty no judgement."""
    draw = sum(body["messages"][0]["content"].encode()) % 350
    return NO if draw % 7 == 0 else "what?" if draw % 50 == 1 else YES


def completion(text, reason="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return json.dumps({"choices": [choice]}).encode()


class Stub:
    """Serves on a free loopback port from a thread of its own.

    `behave(number, body)` gives the reply's text, or (status, headers, bytes), or None to cut the connection, or an
    iterator of all the bytes to send, a hundred times a second, before the connection is cut; `number` counts the
    questions. `healthy` tells whether the health check is met with 200, or gives such an iterator. `seen` counts the
    prompts.
    """

    def __init__(self, behave=lambda number, body: YES, delay=0.0, port=0, healthy=lambda: True):
        self.behave, self.delay, self.port, self.healthy = behave, delay, port, healthy
        self.asked, self.seen, self.in_flight, self.most = [], Counter(), 0, 0
        self.host = "127.0.0.1"

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self.loop).result(10)
        return self

    def __exit__(self, *exc):
        asyncio.run_coroutine_threadsafe(self.stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    @property
    def url(self):
        return f"http://{self.host}:{self.port}/v1"

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def stop(self):
        self.server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def serve(self, reader, writer):
        try:
            while answer := await self.answer(reader):
                if not isinstance(answer, tuple):
                    for sent in answer:
                        writer.write(sent)
                        await writer.drain()
                        await asyncio.sleep(0.01)
                    break
                status, headers, content = answer
                lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(content)}"]
                writer.write("\r\n".join([*lines, *headers, "", ""]).encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def answer(self, reader):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = head.partition("content-length:")[2].partition("\r\n")[0]
        content = await reader.readexactly(int(length or 0))
        if head.startswith("get"):
            health = self.healthy()
            return ((200, [], b'{"data": []}') if health else (500, [], b"{}")) if isinstance(health, bool) else health
        body = json.loads(content)
        self.asked.append(body)
        self.seen[body["messages"][-1]["content"]] += 1
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        number = len(self.asked)
        try:
            await asyncio.sleep(self.delay)
            reply = self.behave(number, body)
        finally:
            self.in_flight -= 1
        return (200, [], completion(reply)) if isinstance(reply, str) else reply


if __name__ == "__main__":
    with Stub(delay=0.05, port=int(sys.argv[1])) as stub:
        stub.thread.join()
