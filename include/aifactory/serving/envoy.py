"""Envoy's own words for what `aifactory.serving.gateway` describes (API v3, Envoy 1.40).

Clusters of a line, for each protocol: `<line>/a/http` and `<line>/b/http` are the slots; `shadow-a` and `shadow-b` take
copies. Inference goes by legs, whose statistics count nothing else: `only-a`, `only-b`, `ab` (a, with b behind it) and
`ba`. All of them are always there, so that a change of weights or of the champion is a change of routes alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aifactory.serving.gateway import Gateway, Limits, LineRoute, Ports

Json = dict[str, Any]

CLUSTERS, LISTENERS, ROUTES = "clusters.json", "listeners.json", "routes.json"
LISTENER = "public"
SERVICE = "/inference.GRPCInferenceService"
PROTOCOLS = ("http", "grpc")
SERVER = "server"
"""Stands in place of a line in the names of clusters that ask a model server about itself."""

LATENCY_BUCKETS_MS = (
    1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 125, 150, 200, 250, 300, 400, 500, 600, 800,
    1000, 1500, 2000, 3000, 5000, 10000, 30000,
)  # fmt: skip

_TYPE = "type.googleapis.com/"
_SCRIPT = Path(__file__).with_name("gateway.lua")
_UPSTREAM_SCRIPT = Path(__file__).with_name("upstream.lua")
_OFF = {"@type": f"{_TYPE}envoy.config.route.v3.FilterConfig", "disabled": True}
_GRPC = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}


def bootstrap(folder: Path, admin_socket: Path) -> Json:
    """What Envoy is started with: its admin interface, and which files it watches."""
    return {
        "node": {"id": "gateway", "cluster": "gateway"},
        "admin": {"address": {"pipe": {"path": str(admin_socket), "mode": 0o600}}},
        "stats_flush_interval": "0.5s",
        "stats_config": {
            "histogram_bucket_settings": [
                {"match": {"suffix": "upstream_rq_time"}, "buckets": [float(edge) for edge in LATENCY_BUCKETS_MS]}
            ]
        },
        "dynamic_resources": {
            "cds_config": _watched(folder / CLUSTERS),
            "lds_config": _watched(folder / LISTENERS),
        },
    }


def resources(gateway: Gateway, folder: Path) -> dict[str, list[Json]]:
    """Content of each watched file, in the order in which they must be written."""
    source = {"rds": {"route_config_name": LISTENER, "config_source": _watched(folder / ROUTES)}}
    listeners, route_configs = [listener(gateway, source)], [routes(gateway)]
    found = {
        CLUSTERS: ("envoy.config.cluster.v3.Cluster", clusters(gateway)),
        LISTENERS: ("envoy.config.listener.v3.Listener", listeners),
        ROUTES: ("envoy.config.route.v3.RouteConfiguration", route_configs),
    }
    return {file: [{"@type": _TYPE + kind, **each} for each in content] for file, (kind, content) in found.items()}


def _watched(path: Path) -> Json:
    return {"resource_api_version": "V3", "path_config_source": {"path": str(path)}}


def _typed(name: str, kind: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": _TYPE + kind, **fields}}


# --- listener


def listener(gateway: Gateway, source: Json) -> Json:
    """The public port: HTTP/1.1 and HTTP/2 on it, as the client begins.

    Args:
        gateway: all that the gateway does.
        source: where the routes come from: `rds`, or `route_config` with the routes themselves.
    """
    limits = gateway.limits
    manager = {
        "stat_prefix": LISTENER,
        "codec_type": "AUTO",
        **source,
        "http_filters": _filters(gateway),
        "local_reply_config": _local_replies(limits),
        "use_remote_address": True,
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "max_request_headers_kb": limits.max_header_kb,
        "request_headers_timeout": "10s",
        "request_timeout": "60s",
        "stream_idle_timeout": "60s",
        "drain_timeout": "2s",
        "common_http_protocol_options": {
            "idle_timeout": "300s",
            "max_headers_count": 64,
            "headers_with_underscores_action": "DROP_HEADER",
        },
        "http2_protocol_options": {
            "max_concurrent_streams": 256,
            "initial_stream_window_size": 1024 * 1024,
            "initial_connection_window_size": 4 * 1024 * 1024,
        },
    }
    network = [
        _typed(
            "connections", "envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
            stat_prefix=LISTENER, max_connections=limits.max_connections,
        ),
        _typed(
            "http",
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            **manager,
        ),
    ]  # fmt: skip
    return {
        "name": LISTENER,
        "address": _address(gateway.host, gateway.port),
        "per_connection_buffer_limit_bytes": limits.max_request_bytes + 1024,
        "filter_chains": [{"filters": network}],
    }


def _filters(gateway: Gateway) -> list[Json]:
    """What every request passes, the cheapest refusals first."""
    limits = gateway.limits
    found = []
    if gateway.keys:
        found.append(
            _typed(
                "key",
                "envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth",
                credentials=[{"client": client, "key": key} for client, key in gateway.keys.items()],
                key_sources=[{"header": "x-api-key"}, {"header": "authorization"}],
                forwarding={"header": "x-client", "hide_credentials": True},
            )
        )
    bucket = {"max_tokens": limits.burst, "tokens_per_fill": limits.requests_per_s, "fill_interval": "1s"}
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    found += [
        _typed(
            "rate",
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            stat_prefix=LISTENER,
            token_bucket=bucket,
            filter_enabled=always,
            filter_enforced=always,
            rate_limited_as_resource_exhausted=True,
        ),
        _typed(
            "size",
            "envoy.extensions.filters.http.body_size_limit.v3.BodySizeLimit",
            max_request_bytes=limits.max_request_bytes,
        ),
        # Whole bodies with a length go on: Triton stalls on chunked ones of very many chunks
        _typed("buffer", "envoy.extensions.filters.http.buffer.v3.Buffer", max_request_bytes=limits.max_request_bytes),
        _lua("body", _SCRIPT),
        _typed(
            "grpc",
            "envoy.extensions.filters.http.grpc_stats.v3.FilterConfig",
            individual_method_stats_allowlist={"services": [{"name": SERVICE[1:], "method_names": ["ModelInfer"]}]},
        ),
        _typed("router", "envoy.extensions.filters.http.router.v3.Router", suppress_envoy_headers=True),
    ]
    return found


def _lua(name: str, script: Path) -> Json:
    source = {"inline_string": script.read_text()}
    return _typed(name, "envoy.extensions.filters.http.lua.v3.Lua", default_source_code=source)


def _local_replies(limits: Limits) -> Json:
    """What the gateway says by itself: OIP's error object to REST, a proper status to gRPC."""
    said = [
        _reply(401, 16, "a valid API key is needed, as x-api-key or as a bearer token"),
        _reply(404, 12, "there is no such path, or no such model: %REQ(:PATH)%"),
        _reply(408, 4, "the request did not arrive in time"),
        _reply(413, 8, f"the request is larger than {limits.max_request_bytes} bytes"),
        _reply(429, 8, f"more than {limits.requests_per_s} requests a second; try again later"),
        _reply(431, 8, f"the headers are larger than {limits.max_header_kb} kB"),
        _reply(503, 14, "no server can answer for this model at the moment; try again later (%RESPONSE_FLAGS%)"),
        _reply(504, 4, f"no answer within {limits.timeout_s:g} s"),
        _reply(400, 3),
        _reply(415, 12),
    ]
    of_unknown_model = _grpc_reply(
        404, 5, "there is no such model: %REQ(X-LINE)%", {"name": "x-line", "present_match": True}
    )
    mappers = [of_unknown_model, *(mapper for reply in said for mapper in reply)]
    return {"mappers": mappers, "body_format": {"json_format": {"error": "%LOCAL_REPLY_BODY%"}}}


