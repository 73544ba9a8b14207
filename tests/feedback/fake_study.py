"""A labelling service in memory that keeps the contract of docs/design/labelling-service.md, for one study."""

import json
from datetime import UTC, datetime, timedelta

import httpx

TOKEN = "token-0123456789"
URL = "http://study.test"


class FakeStudy:
    """Takes clips and queries and hands out answers.

    `broken` holds what the next calls meet: an exception, or (status, headers).
    """

    def __init__(self, study="tea", overlap=1):
        self.study, self.overlap, self.status = study, overlap, "running"
        self.clips, self.queries, self.answers = {}, {}, []
        self.withdrawn, self.undone = [], []
        self.weights = {}
        self.broken, self.calls = [], []
        self.page_size = 1000
        self.on_call = lambda: None

    @property
    def transport(self):
        return httpx.MockTransport(self.handle)

    def answer(self, query_id, choice="left", annotator="ann", **fields):
        """Stores an answer as a person gives it."""
        number = len(self.answers) + 1
        row = {
            **{"number": number, "answer_id": f"answer-{number}", "query_id": query_id, "kind": "ordinary"},
            **{"feedback": "pairwise", "annotator_id": annotator, "arm": "", "choice": choice, "rating": None},
            **{"steps": None, "actions": None, "reset_seed": None, "is_flipped": False, "repeat": 0},
            **{"is_undone": False, "response_ms": 900, "watched_ms": 800, "num_replays": 0, "speed": 1.0},
            **{"overlay_ms": 0, "assigned_at": (datetime.now(UTC) - timedelta(seconds=2)).isoformat()},
            "answered_at": datetime.now(UTC).isoformat(),
            **fields,
        }
        self.answers.append(row)
        return row["answer_id"]

    def withdraw(self, annotator):
        """A person leaves: the answers go, the name stays."""
        self.withdrawn.append(annotator)
        self.answers = [row for row in self.answers if row["annotator_id"] != annotator]

    def undo(self, answer_id):
        self.undone.append(answer_id)
        for row in self.answers:
            row["is_undone"] |= row["answer_id"] == answer_id

    def handle(self, request):
        self.on_call()
        self.calls.append((request.method, request.url.path))
        if self.broken:
            trouble = self.broken.pop(0)
            if isinstance(trouble, Exception):
                raise trouble
            status, headers = trouble
            return httpx.Response(status, headers=headers, json={"error": "not now"})
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return httpx.Response(401, json={"error": "no token of this study"})
        base = f"/api/v1/studies/{self.study}"
        path = request.url.path
        if not path.startswith(base):
            return httpx.Response(404, json={"error": "there is no such study"})
        return self.reply(request, path.removeprefix(base))

    def reply(self, request, path):
        if (request.method, path) == ("GET", ""):
            config = {"id": self.study, "feedback": "pairwise", "overlap": self.overlap, "arms": []}
            return httpx.Response(200, json={"settings": config, "status": self.status})
        if request.method == "PUT" and path.startswith("/clips/"):
            self.clips[path.removeprefix("/clips/")] = request.content
            return httpx.Response(200, json={})
        if request.method == "GET" and path.startswith("/clips/"):
            if path.removeprefix("/clips/") in self.clips:
                return httpx.Response(204)
            return httpx.Response(404, json={"error": "no such clip"})
        if (request.method, path) == ("POST", "/queries"):
            return self.take_queries(json.loads(request.content)["queries"])
        if (request.method, path) == ("GET", "/answers"):
            return httpx.Response(200, json=self.page(int(request.url.params["after"])))
        return httpx.Response(405, json={"error": "not allowed"})

    def take_queries(self, rows):
        for row in rows:
            if {row["left"]["clip"], row["right"]["clip"]} - self.clips.keys():
                return httpx.Response(422, json={"error": "clips are missing"})
        for row in rows:
            self.queries.setdefault(row["id"], row)
        return httpx.Response(200, json={"num_new": len(rows)})

    def page(self, after):
        rows = [row for row in self.answers if row["number"] > after][: self.page_size]
        wanted = self.overlap * len(self.queries)
        return {
            "answers": [{**row, "weight": self.weights.get(row["annotator_id"], 1.0)} for row in rows],
            "withdrawn": self.withdrawn,
            "undone": self.undone,
            "cursor": rows[-1]["number"] if rows else after,
            "num_waiting": max(0, wanted - sum(not row["is_undone"] for row in self.answers)),
            "status": self.status,
        }
