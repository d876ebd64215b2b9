"""Writes openapi.json from the routes of samplicator.http, after a change of them or of a shape in samplicator.views; a
guard test says when that was forgotten. The daemon serves the same at /api/v1/openapi.json.

    .venv/bin/python deploy/openapi/generate.py
"""

from __future__ import annotations

from pathlib import Path

from samplicator.http.routes import described

if __name__ == "__main__":
    Path(__file__).with_name("openapi.json").write_bytes(described())
