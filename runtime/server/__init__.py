"""HTTP serving: the Open Inference Protocol v2 and OpenAI's routes over the engines. Import submodules directly."""
