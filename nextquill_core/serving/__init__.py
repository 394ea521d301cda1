"""The server: from a request over HTTP to a draft, by an adapter that is exchanged while it runs.

- `app`, `run`: the routes put together, and the process from the first signal to the last
- `drafts`, `chat`, `people`, `health`: the routes, each with the forms that it reads and writes
- `service`: history → prompt → backend → draft, for every route
- `catalog`, `deployment`: which methods are served from which artifacts, and when that changes
- `backend`, `local_backend`, `upstream_backend`: the model in this process, or on another server
- `probe`: the proof that a served adapter is the one that was trained
- `limits`, `errors`, `logs`, `metrics`: what every request passes
"""
