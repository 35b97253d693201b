"""Objects in S3: small, typed, with the store's failures told apart from the caller's.

A `Store` is bound to one bucket. Keys never start with a slash. Every write is one atomic put;
`if_match` and `if_absent` make it a compare-and-swap.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from aifactory.errors import InfrastructureFault, NotFound
from aifactory.reasons import ReasonCode
from aifactory.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from mypy_boto3_s3 import S3Client

_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_CONFLICT = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}


class Conflict(InfrastructureFault):
    """A conditional write lost its race: the object is not what the caller last saw."""

    def __init__(self, message: str) -> None:
        super().__init__(ReasonCode.STORE_UNREACHABLE, message)
        self.args = (message,)


@dataclass(frozen=True)
class ObjectInfo:
    """What the store says of one object: key, size in bytes, ETag without quotes, and by its clock when it was written.

    The same content written again is equal.
    """

    key: str
    size: int
    etag: str
    written_at: datetime | None = field(default=None, compare=False)


def s3_client(settings: Settings, *, access_key: str = "", secret_key: str = "") -> S3Client:
    """A boto3 client for the plant's S3; the factory's own key unless another is given."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=settings.s3_url,
        region_name=settings.s3_region,
        aws_access_key_id=access_key or settings.s3_access_key,
        aws_secret_access_key=secret_key or settings.s3_secret_key.get_secret_value(),
        config=Config(
            retries={"max_attempts": 4, "mode": "standard"},
            connect_timeout=5,
            read_timeout=60,
            s3={"addressing_style": "path"},
        ),
    )


class Store:
    """One bucket of the plant's S3.

    Raises:
        NotFound: the object is not there.
        Conflict: a conditional write lost.
        InfrastructureFault: the store did not answer, or refused.
    """

    def __init__(self, settings: Settings, bucket: str, *, access_key: str = "", secret_key: str = "") -> None:
        self.settings = settings
        self.bucket = bucket
        self._keys = {"access_key": access_key, "secret_key": secret_key}

    @cached_property
    def client(self) -> S3Client:
        """The boto3 client, made on first use."""
        return s3_client(self.settings, **self._keys)

    def uri(self, key: str) -> str:
        """`s3://bucket/key`, for people and for XCom."""
        return f"s3://{self.bucket}/{key}"

    def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str = "application/octet-stream",
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> str:
        """Write one object atomically; returns its ETag. Conditional where asked, else last writer wins.

        Raises:
            ValueError: the key starts or ends with a slash (the store would lose the body of the latter).
        """
        if not key or key.startswith("/") or key.endswith("/"):
            raise ValueError(f"key {key!r} is empty, or starts or ends with a slash; name an object")
        conditions: dict[str, Any] = {}
        if if_match is not None:
            conditions["IfMatch"] = f'"{if_match}"'
        if if_absent:
            conditions["IfNoneMatch"] = "*"
        with self._errors("put", key):
            answer = self.client.put_object(
                Bucket=self.bucket, Key=key, Body=body, ContentType=content_type, **conditions
            )
        return answer["ETag"].strip('"')

    def get(self, key: str) -> bytes:
        """The bytes of one object."""
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The bytes and the ETag of one object, read together."""
        body, info = self.get_with_info(key)
        return body, info.etag

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        """The bytes of one object and what the store says of it, read together."""
        with self._errors("get", key):
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
            body = answer["Body"].read()
        return body, ObjectInfo(key, len(body), answer["ETag"].strip('"'), answer["LastModified"])

    def head(self, key: str) -> ObjectInfo | None:
        """What the store says of one object, or None where there is none."""
        try:
            with self._errors("head", key):
                answer = self.client.head_object(Bucket=self.bucket, Key=key)
        except NotFound:
            return None
        return ObjectInfo(key, answer["ContentLength"], answer["ETag"].strip('"'), answer["LastModified"])

    def list(self, prefix: str) -> list[ObjectInfo]:
        """Every object under a prefix, sorted by key."""
        found: list[ObjectInfo] = []
        with self._errors("list", prefix):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
                found += [
                    ObjectInfo(o["Key"], o["Size"], o["ETag"].strip('"'), o["LastModified"])
                    for o in page.get("Contents", [])
                ]
        return sorted(found, key=lambda o: o.key)

    def delete(self, key: str) -> None:
        """Remove one object; no error where there is none."""
        with self._errors("delete", key):
            self.client.delete_object(Bucket=self.bucket, Key=key)

    def put_json(
        self, key: str, value: Mapping[str, Any], *, if_match: str | None = None, if_absent: bool = False
    ) -> str:
        """Write a JSON object (sorted keys, so equal values are equal bytes); returns its ETag."""
        body = json.dumps(value, sort_keys=True, indent=1, default=str).encode()
        return self.put(key, body, content_type="application/json", if_match=if_match, if_absent=if_absent)

    def get_json(self, key: str) -> dict[str, Any]:
        """Read a JSON object."""
        value: dict[str, Any] = json.loads(self.get(key))
        return value

    def put_table(self, key: str, table: pa.Table) -> str:
        """Write an Arrow table as one parquet object; equal tables give equal bytes. Returns its ETag."""
        return self.put(key, parquet_bytes(table), content_type="application/vnd.apache.parquet")

    def get_table(self, key: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one parquet object as an Arrow table."""
        import pyarrow.parquet as pq

        return pq.ParquetFile(io.BytesIO(self.get(key))).read(columns=columns)

    @contextmanager
    def _errors(self, verb: str, key: str) -> Iterator[None]:
        """Turn botocore's errors into the factory's."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _MISSING:
                raise NotFound(f"{self.uri(key)} does not exist") from error
            if code in _CONFLICT:
                raise Conflict(f"{verb} {self.uri(key)}: the object changed meanwhile; read it again") from error
            raise InfrastructureFault(
                ReasonCode.STORE_UNREACHABLE, f"{verb} {self.uri(key)} was refused by S3 with {code}: {error}"
            ) from error
        except BotoCoreError as error:
            raise InfrastructureFault(
                ReasonCode.STORE_UNREACHABLE,
                f"{verb} {self.uri(key)}: S3 at {self.settings.s3_url} did not answer ({error}); see `make status`",
            ) from error


def parquet_bytes(table: pa.Table) -> bytes:
    """An Arrow table as parquet bytes: zstd, no metadata of the writer, one chunk, so equal content is equal bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    plain = table.replace_schema_metadata(None).combine_chunks()
    pq.write_table(plain, buffer, compression="zstd", store_schema=False)
    return buffer.getvalue()
