"""Django on the server of wsgiref; the body is decoded as the request says, as its documentation does it."""

import json
import socketserver
import wsgiref.simple_server

import django.conf
import django.core.wsgi
import django.http
import django.urls

import reading


def hook(request):
    headers = request.headers.items()
    encoding = request.encoding or "utf-8"
    reading.saw(
        request.method,
        request.get_full_path(),
        headers,
        request.body,
        lambda: json.loads(request.body.decode(encoding)),
    )
    return django.http.HttpResponse("")


urlpatterns = [django.urls.re_path("", hook)]
django.conf.settings.configure(
    ALLOWED_HOSTS=["*"],
    APPEND_SLASH=False,
    MIDDLEWARE=[],
    ROOT_URLCONF=__name__,
    SECRET_KEY="of no use here",
)


class Server(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True
    request_queue_size = 128


class Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_):
        pass


application = django.core.wsgi.get_wsgi_application()
server = wsgiref.simple_server.make_server("127.0.0.1", 0, application, Server, Quiet)
reading.say({"port": server.server_port})
server.serve_forever()
