"""Text to token ids and back, where only the renderer's own scaffold can become control tokens.

Text from users, tools and schemas passes `escape` first; a mark inside whatever looks like a
control token keeps `encode` from reading it as one and is gone again in the ids.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from agentrft.core.errors import ModelError

_MARK, _LITERAL = "\U0010fffd", "\U0010fffc"
"""Private-use characters: the mark, and what follows it where the text itself holds a mark."""

_PIECES = 256
"""Stretches between control tokens whose ids are kept: scaffold and system text come again."""

_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + n): byte for n, byte in enumerate(_OTHERS)
}
"""Characters that stand for bytes in byte-level vocabularies, as GPT-2 chose them."""


class ChatTokenizer:
    """The tokenizer of a model folder, as the `renderers` library wants it.

    `encode` reads control tokens only where they are not escaped; `plain` never reads any.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.name_or_path = str(folder)
        self._settings = {
            **_read_json(folder / "config.json"),
            **_read_json(folder / "generation_config.json"),
            **_read_json(folder / "tokenizer_config.json"),
        }
        template = folder / "chat_template.jinja"
        self._template = (
            template.read_text(encoding="utf-8")
            if template.exists()
            else _template_of(self._settings)
        )
        description = _read_json(folder / "tokenizer.json")
        if "model" not in description:
            raise ModelError(f"{folder}/tokenizer.json is missing or broken; copy it again")
        added = description.get("added_tokens", [])
        self.control_ids: Mapping[str, int] = {
            token["content"]: token["id"] for token in added if _is_control(token)
        }
        # Every control token is made special, so that one switch turns all of them into text.
        for token in added:
            token["special"] = token["content"] in self.control_ids
        description["truncation"] = description["padding"] = None
        self._tokenizer = Tokenizer.from_str(json.dumps(description))
        self._tokenizer.encode_special_tokens = True
        self._piece_ids = lru_cache(_PIECES)(self._encode_escaped)
        self._byte_level = "ByteLevel" in json.dumps(description.get("decoder"))
        names = sorted(self.control_ids, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        self.unk_token_id = self._named_id("unk_token")
        self.eos_token_id = self._named_id("eos_token")

    def escape(self, text: str) -> str:
        """Return text that `encode` turns into the ids of `text`, none of them control tokens."""
        text = text.replace(_MARK, _MARK + _LITERAL)
        while self._control.search(text):
            text = self._control.sub(lambda m: f"{m[0][0]}{_MARK}{m[0][1:]}", text)
        return text

    def plain(self, text: str) -> list[int]:
        """Return the ids of text as it stands; control tokens are spelled out."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of scaffold with escaped text in it; nothing is added around them."""
        del add_special_tokens  # renderers write their own
        ids: list[int] = []
        start = 0
        for match in self._control.finditer(text):
            ids += self._piece_ids(text[start : match.start()])
            ids.append(self.control_ids[match[0]])
            start = match.end()
        ids += self._piece_ids(text[start:])
        return ids

    def _encode_escaped(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        if _MARK in text:
            text = re.sub(f"{_MARK}({_LITERAL})?", lambda m: _MARK if m[1] else "", text)
        return tuple(self.plain(text))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids, control tokens included unless skipped."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def as_json(self) -> str:
        """Return the tokenizer in the form of `tokenizer.json`, every control token special."""
        return self._tokenizer.to_str()

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; a character may need several tokens."""
        token = self._tokenizer.id_to_token(token_id) or ""
        if self._byte_level and token not in self.control_ids and _BYTES.keys() >= set(token):
            return bytes(_BYTES[character] for character in token)
        if single := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
            return bytes.fromhex(single[1])
        return token.replace("\u2581", " ").encode()

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """Return the id of a token, the unknown token's if there is none."""
        found = self._tokenizer.token_to_id(tokens)
        return self.unk_token_id if found is None else found

    @property
    def model_type(self) -> str:
        """Architecture as `config.json` names it."""
        return str(self._settings.get("model_type", ""))

    @property
    def all_special_tokens(self) -> list[str]:
        """Every control token."""
        return list(self.control_ids)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **_options: object,
    ) -> list[int]:
        """Render the folder's own template; raises ModelError if there is none or it refuses."""
        from jinja2 import TemplateError

        names = {f"{n}_token": self._text_of(f"{n}_token") for n in ("bos", "eos", "pad", "unk")}
        try:
            text = self._compiled_template.render(
                messages=conversation,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **names,
            )
        except TemplateError as error:
            raise ModelError(f"the chat template of {self.name_or_path} says: {error}") from error
        return self.encode(text)

    @cached_property
    def _compiled_template(self) -> Any:
        from jinja2 import TemplateError
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        if not self._template:
            raise ModelError(f"{self.name_or_path} has no chat template; use an instruct model")

        def refuse(message: str) -> str:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        names: dict[str, Any] = environment.globals  # pyright: ignore[reportAssignmentType]
        names["raise_exception"] = refuse
        # A fixed date: the same conversation must give the same tokens every day.
        names["strftime_now"] = lambda _format: "26 Jul 2024"
        return environment.from_string(self._template)

    def _text_of(self, name: str) -> str:
        token = self._settings.get(name) or ""
        return str(token["content"] if isinstance(token, dict) else token)

    def _named_id(self, name: str) -> int | None:
        if text := self._text_of(name):
            return self._tokenizer.token_to_id(text)
        found: Any = self._settings.get(f"{name}_id")
        return found[0] if isinstance(found, list) else found


def _is_control(token: Mapping[str, Any]) -> bool:
    """Whether text must not become this token: specials and tags, not runs of blanks."""
    content = str(token["content"])
    return len(content) > 1 and bool(token.get("special") or content.strip("\u2581 \t\r\n"))


def _template_of(settings: Mapping[str, Any]) -> str:
    template = settings.get("chat_template") or ""
    if isinstance(template, list):  # several named ones
        named = {entry["name"]: entry["template"] for entry in template}
        return str(named.get("tool_use") or named.get("default") or "")
    return str(template)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}; copy it again") from error
    return value if isinstance(value, dict) else {}
