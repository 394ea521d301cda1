"""Which task of LaMP and LongLaMP has what, and under which keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Where a task's files hold what.

    Attributes:
        users: The keys of a row that name its user; the first that is there counts.
        text: The key of a profile entry with the text that the user wrote.
        title: The key with its title or summary.
        rating: The key with the user's rating.
        description: The key with what the text is about: the item.
        own: Whether a row's own `input` and `output` are a review as well, the user's newest.
    """

    users: tuple[str, ...]
    text: str
    title: str | None = None
    rating: str | None = None
    description: str | None = None
    own: bool = False


_ASKED = ("user_id", "id")  # the time-based files of LaMP name the user; in the others a question is a user
TASKS: Mapping[str, Task] = {
    "lamp-1": Task(_ASKED, text="abstract", title="title"),
    "lamp-2": Task(_ASKED, text="tag", description="description"),
    "lamp-3": Task(_ASKED, text="text", rating="score"),
    "lamp-4": Task(_ASKED, text="text", title="title"),
    "lamp-5": Task(_ASKED, text="abstract", title="title"),
    "lamp-6": Task(_ASKED, text="text", title="title"),
    "lamp-7": Task(_ASKED, text="text"),
    "longlamp-abstract-generation": Task(("name",), text="abstract", title="title"),
    "longlamp-topic-writing": Task(("author",), text="content", title="summary"),
    "longlamp-product-review": Task(
        ("reviewerId",), text="reviewText", title="summary", rating="overall", description="description", own=True
    ),
}
