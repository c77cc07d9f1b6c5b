"""A stand-in of the Hugging Face hub on this machine: what huggingface-hub asks of its HTTP API.

It keeps models in memory: creates them, takes commits (small files inside of the commit, weights by
git-lfs before it), and gives their files at a branch, a tag or a commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
TOKEN = "hf_stand_in"


@dataclass
class Model:
    """A model: the files of each commit, and the commits of its branches and tags."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: Files, ref: str = "main") -> str:
        """Add a commit with these files to a branch, and return its hash."""
        text = f"{len(self.commits)} {sorted(files)}"
        sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        return sha


class HubServer(ThreadingHTTPServer):
    """The stand-in. ``models`` has every model by its owner/name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, Model] = {}
        self.blobs: dict[str, bytes] = {}  # of git-lfs, by SHA-256
        self.requests: list[str] = []  # method and path

    @property
    def endpoint(self) -> str:
        """The address, for HF_ENDPOINT."""
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: Files, tag: str = "main", private: bool = False) -> str:
        """Add a commit to a model, which is created if needed, and return its hash."""
        return self.models.setdefault(name, Model(private)).commit(files, tag)


@contextmanager
def running_hub() -> Iterator[HubServer]:
    """Start a stand-in of the hub, and stop it at the end."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]), parts[4:])
        elif len(parts) >= 5 and parts[2] == "resolve":
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._refuse(404, "EntryNotFound")

    def do_PUT(self) -> None:
        body = self._body()
        self.server.blobs[hashlib.sha256(body).hexdigest()] = body
        self._parts()
        self._send(200, b"")

    def do_POST(self) -> None:
        parts, body = self._parts(), self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, None)
        elif parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts == ["api", "validate-yaml"]:  # the metadata of a README.md
            self._json({"errors": [], "warnings": []})
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["preupload"]:
            files = []
            for file in json.loads(body)["files"]:
                mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
                files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            self._json({"files": files})
        elif parts[-3:] == ["lfs", "objects", "batch"]:
            objects = []
            for entry in json.loads(body)["objects"]:
                upload = {"href": f"{self.server.endpoint}/blobs/{entry['oid']}"}
                objects.append({**entry, "actions": {"upload": upload}})
            self._json({"transfer": "basic", "objects": objects})
        elif parts[:2] == ["api", "models"] and parts[4:5] == ["commit"]:
            self._commit("/".join(parts[2:4]), parts[5], body)
        else:
            self._refuse(404, "EntryNotFound")

    def _create(self, request: dict[str, Any]) -> None:
        name = f"{request['organization']}/{request['name']}"
        if name in self.server.models:
            self._json({"error": "it exists", "url": f"{self.server.endpoint}/{name}"}, 409)
            return
        is_private = bool(request.get("private")) or request.get("visibility") == "private"
        self.server.models[name] = Model(is_private)
        self.server.add(name, {".gitattributes": b""})
        self._json({"url": f"{self.server.endpoint}/{name}", "name": name, "id": name})

    def _commit(self, name: str, revision: str, body: bytes) -> None:
        model = self.server.models[name]
        files = dict(model.commits[model.refs[revision]])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        sha = model.commit(files, revision)
        url = f"{self.server.endpoint}/{name}/commit/{sha}"
        self._json({"success": True, "commitUrl": url, "commitOid": sha, "hookOutput": ""})

    def _describe(self, name: str, rest: list[str]) -> None:
        model = self.server.models.get(name)
        if model is None or (model.private and not self.headers.get("Authorization")):
            self._refuse(401, "RepoNotFound")
            return
        sha = self._sha(model, rest[1] if len(rest) > 1 else "main")
        if sha is None:
            self._refuse(404, "RevisionNotFound")
            return
        files = model.commits[sha]
        if rest[:1] == ["tree"]:
            self._json([_entry(path, content) for path, content in files.items()])
            return
        siblings = [{"rfilename": path} for path in files]
        info = {"id": name, "sha": sha, "private": model.private, "tags": [], "downloads": 0}
        self._json({**info, "modelId": name, "siblings": siblings})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        model = self.server.models.get(name)
        sha = self._sha(model, revision) if model is not None else None
        if model is None or sha is None or path not in model.commits[sha]:
            self._refuse(404, "EntryNotFound")
            return
        content = model.commits[sha][path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self._send(200, content, headers)

    def _sha(self, model: Model, revision: str) -> str | None:
        return revision if revision in model.commits else model.refs.get(revision)

    def _parts(self) -> list[str]:
        path = urlsplit(self.path).path
        self.server.requests.append(f"{self.command} {path}")
        return [unquote(part) for part in path.strip("/").split("/")]

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _json(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self._send(status, body, {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str | None) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._send(status, b'{"error": "refused"}', headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """The description of a file in a listing."""
    sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": sha1}
    if path.endswith((".safetensors", ".bin")):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry
