"""Requests that try to make a service read something else than hookgate has verified.

`make(seed, number, path)` always gives the same request. It begins as a good delivery; then some of the mutations below
are tried on it, and it is signed at the end, unless a mutation says otherwise. A mutation is a function that changes a
`Request`; its name stands in the report.
"""

import base64
import hashlib
import hmac
import json
import random
import string

SECRET = b"the secret of the differential test"
MUTATIONS = []


def mutation(function):
    MUTATIONS.append(function)
    return function


def signature(body, secret=SECRET):
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


class Request:
    def __init__(self, random, number, path):
        self.random = random
        self.number = number
        self.path = path
        self.names = []
        self.method, self.target, self.version = "POST", path, "HTTP/1.1"
        self.id = f"d-{number}"
        self.kind, self.text = self.good()
        self.encode = lambda text: text.encode("utf-8", "surrogatepass")
        self.content_types = ["application/json"]
        self.headers = [("Host", "hookgate.test")]
        self.signed = signature
        self.tamper = lambda body: body
        self.drop, self.twice = set(), set()
        self.chunks, self.trailers, self.lengths = None, [], None
        self.behind = b""
        self.end_of_line = "\r\n"

    def good(self):
        """A kind, and a body that fits it."""
        pick = self.random.choice
        kind = pick(
            ["environment", "environment_revision", "environment_revision_tag", "environment_tag"] * 3
            + ["imported_environment_changed", "ping", "stack", "brand_new", "change_request"]
        )
        if kind == "ping":
            return kind, json.dumps({"timestamp": 1700000000, "message": "hello"})
        login = pick(["acme"] * 12 + ["ACME", "evil"])
        body = {
            "user": {"name": "Morty", "githubLogin": "morty", "avatarUrl": "https://x/y"},
            "organization": {"name": "Acme", "githubLogin": login, "avatarUrl": "https://x/z"},
            "projectName": pick(["website"] * 12 + ["shop"]),
        }
        if kind == "stack":
            return kind, json.dumps(body | {"action": "created", "stackName": "dev"})
        body["environmentName"] = pick(["prod", "dev", "a.b-c_9"])
        if kind == "imported_environment_changed":
            reference = {"projectName": "base", "environmentName": "prod", "revision": 3}
            body |= {"affectedRevisions": [1, 2], "importedEnvironmentReference": reference}
        else:
            body["action"] = pick(["created", "deleted", "deleted", "deleted", "updated", "retracted", "renamed"])
        if "tag" in kind:
            body["tagName"] = pick(["stable"] * 5 + ["dev"])
        if "revision" in kind:
            body["revision"] = pick([1, 7, 4_000_000_000, 2**53 - 1])
        separators = pick([(",", ":"), (", ", ": ")])
        return kind, json.dumps(body, separators=separators, ensure_ascii=pick([True, False]))

    def first(self, members):
        """Writes members before all others."""
        self.text = self.text.replace("{", "{" + members + ",", 1)

    def last(self, members):
        """Writes members behind all others."""
        at = max(self.text.rfind("}"), 0)
        self.text = self.text[:at] + "," + members + self.text[at:]

    def finish(self):
        """The bytes of the request. Sets what of it may reach a service, by ID: body, signature, kind."""
        body = self.encode(self.text)
        tag = self.signed(body)
        may_pass = tag.lower() == signature(body)
        body = self.tamper(body)
        may_pass = may_pass and tag.lower() == signature(body)
        headers = self.headers + [("Content-Type", value) for value in self.content_types]
        own = [("Pulumi-Webhook-ID", self.id), ("Pulumi-Webhook-Kind", self.kind)]
        own.append(("Pulumi-Webhook-Signature", tag))
        for name, value in own:
            if name not in self.drop:
                headers += [(name, value)] * (2 if name in self.twice else 1)
        sent = body
        if self.lengths is not None:
            headers += self.lengths(len(body))
        elif self.chunks:
            headers.append(("Transfer-Encoding", "chunked"))
        else:
            headers.append(("Content-Length", str(len(body))))
        if self.chunks:
            sent = self.chunked(body)
        self.random.shuffle(headers)
        head = f"{self.method} {self.target} {self.version}" + self.end_of_line
        head += "".join(f"{name}: {value}{self.end_of_line}" for name, value in headers) + self.end_of_line
        self.may_pass = {}
        if may_pass:
            self.may_pass[self.id] = {"body": body, "signature": signature(body), "kind": self.kind}
        return head.encode("latin-1", "replace") + sent + self.behind

    def chunked(self, body):
        parts, rest = [], body
        while rest:
            size = min(self.random.choice(self.chunks), len(rest))
            extension = self.random.choice(["", "", "", ";x", ';x="y"'])
            parts.append(b"%x%s\r\n%s\r\n" % (size, extension.encode(), rest[:size]))
            rest = rest[size:]
        trailers = "".join(f"{line}\r\n" for line in self.trailers)
        return b"".join(parts) + b"0\r\n" + trailers.encode() + b"\r\n"


