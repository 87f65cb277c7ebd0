"""A server process for tests: numpy models instead of artifacts, options as one JSON argument, everything else as in `llmos serve`."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from numpy_models import Affine, Echo, Encoder, FileGate, NotFinite

from llmos.runtime.engine import Limits
from llmos.runtime.server.core.quotas import Quota
from llmos.runtime.server.core.settings import ConnectionLimits, ServerSettings
from llmos.runtime.server.serve import serve

STARTED_S = time.monotonic()


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
    ]
    grpc_port = options.pop("grpc_port", None)
    options["connections"] = ConnectionLimits(**options.pop("connections", {}))
    options["quotas"] = {key: Quota(**quota) for key, quota in options.pop("quotas", {}).items()}
    options["limits"] = Limits(**options.pop("limits", {}))
    options["api_keys"] = frozenset(options.pop("api_keys", []))
    return serve(models, ServerSettings(**options), host="127.0.0.1", port=0, grpc_port=grpc_port, started_s=STARTED_S)


if __name__ == "__main__":
    sys.exit(main())
