"""A server process for tests: a language model that computes a hash, beside an encoder; options as one JSON argument."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).parents[1] / "llm"))

from conftest import CONFIG, TEMPLATE, _tokenizer  # tests/llm
from language_model import FAILS_AT, PacedModel  # beside this file
from numpy_models import Encoder

from llmos.runtime.engine.generate import GenerationOptions, Limits
from llmos.runtime.engine.generate.null import null_spec
from llmos.runtime.errors import ArtifactError
from llmos.runtime.server.core.health.rules import HealthRules
from llmos.runtime.server.core.language import LanguageModel
from llmos.runtime.server.core.repository import Repository
from llmos.runtime.server.core.settings import ServerSettings
from llmos.runtime.server.serve import serve

STARTED_S = time.monotonic()


def main() -> int:
    options = json.loads(sys.argv[1])
    tokenizer = _tokenizer()
    tokenizer.add_special_tokens(options.pop("special", []))
    model = PacedModel(null_spec(vocab_size=tokenizer.get_vocab_size(), max_length=512), fails_at=FAILS_AT)
    template = options.pop("template", None)
    template = TEMPLATE if template is None else template.encode()
    assets = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": CONFIG, "chat_template.jinja": template}
    words = Path(__file__).with_name("tokenizer.json").read_bytes()
    options["health"] = HealthRules.parse(options["health"]) if "health" in options else None
    admin = ("127.0.0.1", 0) if options.pop("admin", False) else None
    options["api_keys"] = frozenset(options.pop("api_keys", []))
    options.pop("gate")
    digest = options.pop("digest", "")
    options["generation"] = GenerationOptions(Limits(64, 8, 32), cache_blocks=1024)

    def embedder(name: str, embeds: bool) -> Encoder | None:
        return Encoder(name=name, assets={"tokenizer.json": words}) if embeds else None

    models = [
        LanguageModel(model, assets.get, digest, embedder(model.name, options.pop("embeds", False))),
        Encoder(name="encoder", assets={"tokenizer.json": words}, digest=digest),
    ]
    folder = options.pop("repository", None)
    repository = Repository(folder=Path(folder), resource=options.pop("resource", "static")) if folder else None

    def load(path: Path, name: str) -> LanguageModel:
        """A model whose file holds its fields."""
        given = json.loads(path.read_text())
        if not isinstance(given, dict):
            raise ArtifactError(f"{path}: it is no artifact")
        embeds = given.pop("embeds", False)
        return LanguageModel(PacedModel(model.spec, name=name, **given), assets.get, embedder=embedder(name, embeds))

    settings = ServerSettings(**options)
    return serve(models, settings, host="127.0.0.1", port=0, repository=repository, load_model=load, admin=admin, started_s=STARTED_S)


if __name__ == "__main__":
    sys.exit(main())