def make(seed, number, path):
    """Request number `number`: its bytes, with `names` of the mutations and what `may_pass`."""
    request = Request(random.Random(f"{seed} {number}"), number, path)
    count = request.random.choice([0, 1, 1, 1, 1, 1, 2, 2, 3])
    for change in request.random.sample(MUTATIONS, count):
        change(request)
        request.names.append(change.__name__)
    request.bytes = request.finish()
    return request


# How a body is read.


@mutation
def charset(request):
    name = request.random.choice(
        "utf-7 UTF-7 unicode-1-1-utf-7 utf-16 utf-16le utf-16be utf-32 utf8 utf-8 UTF-8 us-ascii iso-8859-1 cp037 shift_jis "
        "gbk hz idna punycode unicode_escape raw_unicode_escape rot13 utf-8-sig base64 zlib".split()
    )
    quote = request.random.choice(["", '"', "'"])
    request.content_types = [f"application/json; charset={quote}{name}{quote}"]


@mutation
def media_type(request):
    pick = request.random.choice
    space = lambda: pick(["", "", " ", "\t", "  "])
    essence = pick(
        ["application/json"] * 6
        + ["Application/JSON", "text/json", "text/plain", "application/x-www-form-urlencoded", "application/json5"]
        + ["multipart/form-data; boundary=x", "application/ld+json", "application/cbor", "", "*/*", "application/json, x/y"]
    )
    value = essence
    for _ in range(pick([0, 1, 1, 2])):
        name = pick(["charset", "Charset", "charset*", "charset*0", "boundary", "version", "profile", "", "q"])
        content = pick(["utf-8", '"utf-8"', "UTF-8", "utf-7", '"utf\\-8"', '"utf-8', "", "x", "utf-8''utf-7", '"; charset=utf-7'])
        value += space() + pick([";", ";", ";", ",", " "]) + space() + name + pick(["=", "=", "=", " = ", ""]) + content
    request.content_types = [value + pick(["", "", "", ";", " ;", "\x80", "\xa0", "\x0b", " x"])]


@mutation
def media_type_twice(request):
    request.content_types.append(request.random.choice(["application/json", "application/json; charset=utf-7", "text/plain"]))


@mutation
def no_media_type(request):
    request.content_types = []


@mutation
def utf_7(request):
    """ASCII to one reader, structure to another."""
    attack = (
        "+ACIAfQ-,+ACI-environmentName+ACI-:+ACI-prod+ACI-,+ACI-organization+ACI-:+AHsAIg-githubLogin+ACI-:+ACI-evil+ACIAfQ-"
        ",+ACI-x+ACI-:+AHsAIg-a+ACI-:+ACI-"
    )
    request.text = request.text.replace("Morty", attack)
    request.content_types = [f"application/json; charset={request.random.choice(['utf-7', 'UTF-7', 'utf-8', 'unicode-1-1-utf-7'])}"]


