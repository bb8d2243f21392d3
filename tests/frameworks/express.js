// Express with its body-parser as they come, which decode a body by the charset of its Content-Type.
"use strict";
const { createHash } = require("node:crypto");
const express = require("express");

const say = (what) => process.stdout.write(JSON.stringify(what) + "\n");
const app = express();
let raw = new WeakMap();
app.use(express.json({ limit: "4mb", verify: (request, _response, bytes) => raw.set(request, bytes) }));

const saw = (request, read) => {
  const bytes = raw.get(request) ?? Buffer.alloc(0);
  const headers = [];
  for (let at = 0; at < request.rawHeaders.length; at += 2) {
    headers.push([request.rawHeaders[at].toLowerCase(), request.rawHeaders[at + 1]]);
  }
  say({
    method: request.method,
    target: request.originalUrl,
    headers,
    size: bytes.length,
    sha256: createHash("sha256").update(bytes).digest("hex"),
    read,
  });
};

app.use((request, response) => {
  const { body } = request;
  const read =
    body === null || typeof body !== "object" || Array.isArray(body)
      ? { error: "not an object" }
      : {
          organization: body.organization?.githubLogin ?? null,
          project: body.projectName ?? null,
          environment: body.environmentName ?? null,
          tag: body.tagName ?? null,
          action: body.action ?? null,
          revision: body.revision ?? null,
        };
  saw(request, read);
  response.status(200).end();
});
app.use((error, request, response, _next) => {
  saw(request, { error: String(error.type ?? error) });
  response.status(200).end();
});
const server = app.listen(0, "127.0.0.1", () => say({ port: server.address().port }));
