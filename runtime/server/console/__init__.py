"""The page at `/`: one HTML document that needs nothing from elsewhere, with its script and style inside."""

from __future__ import annotations

import base64
import functools
import hashlib
from importlib.resources import files

from llmos.runtime.server.core.http import RawHeaders, Reply


@functools.cache
def console() -> Reply:
    """Return the page. Its policy allows its own script and style by their digests, requests to this server, and nothing else."""
    folder = files(__name__)
    html, script, style = ((folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.js", "page.css"))
    body = html.replace("/*style*/", style).replace("/*script*/", script)
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_digest(script)}'",
            f"style-src '{_digest(style)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
    headers: RawHeaders = [
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
        (b"cache-control", b"no-cache"),
    ]
    return Reply(200, body.encode(), b"text/html; charset=utf-8", headers)


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
