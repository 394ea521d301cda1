"""Artifacts in a folder or an object store: manifests, shards, fingerprints, and one writer per artifact.

This package knows nothing of the data that the artifacts hold.
"""

from storage.errors import UserError
from storage.files import sha256_of, write_json, write_text
from storage.fingerprint import canonical_json, differences, fingerprint
from storage.manifest import InputRef, Manifest, Shard
from storage.provenance import provenance
from storage.source_digests import DigestCache
from storage.staging import Basis, Staging
from storage.store import Artifact, Store

__all__ = [
    "Artifact",
    "Basis",
    "DigestCache",
    "InputRef",
    "Manifest",
    "Shard",
    "Staging",
    "Store",
    "UserError",
    "canonical_json",
    "differences",
    "fingerprint",
    "provenance",
    "sha256_of",
    "write_json",
    "write_text",
]
