"""A hub on loopback: the requests that huggingface_hub makes to push a model and to load it again, and faults.

It keeps repositories in memory, with one branch. Files of 10 MB and all safetensors go through LFS, as on the hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

TOKEN = "hf_of_the_test_0123456789"
#: What a fault does instead of an answer: a status; the connection is cut; nothing, for a while.
Fault = int | str
CUT, SILENT = "cut", "silent"


@dataclass
class Repository:
    """Files of the last commit, by path."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1("\n".join(self.commits).encode()).hexdigest()


class FakeHub:
    """One account, ``ann``, with one token; ``fault`` may spoil an answer to (method, path)."""

    def __init__(self) -> None:
        self.url = ""
        self.account: dict[str, Any] = {
            "type": "user",
            "name": "ann",
            "orgs": [{"name": "lab"}],
            "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}},
        }
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.fault: Callable[[str, str], Fault | None] = lambda method, path: None
        self.asked: list[tuple[str, str, str | None]] = []  # method, path, authorization
        self.lock = threading.Lock()

    def paths(self, method: str) -> list[str]:
        return [path for asked, path, _ in self.asked if asked == method]


def oid(path: str, content: bytes) -> str:
    """As git names a blob, and LFS an object."""
    if is_large(path, len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str, size: int) -> bool:
    return path.endswith(".safetensors") or size > 10_000_000


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *words: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        hub, authorization = self.hub, self.headers.get("Authorization")
        with hub.lock:
            hub.asked.append((self.command, path, authorization))
        fault = hub.fault(self.command, path)
        if fault == CUT:
            self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0))))
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        body = self._body()
        if fault == SILENT:
            time.sleep(1)
            self.close_connection = True
        elif isinstance(fault, int):
            self._json({"error": f"the fault {fault} of the test, for {authorization}"}, fault)
        elif path.startswith("/lfs/"):
            assert authorization is None, "an upload's address is signed; the token is not for the storage"
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/lfs/")
            hub.objects[path.removeprefix("/lfs/")] = body
            self._json({})
        elif authorization != f"Bearer {TOKEN}":
            self._json({"error": "Invalid credentials in Authorization header"}, 401)
        elif path == "/api/whoami-v2":
            self._json(hub.account)
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif path.startswith("/api/models/"):
            owner, name, *rest = path.removeprefix("/api/models/").split("/")
            self._api(f"{owner}/{name}", rest, body)
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif "/resolve/" in path:
            name, _, file = path[1:].partition("/resolve/")
            self._resolve(name, file.partition("/")[2])
        else:
            self._json({"error": "no such page"}, 404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, **{"Content-Type": "application/json", **headers})

    def _send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization'] or self.hub.account['name']}/{asked['name']}"
        found = {"url": f"{self.hub.url}/{name}", "name": name}
        if name in self.hub.repositories:
            self._json({"error": "You already created this model repo", **found}, 409)
            return
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private)
        self._json(found)

    def _validate(self, card: str) -> None:
        try:
            yaml.safe_load(card.split("---\n")[1])
            self._json({"errors": [], "warnings": []})
        except (yaml.YAMLError, IndexError) as error:
            self._json({"errors": [{"message": str(error)}], "warnings": []}, 400)

    def _api(self, name: str, rest: list[str], body: bytes) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif rest[:1] == ["tree"]:
            files = repository.files.items() if len(rest) == 2 else ()
            self._json([self._entry(path, content) for path, content in files])
        elif rest[:1] == ["preupload"]:
            files = json.loads(body)["files"]
            self._json({"files": [self._mode(repository, file) for file in files]})
        elif rest[:1] == ["commit"]:
            self._commit(name, repository, [json.loads(line) for line in body.splitlines()])
        else:
            siblings = [{"rfilename": path} for path in repository.files]
            self._json({"id": name, "sha": repository.sha, "private": repository.private, "siblings": siblings})

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": oid(path, content)}
        if is_large(path, len(content)):
            entry["lfs"] = {"oid": oid(path, content), "size": len(content), "pointerSize": 130}
        return entry

    @staticmethod
    def _mode(repository: Repository, file: dict[str, Any]) -> dict[str, Any]:
        path = file["path"]
        mode = "lfs" if is_large(path, file["size"]) else "regular"
        there = oid(path, repository.files[path]) if path in repository.files else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": there}

    def _batch(self, asked: dict[str, Any]) -> None:
        answers = []
        for one in asked["objects"]:
            action = {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}?signature=secret"}}
            answers.append(one if one["oid"] in self.hub.objects else {**one, "actions": action})
        self._json({"transfer": "basic", "objects": answers})

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> None:
        files = dict(repository.files)
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        repository.files = files
        repository.commits.append(lines[0]["value"]["summary"])
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{repository.sha}", "commitOid": repository.sha})

    def _resolve(self, name: str, file: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None or file not in repository.files:
            code = "RepoNotFound" if repository is None else "EntryNotFound"
            sha = {} if repository is None else {"X_Repo_Commit": repository.sha}
            self._json({"error": "not found"}, 404, X_Error_Code=code, **sha)
            return
        content = repository.files[file]
        self._send(content, ETag=f'"{oid(file, content)}"', X_Repo_Commit=repository.sha)


@contextmanager
def serve_hub() -> Iterator[FakeHub]:
    """A hub at ``hub.url`` for a block."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
