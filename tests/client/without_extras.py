"""Code that makes a process behave as if only the base install were there."""

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        heavy = ("torch", "hivemind", "transformers", "tokenizers", "safetensors", "numpy",
                 "jinja2", "huggingface_hub", "uvloop", "httpx", "cryptography", "psutil",
                 "grpc_health", "grpc_reflection")
        if name.split(".")[0] in heavy:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
"""
