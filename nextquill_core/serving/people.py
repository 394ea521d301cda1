"""What the page at `/` chooses from: users, their past reviews, and items. Forgotten users are in none of them."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse
from pydantic import BaseModel

from nextquill_core.analysis.drafts_page import drafts_html
from nextquill_core.serving.catalog import Catalog
from nextquill_core.serving.drafts import ERRORS, ItemReply, ReviewReply
from nextquill_core.serving.service import Service

MOST = 50
Prefix = Annotated[str, Query(max_length=200)]
Count = Annotated[int, Query(ge=1, le=MOST)]


class StoredReview(ReviewReply):
    """A stored review with the ids by which it can be asked for."""

    item_id: str
    category: str


class StoredItem(ItemReply):
    """A stored item."""

    item_id: str
    category: str


class UserList(BaseModel):
    """Ids of users in their order."""

    users: list[str]


class ReviewList(BaseModel):
    """The reviews of a user, the newest first."""

    user: str
    reviews: list[StoredReview]


class ItemList(BaseModel):
    """Items, by id or title."""

    items: list[StoredItem]


def routes(service: Service) -> APIRouter:
    """Return the routes.

    Args:
        service: Knows what is served.
    """
    router = APIRouter()
    html = drafts_html()
    headers = {"Cache-Control": "no-store", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}

    @router.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers=headers)

    @router.get("/v1/users", responses=ERRORS, summary="Ids of users, from one on")
    async def users(start: Prefix = "", count: Count = 20) -> UserList:
        return UserList(users=await asyncio.to_thread(_users, _catalog(service), start, count))

    @router.get("/v1/users/{user}/reviews", responses=ERRORS, summary="The newest reviews of a user")
    async def reviews(user: str, count: Count = 20) -> ReviewList:
        return ReviewList(user=user, reviews=await asyncio.to_thread(_reviews, _catalog(service), user, count))

    @router.get("/v1/items", responses=ERRORS, summary="Items with this id, or with this text in their title")
    async def items(text: Prefix, count: Count = 20) -> ItemList:
        return ItemList(items=await asyncio.to_thread(_items, _catalog(service), text, count))

    return router


def _catalog(service: Service) -> Catalog:
    deployment = service.rollout.current
    if deployment is None:
        raise service.unavailable()
    return deployment.catalog


def _users(catalog: Catalog, start: str, count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        some = catalog.histories.user_ids(start, MOST)
        found += [name for name in some if catalog.ids_of(name)]
        if len(some) < MOST:
            break
        start = f"{some[-1]}\0"  # the next id in their order
    return found[:count]


def _reviews(catalog: Catalog, user: str, count: int) -> list[StoredReview]:
    found = []
    for sequence in catalog.histories.sequences(catalog.ids_of(user)):
        stored = catalog.histories.reviews(sequence, len(sequence.reviews), count)
        ids = [row["item_id"] for row in sequence.reviews][-len(stored) :] if stored else []
        found += [
            StoredReview(**asdict(review), item_id=item_id, category=sequence.category)
            for item_id, review in zip(ids, stored, strict=True)
        ]
    return sorted(found, key=lambda review: -review.timestamp_ms)[:count]


def _items(catalog: Catalog, text: str, count: int) -> list[StoredItem]:
    if not text.strip():
        return []
    found = {**catalog.histories.items([text]), **catalog.histories.items_named(text, count)}
    return [
        StoredItem(**asdict(item), item_id=item_id, category=category)
        for (category, item_id), item in islice(found.items(), count)
    ]
