"""aiohttp, which decodes a body by the charset of its Content-Type."""

import socket

import aiohttp.web

import reading


async def hook(request):
    raw = await request.read()
    try:
        body = await request.json()
        parse = lambda: body
    except Exception as error:
        failed = error

        def parse():
            raise failed

    reading.saw(request.method, request.raw_path, request.headers.items(), raw, parse)
    return aiohttp.web.Response(text="")


app = aiohttp.web.Application(client_max_size=4 << 20)
app.router.add_route("*", "/{path:.*}", hook)
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
reading.say({"port": listener.getsockname()[1]})
aiohttp.web.run_app(app, sock=listener, print=None, access_log=None)
