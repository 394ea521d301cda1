"""Whether the server lives, whether it can answer, and what it measures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from nextquill_core.serving.metrics import Metrics
from nextquill_core.serving.service import Service


def routes(service: Service, metrics: Metrics) -> APIRouter:
    """Return the routes.

    Args:
        service: Knows what is served.
        metrics: The metrics.
    """
    router = APIRouter()

    @router.get("/healthz", summary="200 while the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="200 while drafts can be written, 503 otherwise")
    async def readyz() -> Any:
        rollout = service.rollout
        if rollout.current is None:
            return JSONResponse({"status": "nothing is served", "problem": rollout.problem}, 503)
        return {"status": "ready", "models": rollout.current.catalog.models, "problem": rollout.problem}

    @router.get("/metrics", summary="Metrics in Prometheus' text format")
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router
