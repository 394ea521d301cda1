"""The app: all routes, with what every request passes around them."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import FastAPI

from nextquill_core.serving import chat, drafts, errors, health, people
from nextquill_core.serving.deployment import Rollout
from nextquill_core.serving.limits import Limits
from nextquill_core.serving.logs import RequestLog
from nextquill_core.serving.metrics import Metrics
from nextquill_core.serving.service import Service
from nextquill_core.serving.settings import ServeSettings

ABOUT = (
    "Reviews in a person's voice: the person's past reviews are looked up, shown to the model in the prompt of the "
    "training, and the answer says which were shown."
)


def make_app(rollout: Rollout, settings: ServeSettings) -> FastAPI:
    """Return the app.

    Args:
        rollout: What is served.
        settings: Limits, key and page.
    """
    # Pages of documentation would load scripts from another host; /openapi.json needs none.
    app = FastAPI(title="NextQuill", version=version("nextquill"), description=ABOUT, docs_url=None, redoc_url=None)
    metrics = Metrics()
    metrics.show_models(rollout)
    service = Service(rollout, metrics, settings.most_requests)
    app.include_router(drafts.routes(service, log_texts=settings.log_texts))
    app.include_router(chat.routes(service, log_texts=settings.log_texts))
    app.include_router(health.routes(service, metrics))
    if settings.with_page:
        app.include_router(people.routes(service))
    errors.register(app)
    app.add_middleware(Limits, settings=settings)
    app.add_middleware(RequestLog, metrics=metrics)
    return app
