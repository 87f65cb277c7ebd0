"""A server process for tests: numpy models instead of artifacts, options as one JSON argument, everything else as in `llmos serve`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from numpy_models import Affine, Echo, Encoder, FileGate, NotFinite

from llmos.runtime.engine import Limits
from llmos.runtime.server.core.health.rules import HealthRules
from llmos.runtime.server.core.quotas import Quota
from llmos.runtime.server.core.settings import ConnectionLimits, ServerSettings
from llmos.runtime.server.serve import serve

STARTED_S = time.monotonic()


class Ballast(Affine):
    """Holds as many MiB of memory as the first number of its last call says."""

    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        self._held = np.ones(int(arrays[0].flat[0]) << 20, np.uint8)
        return super().__call__(arrays)


def main() -> int:
    options = json.loads(sys.argv[1])
    gate = options.pop("gate", None)
    tokenizer = Path(__file__).with_name("tokenizer.json").read_bytes()
    width, delay_s = options.pop("width", 16), options.pop("delay_s", 0.0)
    models = [
        Encoder(width, name="encoder", assets={"tokenizer.json": tokenizer}, delay_s=delay_s),
        Encoder(name="nested", assets={"tokenizer.json": tokenizer}, metadata={"matryoshka": True, "max_length": 8}),
        Affine(name="affine", gate=FileGate(Path(gate)) if gate else None),
        Echo(name="echo"),
        NotFinite(name="not-finite"),
        Ballast(name="ballast"),
    ]
    grpc_port = options.pop("grpc_port", None)
    options["connections"] = ConnectionLimits(**options.pop("connections", {}))
    options["quotas"] = {key: Quota(**quota) for key, quota in options.pop("quotas", {}).items()}
    options["limits"] = Limits(**options.pop("limits", {}))
    options["health"] = HealthRules.parse(options["health"]) if "health" in options else None
    admin = ("127.0.0.1", 0) if options.pop("admin", False) else None
    options["api_keys"] = frozenset(options.pop("api_keys", []))
    return serve(models, ServerSettings(**options), host="127.0.0.1", port=0, grpc_port=grpc_port, admin=admin, started_s=STARTED_S)


if __name__ == "__main__":
    sys.exit(main())
