"""A visitor without a browser: the same requests as the page sends, for tests with many visitors at once."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import httpx


class Visitor:
    """Uploads, renders and follows. `address`: of the app."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=f"{address}/gradio_api", timeout=120)
        self.config = httpx.get(f"{address}/config", timeout=60).json()
        self.parts = {part["id"]: part["props"] for part in self.config["components"]}
        self.session = secrets.token_hex(8)

    def part(self, elem_id: str) -> int:
        return next(number for number, props in self.parts.items() if props.get("elem_id") == elem_id)

    def click(self, elem_id: str, **given: Any) -> list[Any]:
        """What comes of a click on a button. given: values of what is on the page, by elem_id, the rest as it was."""
        button = self.part(elem_id)
        event = next(e for e in self.config["dependencies"] if [button, "click"] in map(list, e["targets"]))
        by_part = {self.part(name): value for name, value in given.items()}
        values = [by_part.get(part, self.parts[part].get("value")) for part in event["inputs"]]
        return self.call(event["id"], values)

    def follow(self, job: str) -> None:
        """Returns when the job has ended."""
        start = self.part("render")
        events = self.config["dependencies"]
        first = next(e["id"] for e in events if [start, "click"] in map(list, e["targets"]))
        self.call(next(e["id"] for e in events if e.get("trigger_after") == first), [job])

    def call(self, event: int, values: list[Any]) -> list[Any]:
        asked = {"data": values, "fn_index": event, "session_hash": self.session}
        self.http.post("/queue/join", json=asked).raise_for_status()
        found: list[Any] = []
        with self.http.stream("GET", "/queue/data", params={"session_hash": self.session}) as lines:
            for line in lines.iter_lines():
                message = json.loads(line[5:]) if line.startswith("data:") else {}
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    found = message["output"].get("data", found)
                    break
        return found

    def upload(self, path: Path) -> dict[str, Any]:
        with path.open("rb") as file:
            reply = self.http.post("/upload", files={"files": (path.name, file, "video/mp4")})
        return {"path": reply.raise_for_status().json()[0], "meta": {"_type": "gradio.FileData"}}

    def file(self, path: Path) -> bytes:
        return self.http.get(f"/file={path.as_posix()}").raise_for_status().content
