"""The server: one store over HTTP, for recorders to fill and for clients to read. Needs `stepwell[server]`.

What must stay true:

1. What was acknowledged is committed.
2. Every route asks for its store with `store_of`, which is what keeps keys, scopes and projects apart.
3. An error of whatever kind is `{"error": {"type": ..., "message": ...}}`, and quotes no body and no header.

This module imports nothing: `stepwell.server.app` has `create_app`, with FastAPI.
"""
