"""A stand-in of the Hugging Face Hub on loopback: serves folders of models and data sets as the Hub does, and takes uploads.

    python tests/loopback_hub.py FOLDER     prints its address; set HF_ENDPOINT to it in the process that downloads

    FOLDER/models/ORG/NAME/...      FOLDER/datasets/ORG/NAME/...

A repository is gated where it has a file .gated, and has a branch BRANCH beside main where it has a folder .branches/BRANCH.
With .cut, the first download of its largest file ends half-way.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Hub:
    """What is served, and what was asked."""

    root: Path
    asked: list[str] = field(default_factory=list)  # "METHOD path" of every request
    cut: set[Path] = field(default_factory=set)  # files whose first download has been cut short

    def find_repo(self, kind: str, name: str) -> Path | None:
        """The folder of a repository; of a name without an organisation the one that has it."""
        folder = self.root / kind / name
        if "/" not in name:
            folder = next(iter(sorted((self.root / kind).glob(f"*/{name}"))), folder)
        return folder if folder.is_dir() else None


def commit_of(folder: Path) -> str:
    """The commit of a repository: a hash of all that it holds."""
    digest = hashlib.sha1(str(folder.name).encode())
    for file in list_files(folder):
        digest.update(file.encode() + (folder / file).read_bytes())
    return digest.hexdigest()


def list_files(folder: Path) -> list[str]:
    """The files of a repository, by their path in it."""
    found = (p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file())
    return [name for name in found if not name.startswith(".")]


def describe_entry(tree: Path, name: str) -> dict[str, object]:
    """A file or folder of a repository as the Hub lists it."""
    path = tree / name
    if path.is_dir():
        return {"type": "directory", "path": name, "size": 0, "oid": "0" * 40}
    return {
        "type": "file",
        "path": name,
        "size": path.stat().st_size,
        "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
    }


class Handler(BaseHTTPRequestHandler):
    """Answers the requests that huggingface_hub and datasets make when they download."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = b"".join(iter(self.read_chunk, b""))
        else:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.take_upload() or self.answer()

    def read_chunk(self) -> bytes:
        """A part of a body whose length is not said at its beginning."""
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def take_upload(self) -> bool:
        """Answer what creates a repository or commits files to it, all of them in the commit; returns whether it was that.

        Without a token nothing is taken.
        """
        path = unquote(urlsplit(self.path).path)
        commit = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit)/main", path)
        if commit is None and path not in ("/api/repos/create", "/api/validate-yaml"):
            return False
        self.hub.asked.append(f"POST {path}")
        url = f"http://{self.headers['Host']}"
        if path == "/api/validate-yaml":
            self.send_json({"errors": [], "warnings": []})
        elif not self.headers.get("Authorization"):
            self.fail(401, "Unauthorized")
        elif commit is None:
            asked = json.loads(self.body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            (self.hub.root / "models" / name).mkdir(parents=True, exist_ok=True)
            self.send_json({"url": f"{url}/{name}", "id": name})
        elif commit[3] == "preupload":
            files = json.loads(self.body)["files"]
            self.send_json(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
            )
        else:
            for line in map(json.loads, self.body.splitlines()):
                if line["key"] == "file":
                    file = self.hub.root / commit[1] / commit[2] / line["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(line["value"]["content"]))
            found = {"success": True, "commitOid": commit_of(self.hub.root / commit[1] / commit[2])}
            self.send_json({**found, "commitUrl": f"{url}/{commit[2]}/commit/{found['commitOid']}"})
        return True

    def send_json(self, value: object) -> None:
        """An answer in JSON."""
        self.send(200, json.dumps(value).encode(), "application/json")

    def answer(self) -> None:
        """Find the repository and revision that the path names, and send what is asked of them."""
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if path == "/":
            return self.send(200, b"a stand-in")
        api = re.fullmatch(
            r"/api/(models|datasets)/([^/]+(?:/[^/]+)?)(?:/(revision|tree|paths-info)/([^/]+)(/.*)?)?", path
        )
        file = re.fullmatch(r"/(datasets/)?([^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path)
        if api:
            kind, name, what, revision, below = api.groups()
        elif file:
            kind, name, what, revision, below = "datasets" if file[1] else "models", file[2], "file", file[3], file[4]
        else:
            return self.fail(404, "EntryNotFound")
        repo = self.hub.find_repo(kind, name)
        if repo is None:
            return self.fail(401, "RepoNotFound")
        if (repo / ".gated").is_file() and what == "file":
            return self.fail(403, "GatedRepo")
        tree = self.find_revision(repo, revision or "main")
        if tree is None:
            return self.fail(404, "RevisionNotFound")
        self.commit = commit_of(tree)
        if what == "file":
            return self.send_file(repo, tree / below)
        if what in ("tree", "paths-info"):
            return self.send_entries(tree, what, (below or "").strip("/"))
        org = repo.relative_to(self.hub.root / kind).as_posix()
        about = {"id": org, "sha": self.commit, "private": False, "gated": False, "disabled": False, "downloads": 0,
                 "likes": 0, "tags": [], "siblings": [{"rfilename": name} for name in list_files(tree)]}  # fmt: skip
        return self.send(200, json.dumps(about).encode(), "application/json")

    @staticmethod
    def find_revision(repo: Path, revision: str) -> Path | None:
        """The folder with the files of a branch or commit."""
        branches = {"main": repo, **{p.name: p for p in (repo / ".branches").glob("*")}}
        by_commit = {commit_of(folder): folder for folder in branches.values()}
        return branches.get(revision) or by_commit.get(revision)

    def send_entries(self, tree: Path, what: str, below: str) -> None:
        """The entries of a folder, all that lie below it if asked, or those that the request names."""
        if what == "paths-info":
            form = self.body.startswith(b"paths=")
            wanted = parse_qs(self.body.decode())["paths"] if form else json.loads(self.body)["paths"]
            found = [name for name in wanted if (tree / name).exists()]
        elif not (tree / below).is_dir():
            return self.fail(404, "EntryNotFound")
        else:
            every = (tree / below).rglob("*") if "recursive=true" in self.path.lower() else (tree / below).iterdir()
            found = [p.relative_to(tree).as_posix() for p in sorted(every)]
        entries = [describe_entry(tree, name) for name in found if not name.startswith(".")]
        return self.send(200, json.dumps(entries).encode(), "application/json")

    def send_file(self, repo: Path, file: Path) -> None:
        """A file, or the part of it that a Range asks for."""
        if not file.is_file():
            return self.fail(404, "EntryNotFound")
        data = file.read_bytes()
        etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": self.commit, "Accept-Ranges": "bytes"}
        start = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if start:
            first, last = int(start[1]), int(start[2] or len(data) - 1)
            etag["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self.send(206, data[first : last + 1], headers=etag)
        largest = max(list_files(repo), key=lambda n: (repo / n).stat().st_size)
        short = (repo / ".cut").is_file() and file == repo / largest and file not in self.hub.cut
        if short and self.command == "GET":
            self.hub.cut.add(file)
            return self.send(200, data, headers=etag, most=len(data) // 2)
        return self.send(200, data, headers=etag)

    def fail(self, status: int, code: str) -> None:
        """An error as the Hub says it."""
        self.send(status, json.dumps({"error": code}).encode(), "application/json", {"X-Error-Code": code})

    def send(
        self,
        status: int,
        data: bytes,
        kind: str = "application/octet-stream",
        headers: dict[str, str] | None = None,
        most: int | None = None,
    ) -> None:
        """Send an answer, or `most` bytes of it and then nothing more."""
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if most is None else data[:most])
        if most is not None:
            self.close_connection = True


@contextlib.contextmanager
def serve(root: Path) -> Iterator[tuple[str, Hub]]:
    """Within the block the folder is served; gives the address and what was asked."""
    hub = Hub(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub, "body": b""}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


if __name__ == "__main__":
    with serve(Path(sys.argv[1])) as (address, _):
        print(address, flush=True)
        threading.Event().wait()
