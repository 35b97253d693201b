"""Makes the schemas beside this file from published packages; README.md says which, and what they are not.

pip download --no-deps kserve==0.21.0 && unzip kserve-*.whl -d kserve
npm pack @kubernetes-models/gateway-api@2.0.0 && tar xzf kubernetes-models-gateway-api-*.tgz
python tests/serving/schemas/make_schemas.py kserve package
"""

from __future__ import annotations

import ast
import json
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

NEVER_RENDERED = {
    "V1beta1InferenceServiceSpec": {"explainer", "transformer", "tracing"},
    "V1beta1PredictorSpec": {
        *("huggingface", "lightgbm", "onnx", "paddle", "pmml", "pytorch", "sklearn", "tensorflow", "triton", "xgboost"),
        *("containers", "init_containers", "ephemeral_containers", "worker_spec", "affinity", "auto_scaling"),
    },
    "V1beta1ModelSpec": {"lifecycle", "confidential"},
    "V1ObjectMeta": {"managed_fields"},
}
"""Left out of the schema, which then refuses them: it keeps the parts that this factory renders or reads."""

_PLAIN = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}
_ANY: dict[str, Any] = {"x-kubernetes-preserve-unknown-fields": True}
_SCALARS = {
    "ResourceQuantity": {"type": "string"},
    "KnativeURL": {"type": "string"},
    "KnativeVolatileTime": {"type": "string"},
    "V1Time": {"type": "string"},
    "datetime": {"type": "string"},
}
_SAME_AS = {"K8sIoApiAppsV1DeploymentStrategy": "V1DeploymentStrategy"}


class PythonModels:
    """Schemas from the classes that openapi-generator writes: `openapi_types`, `attribute_map`, required arguments."""

    def __init__(self, *folders: Path) -> None:
        self._folders = folders

    @cached_property
    def _files(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder in self._folders:
            for path in folder.glob("*.py"):
                for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE):
                    found.setdefault(name, path)
        return found

    def schema(self, kind: str) -> dict[str, Any]:
        """The schema of a type as the classes write it: a name, `list[X]`, `dict(str, X)`."""
        if kind in _PLAIN:
            return {"type": _PLAIN[kind]}
        if inner := re.fullmatch(r"list\[(.*)\]", kind):
            return {"type": "array", "items": self.schema(inner[1])}
        if inner := re.fullmatch(r"dict\(str, (.*)\)", kind):
            return {"type": "object", "additionalProperties": self.schema(inner[1])}
        name = _SAME_AS.get(kind, kind)
        if name in _SCALARS or name not in self._files:
            return dict(_SCALARS.get(name, _ANY))
        return self._object(name)

    def _object(self, name: str) -> dict[str, Any]:
        text = self._files[name].read_text()
        kinds, names = (ast.literal_eval(_assigned(text, what)) for what in ("openapi_types", "attribute_map"))
        left_out = NEVER_RENDERED.get(name, set())
        required = re.findall(r"client_side_validation and (\w+) is None", text)
        return {
            "type": "object",
            "properties": {names[f]: self.schema(kind) for f, kind in sorted(kinds.items()) if f not in left_out},
            **({"required": sorted({names[f] for f in required})} if required else {}),
        }


class TypeScriptModels:
    """Schemas from interfaces, one a file: fields and unions of literals; bounds from their validators."""

    def __init__(self, folder: Path, validators: Path) -> None:
        self._folder = folder
        self._validators = validators

    def schema(self, kind: str) -> dict[str, Any]:
        """The schema of a type as an interface names it."""
        kind = kind.removeprefix("IIoK8sSigsGatewayApiApisV1")
        if kind in ("string", "number", "boolean"):
            return {"type": {"number": "integer"}.get(kind, kind)}
        if inner := re.fullmatch(r"Array<(.*)>", kind):
            return {"type": "array", "items": self.schema(inner[1])}
        if literals := re.findall(r'"([^"]*)"', kind):
            return {"type": "string", "enum": literals}
        path = self._folder / f"{kind}.d.ts"
        if not path.exists():
            return dict(_ANY)
        text = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
        if alias := re.search(rf"export type I{kind} = ([^;]+);", text):
            return {**self.schema(alias[1]), **self._bounds(kind, "validate0")}
        head = re.search(rf"export interface I{kind}(?: extends (\w+))? \{{(.*?)\n\}}", text, re.DOTALL)
        if not head:
            return dict(_ANY)
        base = self.schema(head[1]) if head[1] and head[1] != "TypeMeta" else {}
        fields = re.findall(r'"(\w+)"(\??): ([^;]+);', head[2])
        required = [*base.get("required", []), *(name for name, optional, _ in fields if not optional)]
        return {
            "type": "object",
            "properties": {**base.get("properties", {}), **{n: self._field(kind, n, k) for n, _, k in fields}},
            **({"required": sorted(required)} if required else {}),
        }

    def _field(self, owner: str, name: str, kind: str) -> dict[str, Any]:
        called = re.search(rf"data\.{name}&&\((validate\d+)\(", self._validator(owner))
        return {**self.schema(kind), **(self._bounds(owner, called[1]) if called else {})}

    def _bounds(self, owner: str, function: str) -> dict[str, Any]:
        """What a validator's function refuses beyond types: `schemaPath:"#/maxItems",...params:{limit:16}`."""
        body = re.search(rf"function {function}\(data.*?(?=function validate|$)", self._validator(owner), re.DOTALL)
        told = re.findall(
            r'schemaPath:"#/\w+",keyword:"(\w+)",params:\{[^}]*?(?:limit:([\d.e]+)|pattern:("(?:[^"\\]|\\.)*"))',
            body[0] if body else "",
        )
        return {keyword: json.loads(pattern) if pattern else int(float(limit)) for keyword, limit, pattern in told}

    def _validator(self, kind: str) -> str:
        path = self._validators / f"IoK8sSigsGatewayApiApisV1{kind}.js"
        return path.read_text() if path.exists() else ""


def _assigned(text: str, name: str) -> str:
    found = re.search(rf"^    {name} = (\{{.*?^    \}})", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise ValueError(f"no {name} in {text[:200]!r}")
    return found[1]


def main(kserve: Path, gateway_api: Path) -> None:
    """Write both schemas."""
    import kubernetes.client.models as core

    models = PythonModels(kserve / "kserve" / "models", Path(core.__file__).parent)
    routes = TypeScriptModels(gateway_api / "gateway.networking.k8s.io" / "v1", gateway_api / "_schemas")
    metadata = models.schema("V1ObjectMeta")
    for name, schema in {
        "inferenceservice.json": models.schema("V1beta1InferenceService"),
        "httproute.json": routes.schema("HTTPRoute"),
    }.items():
        schema["properties"]["metadata"] = metadata
        (HERE / name).write_text(json.dumps(schema, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
