"""Flask on Werkzeug's server."""

import logging

import flask
import werkzeug.serving

import reading

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
app = flask.Flask(__name__)


@app.route("/", defaults={"path": ""}, methods=METHODS)
@app.route("/<path:path>", methods=METHODS)
def hook(path):
    request = flask.request
    target = request.environ["RAW_URI"]
    reading.saw(request.method, target, request.headers.items(), request.get_data(), request.get_json)
    return ""


logging.getLogger("werkzeug").setLevel(logging.ERROR)
werkzeug.serving.WSGIRequestHandler.protocol_version = "HTTP/1.1"
server = werkzeug.serving.make_server("127.0.0.1", 0, app, threaded=True)
reading.say({"port": server.server_port})
server.serve_forever()
