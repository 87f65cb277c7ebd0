"""What the ablation of serving starts from: eager torch behind a plain FastAPI handler, one request at a time.

`python benchmarks/serving_baseline.py embeddings|chat|infer MODEL`: a directory of a sentence encoder, a directory of a causal language
model, or a .pt2 file of a network of images.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

app = FastAPI()
NAME = "baseline"


@app.get("/v2/health/ready")
async def ready() -> dict[str, bool]:
    return {"ready": True}


def add_embeddings(folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @app.post("/v1/embeddings")
    async def embeddings(request: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer([request["input"]], return_tensors="pt", truncation=True, max_length=256)
        with torch.inference_mode():
            hidden = model(**encoded).last_hidden_state
            mask = encoded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            vector = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)[0]
        data = base64.b64encode(vector.numpy().tobytes()).decode()
        usage = {"prompt_tokens": encoded["input_ids"].shape[1]}
        return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": data}], "model": NAME, "usage": usage}


def add_chat(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @app.post("/v1/chat/completions")
    async def chat(request: dict[str, Any]) -> dict[str, Any]:
        encoded = tokenizer.apply_chat_template(request["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        num_tokens = request["max_tokens"]
        with torch.inference_mode():
            out = model.generate(**encoded, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
        num_prompt = encoded["input_ids"].shape[1]
        message = {"role": "assistant", "content": tokenizer.decode(out[0, num_prompt:], skip_special_tokens=True)}
        usage = {"prompt_tokens": num_prompt, "completion_tokens": out.shape[1] - num_prompt}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        return {"object": "chat.completion", "choices": [choice], "model": NAME, "usage": usage}


def add_infer(path: Path) -> None:
    model = torch.export.load(path).module()

    @app.get(f"/v2/models/{NAME}")
    async def metadata() -> dict[str, Any]:
        return {"name": NAME, "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, 3, 224, 224]}]}

    @app.post(f"/v2/models/{NAME}/infer")
    async def infer(request: Request) -> Response:
        body = await request.body()
        size = int(request.headers["inference-header-content-length"])
        (tensor,) = json.loads(body[:size])["inputs"]
        images = torch.from_numpy(np.frombuffer(body[size:], np.float32).reshape(tensor["shape"]).copy())
        with torch.inference_mode():
            out = model(images).numpy()
        output = {"name": "output", "datatype": "FP32", "shape": list(out.shape), "parameters": {"binary_data_size": out.nbytes}}
        head = json.dumps({"model_name": NAME, "outputs": [output]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        return Response(head + out.tobytes(), media_type="application/octet-stream", headers=headers)


def main() -> None:
    api, model = sys.argv[1], Path(sys.argv[2])
    {"embeddings": add_embeddings, "chat": add_chat, "infer": add_infer}[api](model)
    logging.getLogger("uvicorn.access").disabled = True
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    print(f"serving {NAME} on http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main()
