"""Check the manifests of infra/ by their schemas: Kubernetes objects, pods of the Ray cluster, overlays, compose.

Where no container engine is. In a virtual environment of its own: pip install kubernetes-validate jsonpatch pyyaml
    python infra/check.py [compose-spec.json]
Overlays are put together by the few rules of kustomize that they use: resources, and JSON patches on a target.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import jsonschema
import kubernetes_validate
import yaml

INFRA = Path(__file__).resolve().parent
KUBERNETES = "1.31"
_PATCHED = {"apiVersion", "kind", "resources", "patches", "namespace", "images"}


def main() -> None:
    """Raise at the first error; print what was checked."""
    for folder in (INFRA / "kubernetes" / "base", *sorted((INFRA / "kubernetes" / "overlays").iterdir())):
        objects = list(rendered(folder))
        for found in objects:
            check(found)
        print(f"{folder.relative_to(INFRA)}: {', '.join(found['kind'] for found in objects)}")
    secrets = list(yaml.safe_load_all((INFRA / "kubernetes" / "base" / "secrets.example.yaml").read_text()))
    for found in secrets:
        check(found)
    if len(sys.argv) > 1:
        compose = yaml.safe_load((INFRA / "compose.yaml").read_text())
        jsonschema.validate(compose, json.loads(Path(sys.argv[1]).read_text()))
        print("compose.yaml")


def rendered(folder: Path) -> Iterator[dict[str, Any]]:
    """The objects of a kustomization with its patches."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(kustomization) <= _PATCHED, f"this check does not know {set(kustomization) - _PATCHED}"
    patches = [(p["target"], yaml.safe_load(p["patch"])) for p in kustomization.get("patches", ())]
    used = [0] * len(patches)
    for name in kustomization["resources"]:
        place = folder / name
        inner = rendered(place) if place.is_dir() else yaml.safe_load_all(place.read_text())
        for found in inner:
            for number, (target, patch) in enumerate(patches):
                if (found["kind"], found["metadata"]["name"]) == (target["kind"], target["name"]):
                    found = jsonpatch.apply_patch(found, patch)
                    used[number] += 1
            yield found
    assert all(used), f"a patch of {folder} meets no object"


def check(found: dict[str, Any]) -> None:
    """Validate one object; of a RayCluster the pods, since KubeRay's own schema is not at hand."""
    if found["kind"] != "RayCluster":
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
        return
    for group in (found["spec"]["headGroupSpec"], *found["spec"]["workerGroupSpecs"]):
        pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": group["template"]}
        kubernetes_validate.validate(pods, KUBERNETES, strict=True)


if __name__ == "__main__":
    main()
