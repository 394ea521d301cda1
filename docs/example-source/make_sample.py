"""Write `sample/`: the same 72 reviews of 6 books by 12 members, as JSON lines and as cards."""

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "sample"
DAY = 86_400
MOODS = ["slow and warm", "bright but hasty", "quiet to the last page", "far too long", "a joy to read aloud"]
BOOKS = ["The Ferry", "Salt and Rye", "A House of Rain", "Eleven Letters", "North of Home", "The Glass Orchard"]


def main() -> None:
    """Write the four files."""
    FOLDER.mkdir(exist_ok=True)
    reviews, books = [], []
    for number, title in enumerate(BOOKS):
        blurb = f"{title} follows one family through a year by the river, told by the youngest of them."
        books.append({"book_id": f"b{number}", "title": title, "blurb": blurb, "shelves": ["fiction", "family"]})
        for member in range(12):
            mood = MOODS[(number * 3 + member) % len(MOODS)]
            text = f"Member {member} found {title} {mood}; the chapter on the river was the part to remember."
            reviews.append(
                {
                    "member": f"m{member:02d}",
                    "book_id": f"b{number}",
                    "stars": (number + member) % 5 + 1,
                    "headline": mood,
                    "review_text": text,
                    "posted": 1_500_000_000 + (number * 30 + member) * DAY,
                }
            )
    write("reviews", [json.dumps(row) for row in reviews], "\n", ".jsonl")
    write("items", [json.dumps(row) for row in books], "\n", ".jsonl")
    write("reviews", [review_card(row) for row in reviews], "\n\n", ".cards")
    write("items", [book_card(row) for row in books], "\n\n", ".cards")


def review_card(row: dict) -> str:
    """Return a review as a card."""
    fields = {
        "user_id": row["member"],
        "item_id": row["book_id"],
        "rating": row["stars"],
        "title": row["headline"],
        "text": row["review_text"],
        "timestamp_ms": row["posted"] * 1000,
    }
    return "\n".join(f"{key}: {value}" for key, value in fields.items())


def book_card(row: dict) -> str:
    """Return a book as a card."""
    shelves = " | ".join(row["shelves"])
    return f"item_id: {row['book_id']}\ntitle: {row['title']}\ndescription: {row['blurb']}\ncategories: {shelves}"


def write(name: str, records: list[str], between: str, ending: str) -> None:
    """Write a file of `sample/`.

    Args:
        name: Name of the file.
        records: Texts to write.
        between: Text after each record.
        ending: Ending of the file's name.
    """
    text = "".join(record + between for record in records)
    (FOLDER / f"{name}{ending}").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
