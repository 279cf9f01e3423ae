"""A server with the endpoints of vLLM's that rollouts use; what it loads generates through transformers."""

import asyncio
from threading import Lock, Thread

import torch
from aiohttp import web

from lightning_modules.generators import HFGenerator
from lightning_modules.policy.model import build_policy

LOADING = Lock()  # transformers changes its own classes while it loads


class FakeVLLM:
    """Serves on a free loopback port from a thread of its own, until the block ends.

    Attributes:
        asked: Method and path of each request, without those for its health.
        bodies: Of the requests for completions.
        settings: Of its model.
        dies_at: Number of the completion at which it cuts every connection, as often as it is asked.
        cuts: Paths of requests that it reads and leaves without an answer, once for each time that they are listed.
        hangs: Whether it leaves completions without an answer; with "all", the health check, too.
        deaf: Whether it forgets to load weights.
        refuses: Status and text of what it answers instead of completions.
    """

    def __init__(self):
        self.asked, self.bodies = [], []
        self.settings = {"dtype": "torch.float32", "logprobs_mode": "processed_logprobs", "max_model_len": 256}
        self.policy, self.version = None, "default"
        self.dies_at, self.hangs, self.deaf, self.refuses, self.cuts = None, "", False, None, []

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self.loop).result(10)
        return self

    def __exit__(self, *exc):
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def start(self):
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self.serve)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

    @property
    def dead(self):
        return self.dies_at is not None and len(self.bodies) >= self.dies_at

    def restart(self):
        """As a supervisor would: the weights are those that it began with."""
        self.dies_at, self.version = None, "default"

    async def serve(self, request):
        body = await request.json() if request.can_read_body else None
        if request.path == "/inference/v1/generate":
            self.bodies.append(body)
        if self.dead:
            request.transport.abort()
            return web.Response()
        if request.path in self.cuts:
            self.cuts.remove(request.path)
            request.transport.close()
            return web.Response()
        if request.path != "/health":
            self.asked.append(f"{request.method} {request.path}")
        if self.hangs == "all" or (self.hangs and request.path == "/inference/v1/generate"):
            await asyncio.sleep(600)
        match request.path:
            case "/health":
                return web.Response()
            case "/server_info":
                return web.json_response({"vllm_config": {"model_config": self.settings}})
            case "/collective_rpc":
                return self.rpc(body)
            case "/reset_prefix_cache":
                return web.json_response({"success": True})
            case "/update_weight_version":
                self.version = body["new_version"]
                return web.json_response({"success": True})
            case "/inference/v1/generate" if self.refuses is not None:
                return web.Response(status=self.refuses[0], text=self.refuses[1])
            case "/inference/v1/generate":
                return web.json_response(self.generate(body["token_ids"], body["sampling_params"]))
        return web.Response(status=404, text="Not Found")

    def rpc(self, body):
        if body["method"] == "reload_weights" and not (self.deaf and self.policy):
            with LOADING:
                self.policy = build_policy(body["kwargs"]["weights_path"])
        return web.json_response({"results": [None]})

    @torch.no_grad()
    def generate(self, prompt, settings):
        if "prompt_logprobs" in settings:
            scores = self.scores(prompt[:1], prompt[1:])
            return {
                "prompt_logprobs": [None, *({str(i): {"logprob": s}} for i, s in zip(prompt[1:], scores, strict=True))]
            }
        generator = HFGenerator(
            settings["max_tokens"], settings["temperature"], settings["top_p"], seed=settings["seed"]
        )
        ((completion,),) = generator(self.policy, [prompt], stop_ids=settings["stop_token_ids"])
        ids = completion.token_ids
        scores = self.scores(prompt, ids, settings["temperature"] or 1.0)
        choice = {
            "token_ids": ids,
            "finish_reason": completion.finish_reason,
            "logprobs": {"content": [{"token_id": i, "logprob": s} for i, s in zip(ids, scores, strict=True)]},
            "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}],
        }
        return {"choices": [choice]}

    def scores(self, prompt, completion, temperature=1.0):
        logits = self.policy.causal_lm(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        return (logits / temperature).log_softmax(-1)[range(len(completion)), completion].tolist()
