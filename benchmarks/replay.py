"""A server that forwards a question once and repeats the answer from memory ever after.

    python -m benchmarks.replay http://127.0.0.1:8000      prints its own address

Questions are told apart by path, HogQL and values; ids and retries do not matter. `GET /_questions` lists
them. `PUT /_latency?seconds=1.5` makes each answer wait, without using CPU.
"""

import asyncio
import hashlib
import socket
import sys

import httpx
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def build_app(upstream: str) -> Starlette:
    """The replaying application in front of `upstream`."""
    remembered: dict[str, Response] = {}
    questions: list[object] = []
    latency = {"seconds": 0.0}
    client = httpx.AsyncClient(base_url=upstream, timeout=300, headers={"Accept-Encoding": "identity"})

    async def answer(request: Request) -> Response:
        body = await request.body()
        asked = orjson.loads(body)["query"] if body else None
        key = hashlib.sha256(_target(request).encode() + orjson.dumps(asked)).hexdigest()
        if key not in remembered:
            questions.append(asked)
            headers = {"Authorization": request.headers["authorization"], "Content-Type": "application/json"}
            answered = await client.request(request.method, _target(request), content=body, headers=headers)
            response = Response(answered.content, answered.status_code, media_type="application/json")
            if not answered.is_success:
                return response
            remembered[key] = response
        await asyncio.sleep(latency["seconds"])
        return remembered[key]

    async def wait_longer(request: Request) -> Response:
        latency["seconds"] = float(request.query_params["seconds"])
        return Response(status_code=204)

    async def list_questions(_: Request) -> Response:
        return Response(orjson.dumps(questions), media_type="application/json")

    return Starlette(
        routes=[
            Route("/_questions", list_questions),
            Route("/_latency", wait_longer, methods=["PUT"]),
            Route("/{path:path}", answer, methods=["GET", "POST"]),
        ]
    )


def _target(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        # uvicorn leaves it unset on sockets it is given, and each answer would wait 40 ms for an ACK
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        server = uvicorn.Server(uvicorn.Config(build_app(sys.argv[1]), log_level="warning"))
        server.run(sockets=[listener])
