"""How our renderers write conversations, for programs that are not ours.

`.jinja` for transformers and llama.cpp, which a test holds to the renderer; `.gotmpl` for Ollama.
"""

from pathlib import Path
from typing import Literal

_FOLDER = Path(__file__).parent


def chat_template(name: str, form: Literal["jinja", "gotmpl"]) -> str:
    """Return the chat template of this name."""
    return (_FOLDER / f"{name}.{form}").read_text(encoding="utf-8")