def _reply(status: int, grpc_status: int, message: str = "%LOCAL_REPLY_BODY%") -> list[Json]:
    rest = {"filter": _status(status), "body_format_override": {"json_format": {"error": message}}}
    return [_grpc_reply(status, grpc_status, message), rest]


def _grpc_reply(status: int, grpc_status: int, message: str, *headers: Json) -> Json:
    matches = [{"header_filter": {"header": header}} for header in (_GRPC, *headers)]
    return {
        "filter": {"and_filter": {"filters": [_status(status), *matches]}},
        "headers_to_add": [_set("grpc-status", str(grpc_status))],
        "body_format_override": {"text_format_source": {"inline_string": message}},
    }


def _status(status: int) -> Json:
    # A key of the runtime must be given; this one is never set
    value = {"default_value": status, "runtime_key": "gateway.status"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _set(header: str, value: str) -> Json:
    return {"header": {"key": header, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


# --- routes


def routes(gateway: Gateway) -> Json:
    """The allow-list: what no route matches is not found (REST) or unimplemented (gRPC)."""
    limits = gateway.limits
    found = [
        _route({"path": path}, _action(limits, f"{SERVER}/ab/http"), without="key" if "health" in path else "")
        for path in ("/v2", "/v2/health/live", "/v2/health/ready")
    ]
    found += [
        _route({"path": f"{SERVICE}/{name}"}, _action(limits, f"{SERVER}/ab/grpc"), without=without)
        for name, without in (("ServerMetadata", ""), ("ServerLive", "key"), ("ServerReady", "key"))
    ]
    for route in gateway.lines:
        found += _line_routes(limits, route)
    return {
        "name": LISTENER,
        "request_headers_to_remove": ["x-shadow", "x-version"],
        "response_headers_to_add": [_set("x-slot", '%UPSTREAM_METADATA(["gateway", "slot"])%')],
        "virtual_hosts": [{"name": LISTENER, "domains": ["*"], "routes": found}],
    }


def _line_routes(limits: Limits, route: LineRoute) -> list[Json]:
    model = f"/v2/models/{route.line}"
    of_line = {"name": "x-line", "string_match": {"exact": route.line}}
    of_version = {"name": "x-version", "present_match": True}
    rest, grpc = (_action(limits, _champion(route, protocol)) for protocol in PROTOCOLS)
    about_rest, about_grpc = (_action(limits, f"{route.line}/{route.champion}/{protocol}") for protocol in PROTOCOLS)
    infer, stream = ({"path": f"{SERVICE}/{name}"} for name in ("ModelInfer", "ModelStreamInfer"))
    found = [
        _route({"path": f"{model}/infer"}, _split(limits, route, "http")),
        _route({"path": model}, about_rest),
        _route({"path": f"{model}/ready"}, about_rest),
        _route({"safe_regex": {"regex": f"{model}/versions/[0-9]+(/ready)?"}}, about_rest),
        # Whoever asks for a version by its number takes no part in a comparison
        _route({"safe_regex": {"regex": f"{model}/versions/[0-9]+/infer"}}, rest),
        _route(infer | {"headers": [of_line, of_version]}, grpc),
        _route(infer | {"headers": [of_line]}, _split(limits, route, "grpc")),
        _route(stream | {"headers": [of_line]}, grpc | {"timeout": "0s", "retry_policy": {}}, without="buffer"),
    ]
    about = [{"path": f"{SERVICE}/{name}", "headers": [of_line]} for name in ("ModelMetadata", "ModelReady")]
    return found + [_route(match, about_grpc) for match in about]


def _route(match: Json, action: Json, *, without: str = "") -> Json:
    """A route, without the filter of that name, if any."""
    return {"match": match, "route": action, **({"typed_per_filter_config": {without: _OFF}} if without else {})}


def _action(limits: Limits, cluster: str) -> Json:
    return {"cluster": cluster, **_tries(limits)}


def _champion(route: LineRoute, protocol: str) -> str:
    leg = route.champion + route.challenger if route.fallback else f"only-{route.champion}"
    return f"{route.line}/{leg}/{protocol}"


def _split(limits: Limits, route: LineRoute, protocol: str) -> Json:
    """Inference: champion and challenger by their shares, a copy to the challenger in shadow.

    The challenger comes first, so that an entity that it serves stays with it while its share grows.
    """
    challenger = f"{route.line}/{route.challenger}{route.champion}/{protocol}"
    weighted = [
        {"name": challenger, "weight": route.challenger_percent},
        {"name": _champion(route, protocol), "weight": 100 - route.challenger_percent},
    ]
    action = {
        "weighted_clusters": {"clusters": weighted, "use_hash_policy": True},
        "hash_policy": [{"header": {"header_name": "x-entity-id"}}],
        **_tries(limits),
    }
    if route.mirror_percent:
        marked = {"append": _set("x-shadow", "1")}
        share = {"default_value": {"numerator": route.mirror_percent, "denominator": "HUNDRED"}}
        cluster = f"{route.line}/shadow-{route.challenger}/{protocol}"
        action["request_mirror_policies"] = [
            {"cluster": cluster, "runtime_fraction": share, "request_headers_mutations": [marked]}
        ]
    return action


def _tries(limits: Limits) -> Json:
    """Inference changes nothing, so that what failed may be tried again, elsewhere where that may be."""
    previous = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
    return {
        "timeout": f"{limits.timeout_s}s",
        "retry_policy": {
            "retry_on": "5xx,reset,connect-failure,refused-stream,unavailable,internal",
            "num_retries": 2,
            "per_try_timeout": f"{limits.try_timeout_s}s",
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.2s"},
            "retry_priority": _typed("envoy.retry_priorities.previous_priorities", previous, update_frequency=1),
        },
    }


# --- clusters


def clusters(gateway: Gateway) -> list[Json]:
    """Of every line and of the servers themselves."""
    found = []
    for protocol in PROTOCOLS:
        found += [_slot(gateway, SERVER, slot, protocol) for slot in "ab"]
        found.append(_leg(gateway.limits, SERVER, "ab", protocol))
        for line in (route.line for route in gateway.lines):
            found += [_slot(gateway, line, slot, protocol) for slot in "ab"]
            found += [_slot(gateway, line, slot, protocol, shadow=True) for slot in "ab"]
            found += [_leg(gateway.limits, line, leg, protocol) for leg in ("only-a", "only-b", "ab", "ba")]
    return found


def _slot(gateway: Gateway, line: str, slot: str, protocol: str, *, shadow: bool = False) -> Json:
    ports: Ports = getattr(gateway.slots, slot)
    name = f"{line}/{'shadow-' if shadow else ''}{slot}/{protocol}"
    endpoint = {
        "address": _address(gateway.slots.host, getattr(ports, protocol)),
        "health_check_config": {"port_value": ports.http},
    }
    metadata = {"filter_metadata": {"gateway": {"slot": slot}}}
    cluster = {
        **_cluster(name, protocol, gateway.limits),
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint, "metadata": metadata}]}],
        },
    }
    if not shadow:
        cluster["health_checks"] = [_health("/v2/health/ready" if line == SERVER else f"/v2/models/{line}/ready")]
    return cluster


