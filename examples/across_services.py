"""A run that goes on in another service: `inject` writes headers, the middleware there continues what they tell.

The service is a WSGI application on a thread of this program; with ASGI it is `AsgiMiddleware`. Any client that can
send headers will do: httpx is shown here, and what urllib needs.

Run it with `python examples/across_services.py`; it needs the package `httpx`.
"""

import threading
import urllib.request
from collections.abc import Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import httpx

import stepwell as sw
from stepwell.otel import WsgiMiddleware

DEPTHS = {"Rani ki Vav": 28, "Chand Baori": 20}


@sw.retrieval
def depth_of(place: str) -> int:
    return DEPTHS[place]


def service(_: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    for place in DEPTHS:  # what is streamed is recorded in the caller's run too
        yield f"{place}: {depth_of(place)} m\n".encode()


def propagate(request: httpx.Request) -> None:
    """Add the headers to each request of a client. Only for services of one's own: they tell thread and user."""
    sw.inject(request.headers)


@sw.tool
def ask_with_httpx(url: str) -> str:
    with httpx.Client(event_hooks={"request": [propagate]}, trust_env=False) as client:
        return client.get(url).text


@sw.tool
def ask_with_urllib(url: str) -> str:
    headers: dict[str, str] = {}
    sw.inject(headers)  # requests takes them as `requests.get(url, headers=headers)`
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return str(answer.read().decode())


class QuietHandler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


if __name__ == "__main__":
    # This service can be reached from this machine alone, so whoever calls it is believed.
    with make_server("127.0.0.1", 0, WsgiMiddleware(service, trust=True), handler_class=QuietHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        with sw.thread("stepwells", user="ada"), sw.run("guide"):
            same = ask_with_httpx(url) == ask_with_urllib(url)
        print("both got the same:", same)
        server.shutdown()
    print("delivered:", sw.flush())
