"""Kaggle's side of push and submit: a small server that the real kaggle program talks to, without a network.

With KAGGLE_API_ENVIRONMENT=LOCALHOST the program calls http://localhost, port 80. Server and program run in a
network namespace of their own, where that port is free and nothing else can be reached: root on Linux only.
"""

import ctypes
import fcntl
import io
import json
import os
import socket
import struct
import subprocess
import threading
import zipfile
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import submit
from src.core.errors import exit_on_user_error

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


class Refused(Exception):
    """An answer with an error status, as the API gives it: `Refused(403, "Permission ... was denied")`."""


@dataclass
class KaggleServer:
    """What Kaggle keeps and answers. Each poll gets the next of a list of states; the last one stays."""

    datasets: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    """USER/SLUG -> versions, each file name -> content, as uploaded"""
    unpacking: list[str] = field(default_factory=lambda: ["BLOBS_RECEIVED", "READY"])
    """of the first version of a dataset"""
    late_polls: int = 1
    """polls after a new version of a dataset or a notebook that still get the state before"""
    notebooks: dict[str, list[dict]] = field(default_factory=dict)
    """USER/SLUG -> versions, each as it was pushed"""
    running: list[str] = field(default_factory=lambda: ["QUEUED", "RUNNING", "COMPLETE"])
    """of each version of a notebook"""
    failure_message: str = ""
    submissions: list[dict] = field(default_factory=list)
    """the newest first"""
    scoring: list[str] = field(default_factory=lambda: ["PENDING", "COMPLETE"])
    answers: dict[str, list[tuple[int, dict]]] = field(default_factory=dict)
    """name of a request -> status and content of its next answers, in place of the usual ones"""
    requests: list[tuple[str, dict]] = field(default_factory=list)
    _uploads: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    _runs: dict[str, list[str]] = field(default_factory=dict)
    _numbers: list[int] = field(default_factory=lambda: [1])

    def fail(self, request: str, status: int, message: str, times: int = 1000) -> None:
        """Answer a request with an error; with status 200 the error is in the answer, as some requests do."""
        content = {"status": "error", "error": message} if status == 200 else {"message": message}
        self.answers[request] = [(status, content)] * times

    def count(self, request: str) -> int:
        return sum(name == request for name, _ in self.requests)

    def answer(self, request: str, body: dict) -> dict:
        """The answer to a request, or `Refused`."""
        self.requests.append((request, body))
        if self.answers.get(request):
            status, content = self.answers[request].pop(0)
            if status != 200:
                raise Refused(status, content["message"])
            return content
        return getattr(self, f"_{request}")(**body)

    def unpacked(self, dataset: str) -> dict[str, bytes]:
        """Path -> content of the newest version, each zip archive as the folder that Kaggle makes of it."""
        files = {}
        for name, content in self.datasets[dataset][-1].items():
            if not name.endswith(".zip"):
                files[name] = content
                continue
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = [each for each in archive.namelist() if not each.endswith("/")]
                files |= {f"{name.removesuffix('.zip')}/{each}": archive.read(each) for each in names}
        return files

    def receive(self, token: str, content: bytes) -> None:
        self._uploads[token] = (self._uploads[token][0], content)

    def add_dataset(self, name: str) -> None:
        """A dataset with one version."""
        self.datasets[name] = [{}]
        self.unpacking = ["READY"]

    def add_notebook(self, name: str, state: str) -> None:
        """A notebook with one version, whose run is in `state`."""
        self.notebooks[name], self._runs[name] = [{}], [state]

    def add_submission(self, description: str, status: str = "PENDING") -> None:
        number = len(self.submissions) + 1
        entry = {"ref": number, "date": f"2026-11-{number:02}T10:00:00Z", "fileName": "submission.csv"}
        self.submissions.insert(0, {**entry, "description": description, "status": status})

    def _StartBlobUpload(self, name: str, **_: Any) -> dict:
        token = f"token{len(self._uploads)}"
        self._uploads[token] = (name, b"")
        return {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def _GetDatasetStatus(self, ownerSlug: str, datasetSlug: str) -> dict:
        if len(self._versions(ownerSlug, datasetSlug)) > 1:
            return {"status": "READY"}  # of the version before, while the newest is unpacked
        return {"status": _next(self.unpacking)}

    def _GetDataset(self, ownerSlug: str, datasetSlug: str) -> dict:
        self._versions(ownerSlug, datasetSlug)
        return {"currentVersionNumber": _next(self._numbers)}

    def _CreateDataset(self, ownerSlug: str, slug: str, files: list[dict], **_: Any) -> dict:
        self.datasets[f"{ownerSlug}/{slug}"] = [self._take(files)]
        return {"status": "ok", "url": f"https://www.kaggle.com/datasets/{ownerSlug}/{slug}"}

    def _CreateDatasetVersion(self, ownerSlug: str, datasetSlug: str, body: dict) -> dict:
        versions = self._versions(ownerSlug, datasetSlug)
        self._numbers = [*[len(versions)] * self.late_polls, len(versions) + 1]
        versions.append(self._take(body["files"]))
        return {"status": "ok", "url": f"https://www.kaggle.com/datasets/{ownerSlug}/{datasetSlug}"}

    def _SaveKernel(self, slug: str, datasetDataSources: list[str], **body: Any) -> dict:
        versions = self.notebooks.setdefault(slug, [])
        versions.append({**body, "datasetDataSources": datasetDataSources})
        self._runs[slug] = [*self._runs.get(slug, [])[-1:] * self.late_polls, *self.running]
        return {
            "versionNumber": len(versions),
            "url": f"https://www.kaggle.com/code/{slug}",
            "invalidDatasetSources": [each for each in datasetDataSources if each not in self.datasets],
        }

    def _GetKernelSessionStatus(self, userName: str, kernelSlug: str) -> dict:
        if f"{userName}/{kernelSlug}" not in self._runs:
            raise Refused(403, "Permission 'kernels.get' was denied")
        status = _next(self._runs[f"{userName}/{kernelSlug}"])
        return {"status": status, "failureMessage": self.failure_message or None}

    def _ListKernelSessionOutput(self, **_: Any) -> dict:
        return {"log": "No module named 'dicomsdl'"}

    def _ListSubmissions(self, competitionName: str, **_: Any) -> dict:
        for submission in self.submissions:
            if submission["status"] == "PENDING":
                submission["status"] = _next(self.scoring)
                if submission["status"] == "COMPLETE":
                    submission |= {"publicScore": "0.41", "privateScore": "0.43"}
        return {"submissions": self.submissions}

    def _CreateCodeSubmission(
        self, kernelOwner: str, kernelSlug: str, kernelVersion: int, submissionDescription: str, **_: Any
    ) -> dict:
        if len(self.notebooks.get(f"{kernelOwner}/{kernelSlug}", [])) < kernelVersion:
            raise Refused(404, "Notebook version not found")
        self.add_submission(submissionDescription)
        return {"message": "Successfully submitted to RSNA 2023 Abdominal Trauma Detection"}

    def _GetSubmissionLimits(self, competitionName: str) -> dict:
        return {"numAllowedNow": 4}

    def _versions(self, owner: str, slug: str) -> list[dict[str, bytes]]:
        if f"{owner}/{slug}" not in self.datasets:
            raise Refused(403, "Permission 'datasets.get' was denied")
        return self.datasets[f"{owner}/{slug}"]

    def _take(self, files: list[dict]) -> dict[str, bytes]:
        return dict(self._uploads[each["token"]] for each in files)


def _next(states: list[str]) -> str:
    return states.pop(0) if len(states) > 1 else states[0]


class KaggleMachine:
    """A server, and `submit.py` beside it, which runs the real kaggle program.

    Raises:
        OSError: namespaces are not permitted here.
    """

    user, key = "someone", "1234"

    def __init__(self, home: Path, monkeypatch) -> None:
        self.server = KaggleServer()
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(_enter_network).result()
        login = b64encode(f"{self.user}:{self.key}".encode()).decode()
        handler = type("Handler", (_Handler,), {"kaggle": self.server, "authorization": f"Basic {login}"})
        self._http = self._thread.submit(ThreadingHTTPServer, ("127.0.0.1", 80), handler).result()
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        forget_kaggle(monkeypatch)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("TMPDIR", str(home))  # where the program notes unfinished uploads
        monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
        monkeypatch.setenv("KAGGLE_USERNAME", self.user)
        monkeypatch.setenv("KAGGLE_KEY", self.key)

    def submit(self, *arguments: object) -> int:
        """Run `submit.py` and return its exit status."""
        return self._thread.submit(_run_submit, [*map(str, arguments)]).result()

    def call(self, *command: str) -> subprocess.CompletedProcess:
        """Run another program that can reach the server."""
        return self._thread.submit(
            subprocess.run, [*command], capture_output=True, text=True, check=False
        ).result()

    def close_server(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def close(self) -> None:
        self.close_server()
        self._thread.shutdown()


def forget_kaggle(monkeypatch) -> None:
    """Remove settings of the user who runs the tests, including credentials."""
    for name in [*os.environ]:
        if name.startswith("KAGGLE_") or name.lower().endswith("_proxy") or name == "XDG_CONFIG_HOME":
            monkeypatch.delenv(name)


def fails(*answer: Any) -> Callable[..., None]:
    """For a parameter of a test: let a request fail, see `KaggleServer.fail`."""
    return lambda machine, monkeypatch: machine.server.fail(*answer)


def has(**changes: Any) -> Callable[..., None]:
    """For a parameter of a test: change the state of the server."""

    def change(machine: KaggleMachine, monkeypatch) -> None:
        for name, value in changes.items():
            assert name in KaggleServer.__dataclass_fields__
            setattr(machine.server, name, value)

    return change


def printed_states(printed: str, what: str) -> list[str]:
    """The states of `what` that were printed while waiting for it."""
    return [line.split(f"{what}: ")[1] for line in printed.splitlines() if f"  {what}: " in line]


def only_error(printed: str) -> str:
    """The error that a script ends with: one line, no traceback."""
    lines = printed.splitlines()
    assert "Traceback (most recent call last):" not in lines
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


def _run_submit(arguments: list[str]) -> int:
    try:
        with exit_on_user_error():
            submit.main(arguments)
    except SystemExit as ended:
        return ended.code
    return 0


def _enter_network() -> None:
    """Give this thread, and the processes that it starts, a network of its own, with a loopback only."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "unshare"):
        raise OSError("only Linux has network namespaces")
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(f"network namespaces are not permitted: {os.strerror(ctypes.get_errno())}")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP))


class _Handler(BaseHTTPRequestHandler):
    kaggle: KaggleServer
    authorization: str

    def do_POST(self) -> None:
        body = json.loads(self._read() or b"{}")
        try:
            if self.headers["Authorization"] != self.authorization:
                raise Refused(401, "Unauthenticated")
            status, answer = 200, self.kaggle.answer(self.path.rsplit("/", 1)[-1], body)
        except Refused as refused:
            status, message = refused.args
            answer = {"code": status, "message": message}
        self._send(status, json.dumps(answer).encode())

    def do_PUT(self) -> None:
        content = self._read()
        if self.kaggle.answers.get("upload"):
            self._send(self.kaggle.answers["upload"].pop(0)[0], b"")
            return
        self.kaggle.receive(self.path.rsplit("/", 1)[-1], content)
        self._send(200, b"")

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Quiet."""