def _health(path: str) -> Json:
    return {
        "timeout": "2s",
        "interval": "1s",
        "no_traffic_interval": "1s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
        "http_health_check": {"path": path},
    }


def _leg(limits: Limits, line: str, leg: str, protocol: str) -> Json:
    """One slot, or the first with the second behind it."""
    members = [f"{line}/{slot}/{protocol}" for slot in leg.removeprefix("only-")]
    kind = "envoy.extensions.clusters.aggregate.v3.ClusterConfig"
    return {
        **_cluster(f"{line}/{leg}/{protocol}", protocol, limits),
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": _typed("envoy.clusters.aggregate", kind, clusters=members),
    }


def _cluster(name: str, protocol: str, limits: Limits) -> Json:
    most = {
        "max_connections": limits.max_in_flight,
        "max_pending_requests": limits.max_in_flight,
        "max_requests": limits.max_in_flight,
        "max_retries": limits.max_in_flight,
    }
    return {
        "name": name,
        "connect_timeout": "0.25s",
        "circuit_breakers": {"thresholds": [most]},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _protocol(protocol)
        },
    }


def _protocol(protocol: str) -> Json:
    options = {"http": "http_protocol_options", "grpc": "http2_protocol_options"}[protocol]
    codec = "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"
    return {
        "@type": f"{_TYPE}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {options: {}},
        "http_filters": [_lua("mistakes", _UPSTREAM_SCRIPT), _typed("codec", codec)],
    }


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}
