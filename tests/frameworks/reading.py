"""What a Python framework says of each request: one JSON object a line, after a first one with its port."""

import hashlib
import json
import sys
import threading

LOCK = threading.Lock()


def say(what):
    line = json.dumps(what) + "\n"
    with LOCK:
        sys.stdout.write(line)
        sys.stdout.flush()


def read(body):
    """The members that a service would go by, of whatever type they are."""
    if not isinstance(body, dict):
        return {"error": "not an object"}
    organization = body.get("organization")
    return {
        "organization": organization.get("githubLogin") if isinstance(organization, dict) else None,
        "project": body.get("projectName"),
        "environment": body.get("environmentName"),
        "tag": body.get("tagName"),
        "action": body.get("action"),
        "revision": body.get("revision"),
    }


def saw(method, target, headers, raw, parse):
    """Says what came. `parse` gives the body as this framework reads it; `raw` are its bytes."""
    try:
        found = read(parse())
    except Exception as error:  # whatever a framework makes of it, it has not read it
        found = {"error": type(error).__name__}
    say(
        {
            "method": method,
            "target": target,
            "headers": [[name.lower(), value] for name, value in headers],
            "size": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
            "read": found,
        }
    )
