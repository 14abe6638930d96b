"""FastAPI around a session of one thread: what one writes first. Each request is a session call of its own.

python -m benchmarks.peers.fastapi_plain PORT
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks.peers.common import Generator, encode

app = FastAPI()
generator = Generator()


class Wish(BaseModel):
    n: int
    form: str = "npy"


@app.post("/generate")
def generate(wish: Wish) -> Response:
    # A plain `def`: FastAPI runs it in its pool of threads, so two of them use two cores.
    return Response(encode(generator.images(wish.n), wish.form), media_type="application/octet-stream")


@app.get("/readyz")
def readyz() -> str:
    return "ready"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]))