@mutation
def other_encoding(request):
    name = request.random.choice(["utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "utf-32-be", "utf-8-sig", "utf-7", "cp037"])
    request.encode = lambda text: text.encode(name, "replace")
    if request.random.random() < 0.5:
        request.content_types = [f"application/json; charset={name}"]


@mutation
def broken_utf_8(request):
    odd = request.random.choice(
        [b"\xc0\xa2", b"\xe0\x80\xa2", b"\xf0\x80\x80\xa2", b"\xff", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\x80", b"\xc3"]
    )
    request.encode = lambda text: text.encode("utf-8", "surrogatepass").replace(b"o", odd, 1)


@mutation
def mark_or_junk_around(request):
    before = request.random.choice(["", "", "\ufeff", "\0", " \r\n\t", "\xa0", "\u2028", ")]}',\n", "x", "[", "while(1);"])
    behind = request.random.choice(["", "", "\n", "\0", "x", "{}", "]", ",", "//", '{"action":"deleted"}', "\x1a", "\ufeff"])
    request.text = before + request.text + behind


@mutation
def content_encoding(request):
    name = request.random.choice(["Content-Encoding", "content-encoding", "X-Content-Encoding", "Content-Transfer-Encoding"])
    value = request.random.choice(["gzip", "x-gzip", "deflate", "br", "identity", "", "gzip, gzip", "base64", "aws-chunked", "utf-7"])
    request.headers.append((name, value))


# What a body says.

READ = ["organization", "projectName", "environmentName", "tagName", "action", "revision", "stackName", "kind", "result"]
READ += ["status", "affectedRevisions", "importedEnvironmentReference", "isPreview", "driftDetected", "message", "timestamp"]


def other_value(request):
    values = ['"evil"', '"prod"', '"stable"', '"deleted"', "5", "null", "true", "[]", '["stable"]', "{}", "1.5", "-1", "1e2"]
    return request.random.choice(values + ['{"githubLogin":"evil"}', '{"githubLogin":5}', '""', '"\\u0000"', "18446744073709551616"])


@mutation
def key_twice(request):
    key = request.random.choice(READ)
    if request.random.random() < 0.3:
        key = f"\\u{ord(key[0]):04x}{key[1:]}"
    request.random.choice([request.first, request.last])(f'"{key}":{other_value(request)}')


def folded(request, key):
    """Another spelling, that a parser which ignores case may take for the key."""
    pick = request.random.choice
    letters = {"s": "S\u017f", "k": "K\u212a", "i": "I\u0130\u0131"}
    changed = "".join(pick(letters.get(letter, letter.swapcase())) if request.random.random() < 0.4 else letter for letter in key)
    changed = pick([changed, key.upper(), key.lower(), key.capitalize(), key + "\\u0000", key + "\\u0000x", changed])
    return pick([changed, changed, f"\\u{ord(changed[0]):04x}{changed[1:]}"])


@mutation
def key_of_another_case(request):
    key = request.random.choice(READ)
    request.random.choice([request.first, request.last])(f'"{folded(request, key)}":{other_value(request)}')


@mutation
def key_of_another_case_instead(request):
    key = request.random.choice(READ)
    request.text = request.text.replace(f'"{key}"', f'"{folded(request, key)}"', 1)


@mutation
def login_twice(request):
    key = request.random.choice(["githubLogin", folded(request, "githubLogin"), "github_login", "login", "name"])
    inner = f'"{key}":{request.random.choice(["5", "null"]) if request.random.random() < 0.3 else chr(34) + "evil" + chr(34)}'
    start = request.text.find('"organization"')
    at = request.text.find("{", start) if request.random.random() < 0.5 else request.text.find("}", start)
    if start >= 0:
        opening = request.text[at] == "{"
        piece = inner + "," if opening else "," + inner
        request.text = request.text[: at + opening] + piece + request.text[at + opening :]


@mutation
def another_type(request):
    key = request.random.choice(READ)
    try:
        body = json.loads(request.text)
    except ValueError:
        return
    if isinstance(body, dict):
        body[key] = "MARK"
        request.text = json.dumps(body).replace('"MARK"', other_value(request))


@mutation
def odd_name(request):
    name = request.random.choice(
        ["", "/", "..", ".", "../prod", "x/prod", "website/x", "prod\\u0000", "prod\\n", " prod", "pr\u00f6d", "prod\u200b", "*", "?"]
        + ["a" * 5000, "\\ud800", "\\udfff\\ud800", "\\ud83c\\udf79", "%2e%2e", "prod@stable", "\\u002e\\u002e", "acme"]
    )
    key = request.random.choice(["projectName", "environmentName", "tagName", "action", "githubLogin"])
    try:
        body = json.loads(request.text)
    except ValueError:
        return
    if isinstance(body, dict):
        if key == "githubLogin":
            body["organization"] = {"githubLogin": "MARK"}
        else:
            body[key] = "MARK"
        request.text = json.dumps(body).replace("MARK", name)


@mutation
def lookalikes(request):
    """Keys that somebody might read, at places where nobody does."""
    pieces = ['"__proto__":{"action":"deleted","organization":{"githubLogin":"evil"}}', '"constructor":{"prototype":{"action":"x"}}']
    pieces += ['"payload":{"organization":{"githubLogin":"evil"}}', '"data":[{"action":"deleted"}]', '"":{"action":"x"}']
    pieces += ['"organization.githubLogin":"evil"', '"organization[githubLogin]":"evil"', '"project_name":"shop"', '"a":1,"a":2']
    pieces += ['"toString":1,"hasOwnProperty":2', '"action ":"deleted"', '" action":"deleted"', '"act\\u0069on2":"x"', '"\\ud800":1']
    request.random.choice([request.first, request.last])(request.random.choice(pieces))


@mutation
def wrong_syntax(request):
    old, new = request.random.choice(
        [(",", ",,"), ("}", ",}"), ('"', "'"), (":", "="), ("{", "{/**/"), ("{", "{//\n"), ('":', '":+'), ('"action"', "action"), ('"', '"\n')]
        + [('"', '"\t'), ('"', '"\\x41'), ('"', '"\\'), ("}", ""), ('"user":', '"user":NaN,"u":'), ('"user":', '"user":Infinity,"u":')]
    )
    request.text = request.text.replace(old, new, 1)


@mutation
def numbers(request):
    number = request.random.choice(
        ["0", "-0", "00", "01", "-1", "1.0", "5e0", "1E400", "-1e400", "9007199254740993", "9223372036854775807", "0x10"]
        + ["9223372036854775808", "18446744073709551615", "18446744073709551616", "1" * 400, "1" * 5000, "1.", ".5", "+1", "1_000", "\uff11"]
    )
    before = request.text
    for old in ("4000000000", str(2**53 - 1), "1700000000"):
        request.text = request.text.replace(old, number)
    if request.text == before:
        request.random.choice([request.first, request.last])(f'"n":{number}')


@mutation
def depth(request):
    levels = request.random.choice([20, 100, 130, 600, 5000])
    opening, closing = request.random.choice([("[", "]"), ('{"a":', "}"), ('{"organization":', "}")])
    key = request.random.choice(["deep", "user", "organization", "action"])
    request.last(f'"{key}{request.random.choice(["", "2"])}":' + opening * levels + "1" + closing * levels)


@mutation
def not_an_object(request):
    request.text = request.random.choice(["", " ", "[]", "[" + request.text + "]", "null", "1", '"x"', "{}", json.dumps(request.text), "a=b&c=d"])


@mutation
def large(request):
    request.last(f'"pad":"{"x" * request.random.choice([8_000, 9_000, 70_000, 300_000])}"')


# Who signed it.


@mutation
def unsigned(request):
    request.drop.add("Pulumi-Webhook-Signature")


@mutation
def forged(request):
    pick = request.random.choice
    ways = [
        lambda body: signature(body, b"another secret"),
        lambda body: signature(body, b""),
        lambda body: signature(body + b"\n"),
        lambda body: hashlib.sha256(body).hexdigest(),
        lambda body: hmac.new(SECRET, body, hashlib.sha1).hexdigest(),
        lambda body: "0" * 64,
        lambda body: "",
        lambda body: "null",
    ]
    request.signed = pick(ways)


@mutation
def signature_in_another_form(request):
    ways = [
        lambda body: "sha256=" + signature(body),
        lambda body: base64.b64encode(bytes.fromhex(signature(body))).decode(),
        lambda body: signature(body)[:-1],
        lambda body: signature(body) + "00",
        lambda body: signature(body) + "," + signature(body),
        lambda body: signature(body).upper(),
        lambda body: signature(body).swapcase(),
        lambda body: "".join(random.Random(body).choice([digit, digit.upper()]) for digit in signature(body)),
        lambda body: '"' + signature(body) + '"',
    ]
    request.signed = request.random.choice(ways)


@mutation
def tampered(request):
    old, new = request.random.choice([(b"prod", b"pr0d"), (b"acme", b"evil"), (b"}", b"} "), (b'"', b'" '), (b"1", b"2"), (b"a", b"A")])
    request.tamper = lambda body: body.replace(old, new, 1)


@mutation
def header_of_pulumi_twice(request):
    request.twice.add(request.random.choice(["Pulumi-Webhook-ID", "Pulumi-Webhook-Kind", "Pulumi-Webhook-Signature"]))


@mutation
def header_of_pulumi_missing(request):
    request.drop.add(request.random.choice(["Pulumi-Webhook-ID", "Pulumi-Webhook-Kind"]))


@mutation
def another_kind(request):
    kinds = "environment environment_revision environment_revision_tag environment_tag imported_environment_changed ping stack"
    kinds += " stack_update deployment brand_new environment_deleted environment_revision_created drift_detected change_request"
    kinds += " change_request_created environment_rotation environment_rotation_failed policy_violation Environment environment-tag"
    request.kind = request.random.choice(kinds.split() + ["", "a b", "environment\x00", "environment,ping", "e" * 64, "e" * 65, "__proto__"])


@mutation
def another_id(request):
    end = str(request.number)
    request.id = request.random.choice(
        [f"A.b:c_{end}", "x" * (128 - len(end)) + end, "x" * 200 + end, f"a b{end}", f"a/{end}", f"\xe9{end}", "", f"../{end}", f'"{end}"']
    )


# The head.


@mutation
def headers_that_services_believe(request):
    believed = [
        ("X-HTTP-Method-Override", "DELETE"),
        ("X-Method-Override", "PUT"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Host", "evil.test"),
        ("X-Forwarded-Prefix", "/admin"),
        ("Forwarded", "for=127.0.0.1;host=evil.test"),
        ("X-Original-URL", "/admin"),
        ("X-Rewrite-URL", "/admin"),
        ("Authorization", "Bearer x"),
        ("Cookie", "session=1"),
        ("Hookgate-Kind-Verified", "true"),
        ("Hookgate-Event", "environment_deleted"),
        ("Hookgate-Webhook", "x"),
        ("Hookgate_Event", "environment_deleted"),
        ("Pulumi_Webhook_Kind", "environment_deleted"),
        ("Pulumi_Webhook_Id", "x"),
        ("Pulumi-Webhook-Extra", "x"),
        ("Content-MD5", "x"),
        ("Content-Digest", "sha-256=:x:"),
        ("Content-Range", "bytes 0-1/2"),
        ("Content-Language", "utf-7"),
        ("Content_Type", "text/plain"),
        ("Content_Length", "1"),
        ("Accept-Charset", "utf-7"),
        ("Accept-Encoding", "gzip"),
        ("Proxy", "http://127.0.0.1:1"),
        ("Range", "bytes=0-1"),
        ("If-Match", "x"),
        ("tracestate", "a=b"),
        ("baggage", "a=b"),
        ("X-Odd", "\xff\xfe"),
    ]
    request.headers += request.random.sample(believed, 3)


@mutation
def traces(request):
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    values = [f"00-{trace}-{parent}-01", f"00-{trace}-{parent}-ff", f"cc-{trace}-{parent}-01-x", f"ff-{trace}-{parent}-01", "x", ""]
    values += [f"00-{'0' * 32}-{parent}-01", f"00-{trace.upper()}-{parent}-01", f"00-{trace}-{parent}-01-x", f"00-{trace}-{parent}"]
    request.headers += [("traceparent", value) for value in request.random.sample(values, request.random.choice([1, 1, 2]))]


@mutation
def methods(request):
    request.method = request.random.choice(["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE", "CONNECT", "post", "POSTS", "P\xd6ST"])


@mutation
def targets(request):
    path = request.path
    request.target = request.random.choice(
        [path + "?a=b", path + "?charset=utf-7&_method=DELETE", path + "#x", path + "/", "/" + path, path.replace("/", "//"), path + ";x"]
        + [path.replace("-", "%2d"), path + "%00", path + "%2f..", "/x/.." + path, path.upper(), "http://evil.test" + path, "*", path + "%0d%0aX: y"]
        + [path + "\x80", path + " x", "\\" + path, "http://user@evil.test:1" + path, "https://x" + path, path + "?" + "q" * 4000]
    )


@mutation
def hosts(request):
    value = request.random.choice(["evil.test", "", "a b", "x@y", "[::1]:1", "127.0.0.1:99999", "a,b", "evil.test/x", None])
    request.headers = [header for header in request.headers if header[0] != "Host"]
    request.headers += [("Host", value)] * request.random.choice([1, 1, 1, 2]) if value is not None else []


@mutation
def versions(request):
    request.version = request.random.choice(["HTTP/1.0", "HTTP/1.0", "HTTP/1.1", "HTTP/0.9", "HTTP/2.0", "HTTP/1.2", "http/1.1", "HTTP/1.10", ""])


@mutation
def expectations(request):
    value = request.random.choice(["100-continue", "100-Continue", "200-ok", "", "100-continue, x", "x=y; z"])
    request.headers.append(("Expect", value))


@mutation
def connections(request):
    request.headers.append(
        request.random.choice(
            [("Connection", "close"), ("Connection", "keep-alive"), ("Connection", "Pulumi-Webhook-Signature"), ("Connection", "Content-Type")]
            + [("Upgrade", "h2c"), ("Connection", "Upgrade, HTTP2-Settings"), ("Keep-Alive", "timeout=1"), ("TE", "trailers"), ("Trailer", "Content-Type")]
        )
    )


# Where a request ends.


@mutation
def chunks(request):
    request.chunks = request.random.choice([[1], [3, 7], [100], [1, 1000], [1 << 20]])
    if request.random.random() < 0.5:
        pool = ["X-A: b", "Pulumi-Webhook-Kind: environment_deleted", "Content-Type: text/plain", "Hookgate-Event: x", "Content-Length: 5"]
        request.trailers = request.random.sample(pool, 2)


@mutation
def lengths(request):
    def headers(length):
        return request.random.choice(
            [
                [("Content-Length", str(length + 1))],
                [("Content-Length", str(max(length - 1, 0)))],
                [("Content-Length", str(length))] * 2,
                [("Content-Length", str(length)), ("Content-Length", "0")],
                [("Content-Length", f"{length}, {length}")],
                [("Content-Length", f"+{length}")],
                [("Content-Length", f"0{length}")],
                [("Content-Length", f"{length:#x}")],
                [("Content-Length", str(2**64 + length))],
                [("Content-Length", "-1")],
                [("Content-Length", "")],
                [],
                [("Content-Length", str(length)), ("Transfer-Encoding", "chunked")],
                [("Content-Length", str(length)), ("Transfer-Encoding", "identity")],
                [("Transfer-Encoding", "gzip, chunked")],
                [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
                [("Transfer-Encoding", "xchunked")],
                [("Transfer-Encoding", "\x0bchunked")],
                [("Transfer-Encoding ", "chunked"), ("Content-Length", str(length))],
                [("Content-Length", str(length)), ("Transfer-Encoding", "chunked, identity")],
            ]
        )

    request.lengths = headers
    if request.random.random() < 0.5:
        request.chunks = request.chunks or [100]


@mutation
def a_request_behind(request):
    """Another one on the same connection, which nobody signed: it must not come through the first."""
    body = b'{"organization":{"githubLogin":"evil"},"action":"deleted"}'
    head = f"POST {request.random.choice([request.path, '/', '/upstream'])} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Pulumi-Webhook-ID: smuggled-{request.number}\r\nPulumi-Webhook-Kind: environment\r\n"
    head += f"Pulumi-Webhook-Signature: {'0' * 64}\r\nContent-Length: {len(body)}\r\n\r\n"
    request.behind = request.random.choice([b"", b"\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\nX: "]) + head.encode() + body


@mutation
def lines(request):
    request.end_of_line = request.random.choice(["\n", "\r", "\r\r\n", "\r\n"])
    odd = "".join(request.random.choice(string.printable + "\x00\x7f\x80\xff") for _ in range(6))
    name, value = request.random.choice([("X-A", odd), (odd, "x"), ("X-A", "a\r\n b"), ("X-A", "a\r\nX-B: c"), ("X-A", "a\nX-B: c"), ("X A", "b"), ("", "x")])
    request.headers.append((name, value))
