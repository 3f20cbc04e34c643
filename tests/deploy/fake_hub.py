"""A Hugging Face Hub on this machine that keeps repositories in memory: what huggingface_hub asks of one, no more."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_this_test"


@dataclass
class Repository:
    """Commits by their hash, the newest last; a commit is all files by their path."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def add(self, files: dict[str, bytes], deleted: Collection[str] = ()) -> str:
        state = {**self.commits[self.head], **files}
        state = {path: data for path, data in state.items() if path not in deleted}
        name = hashlib.sha1(repr(sorted(state.items())).encode() + self.head.encode()).hexdigest()
        self.commits[name] = state
        return name

    def commit(self, revision: str) -> str | None:
        return self.head if revision == "main" else revision if revision in self.commits else None


class FakeHub(ThreadingHTTPServer):
    """The server; `repositories` is what it holds, `requests` what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which a process takes this for the Hub."""
        return {"HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self._path()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/.+", path):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            repository = self._repository(found[1])
            if repository is None:
                return self._missing("RepoNotFound")
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            name = repository.add(files, [line["value"]["path"] for line in lines if line["key"] == "deletedFile"])
            url = f"{self.server.address}/{found[1]}/commit/{name}"
            return self._json({"success": True, "commitOid": name, "commitUrl": url})
        return self._missing("RepoNotFound")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._path()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._information(found[1], found[2] or "main")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            return self._tree(found[1], found[2])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*found.groups())
        return self._missing("RepoNotFound")

    def _path(self) -> str:
        self.server.requests.append(f"{self.command} {self.path}")
        return unquote(urlsplit(self.path).path)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "log in"}, 401)
        if name in self.server.repositories:
            content = {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}
            return self._json(content, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server.repositories[name] = Repository(private)
        return self._json({"url": f"{self.server.address}/{name}"})

    def _repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        hidden = found is not None and found.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        return None if hidden else found

    def _information(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return self._missing("RepoNotFound")
        commit = repository.commit(revision)
        if commit is None:
            return self._missing("RevisionNotFound")
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        return self._json({"id": name, "sha": commit, "private": repository.private, "siblings": siblings})

    def _tree(self, name: str, revision: str) -> None:
        repository = self._repository(name)
        commit = repository.commit(revision) if repository else None
        if repository is None or commit is None:
            return self._missing("RevisionNotFound")
        files = repository.commits[commit].items()
        return self._json(
            [{"type": "file", "path": path, "size": len(data), "oid": _blob(data)} for path, data in files]
        )

    def _file(self, name: str, revision: str, path: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return self._missing("RepoNotFound")
        commit = repository.commit(revision)
        if commit is None:
            return self._missing("RevisionNotFound")
        data = repository.commits[commit].get(path)
        if data is None:
            return self._missing("EntryNotFound")
        return self._answer(data, 200, {"ETag": f'"{_blob(data)}"', "X-Repo-Commit": commit})

    def _missing(self, code: str) -> None:
        self._answer(b"{}", 404, {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, content: Any, status: int = 200) -> None:
        self._answer(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    def _answer(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _blob(data: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
