"""[service]: the control plane. Judges what can be judged within the table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from samplicator.config.fields import (
    HostName,
    check_control,
    check_file,
    check_http,
    check_state_file,
)
from samplicator.config.model.table import LIVE, RESTART, Table


class Service(Table):
    """The control plane."""

    http: Annotated[str, AfterValidator(check_http)] = Field(
        "127.0.0.1:9420",
        description='HOST:PORT of the metrics and status pages; "" = off.',
        json_schema_extra=RESTART,
    )
    control: Annotated[str, AfterValidator(check_control)] = Field(
        "/run/samplicator/control.sock",
        description='Path of the local socket that the command line uses; "" = off.',
        json_schema_extra=RESTART,
    )
    own_control: Annotated[str, AfterValidator(check_control)] = Field(
        "",
        description="Path of a second local socket, which a take-over never hands over, so that it always answers for "
        'this process; "" = none.',
        json_schema_extra=RESTART,
    )
    state_file: Annotated[str, AfterValidator(check_state_file)] = Field(
        "",
        description='Path of the file that keeps templates and counters over a restart; "" = none.',
        json_schema_extra=RESTART,
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest log level that is written.", json_schema_extra=LIVE
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Format of log lines: text, or one JSON object per line.", json_schema_extra=LIVE
    )
    reload_token_file: Annotated[str, AfterValidator(check_file)] = Field(
        "",
        description='File with bearer tokens, one per line, for changes over TCP (POST /-/reload); "" = changes only '
        "over the local socket.",
        json_schema_extra=LIVE,
    )
    web_config: Annotated[str, AfterValidator(check_file)] = Field(
        "",
        description="Web-config file of Prometheus's exporter-toolkit for `http`: TLS, passwords and headers; "
        '"" = none.',
        json_schema_extra=LIVE,
    )
    http_hosts: list[HostName] = Field(
        default=[],
        description="Further names that clients may call this host by in a URL, besides addresses, names without a "
        'dot, the full name of this host and those in the certificate; "*" = any name.',
        json_schema_extra=LIVE,
    )
    resolve_interval: float = Field(
        30.0,
        ge=0.1,
        le=86400,
        allow_inf_nan=False,
        description="Seconds between two lookups of the receivers' host names, 0.1..86400.",
        json_schema_extra=LIVE,
    )
    drain_timeout: float = Field(
        5.0,
        ge=0,
        le=300,
        allow_inf_nan=False,
        description="Longest time in seconds to forward what is queued before the process ends, 0..300.",
        json_schema_extra=LIVE,
    )

    @field_validator("own_control")
    @classmethod
    def _is_another_path(cls, value: str, info: ValidationInfo) -> str:
        if value and value == info.data.get("control"):
            raise ValueError(f"{value!r} is the path of `control`; write another path")
        return value
