"""What the first bytes of a file say about it, whatever its name says."""

from __future__ import annotations

import codecs
import gzip
import re
from pathlib import Path

from nextquill_core.errors import DataError

HEAD_BYTES = 4096
SAMPLE_BYTES = 256 << 10  # in which the encoding of a text that is no UTF-8 is looked for
GZIP = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
PAGE = re.compile(rb"<(!doctype|html|head|body|\?xml|error)\b", re.IGNORECASE)
# The longer marks come first: that of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ARCHIVES = (
    (b"PK\x03\x04", "a zip archive", "unpack it: unzip"),
    (b"BZh", "compressed with bzip2", "unpack it: bunzip2"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it: unxz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it: unzstd"),
)
# Common encodings of reviews. Detection among all that there are takes short texts for rare ones.
LIKELY = [
    "cp1252", "gb18030", "cp932", "big5", "euc_kr", "euc_jp", "cp1251", "koi8_r", "cp1250", "cp1253", "cp1254",
    "cp1255", "cp1256", "cp874",
]  # fmt: skip
# Letters and signs of western European texts, and words in which they are few among plain letters.
WESTERN = set("àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿßœšžÀÁÂÄÅÆÇÈÉÊËÍÎÑÓÔÖØÙÚÜŒŠŽ“”„‘’‚–—…€£§°«»¡¿•®©™´\xa0")
FOREIGN_WORD = re.compile(r"[^\W\d_]*[^\W\d_a-zA-Z][^\W\d_]*")


def refuse_substitutes(head: bytes, path: Path) -> None:
    """Refuse what often lies where a data file should be.

    Args:
        head: The first bytes of the file.
        path: The file, for the message.

    Raises:
        DataError: The file is a Git LFS pointer, a web page or an archive of another kind than gzip.
    """
    if head.startswith(LFS_POINTER):
        raise DataError("is a Git LFS pointer, not the file itself", str(path), "run `git lfs pull` in its repository")
    if PAGE.match(head.removeprefix(UTF8_MARK).lstrip()):
        raise DataError(
            "is an HTML or XML page, not a data file",
            str(path),
            "download it again: the link may have expired or need a login",
        )
    for magic, what, remedy in ARCHIVES:
        if head.startswith(magic):
            raise DataError(f"is {what}", str(path), remedy)


def is_gzip(head: bytes, path: Path) -> bool:
    """Whether a file that begins with `head` is gzip.

    Raises:
        DataError: Its name says otherwise, or it is no data file at all.
    """
    zipped = head.startswith(GZIP)
    named = path.name.lower().endswith(".gz")
    if zipped and not named:
        raise DataError("is gzip, but its name does not end in .gz", str(path), "rename it")
    if not zipped:
        refuse_substitutes(head, path)
    if named and not zipped:
        raise DataError("its name ends in .gz, but it is not gzip", str(path), "rename it, or download it again")
    return zipped


def marked_encoding(head: bytes) -> str | None:
    """The encoding that a byte order mark names; None without one, or where it is that of UTF-8."""
    return next((name for mark, name in MARKS if head.startswith(mark)), None)


def unmarked_utf16(head: bytes) -> str | None:
    """`utf-16-le` or `utf-16-be` where every other byte is mostly zero, as in such text without a mark."""
    pairs = len(head) // 2
    if pairs < 2:
        return None
    for name, zeros in (("utf-16-le", head[1 : 2 * pairs : 2]), ("utf-16-be", head[0 : 2 * pairs : 2])):
        if zeros.count(0) > pairs * 0.7 and head.count(0) < pairs * 1.3:
            return name
    return None


def likely_encoding(data: bytes) -> str:
    """The encoding in which text that is no UTF-8 is probably written. For messages only."""
    from charset_normalizer import from_bytes

    data = b"".join(line for line in data.splitlines(keepends=True) if not line.isascii()) or data
    western = data.decode("cp1252", errors="replace")
    if all(sign in WESTERN for sign in western if not sign.isascii()):
        words = "".join(word for word in FOREIGN_WORD.findall(western) if len(word) > 1)
        if sum(not letter.isascii() for letter in words) <= len(words) / 2:
            return "cp1252"  # detection takes a short western text for Polish or Chinese
    best = from_bytes(data, cp_isolation=LIKELY, enable_fallback=False).best()
    return best.encoding if best else "cp1252"


def guessed_encoding(path: Path) -> str:
    """The encoding in which a file that is no UTF-8 is probably written. For messages only."""
    with path.open("rb") as plain:
        zipped = plain.read(2) == GZIP
        plain.seek(0)
        try:
            head = gzip.GzipFile(fileobj=plain).read(SAMPLE_BYTES) if zipped else plain.read(SAMPLE_BYTES)
        except (EOFError, OSError):
            return "cp1252"
    return likely_encoding(head)


def encoding_remedy(encoding: str) -> str:
    """How to read a file in this encoding."""
    return (
        f"the text looks like {encoding}: with ingest.source table set ingest.options.encoding: {encoding}, "
        f"or convert the file: {iconv(encoding)}"
    )


def iconv(encoding: str) -> str:
    """The command that turns a file in this encoding, named as Python does, into UTF-8."""
    name = encoding.upper().replace("_", "-").replace("UTF-16-", "UTF-16")
    return f"iconv -f {name} -t UTF-8"
