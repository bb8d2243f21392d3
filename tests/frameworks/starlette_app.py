"""Starlette, which FastAPI stands on, with uvicorn."""

import asyncio
import socket

import starlette.applications
import starlette.responses
import starlette.routing
import uvicorn

import reading


async def hook(request):
    raw = await request.body()
    try:
        body = await request.json()
        parse = lambda: body
    except Exception as error:
        failed = error

        def parse():
            raise failed

    target = request.scope["raw_path"].decode("latin-1")
    if request.scope["query_string"]:
        target += "?" + request.scope["query_string"].decode("latin-1")
    reading.saw(request.method, target, request.headers.items(), raw, parse)
    return starlette.responses.Response("")


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
app = starlette.applications.Starlette(
    routes=[starlette.routing.Route("/{path:path}", hook, methods=METHODS)]
)
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
reading.say({"port": listener.getsockname()[1]})
server = uvicorn.Server(uvicorn.Config(app, log_level="critical", http="h11"))
asyncio.run(server.serve(sockets=[listener]))
