"""From chat messages to a prompt, with the model's own template."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pagedkv.tokenizer import Tokenizer

ChatMessage = Mapping[str, Any]
"""``{"role": ..., "content": ...}``; the content is a string or a list of text parts."""

KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_RESERVED = frozenset(
    {
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "padding",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tools",
        "truncation",
    }
)


def render_chat(
    tokenizer: Tokenizer,
    messages: Sequence[ChatMessage],
    *,
    chat_template: str | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Renders a conversation as the text that the model expects.

    Templates run in transformers' sandbox (Jinja's ``ImmutableSandboxedEnvironment``).

    Args:
        tokenizer: the model's tokenizer, which carries the template.
        messages: the conversation, oldest first.
        chat_template: a template, or the name of one of the model's, instead of its default.
        add_generation_prompt: whether to end with the start of the assistant's turn.
        continue_final_message: whether the last message stays open, to be continued.
        tools: JSON schemas of functions that the model may call.
        chat_template_kwargs: further variables of the template.

    Raises:
        ValueError: no template, no messages, a message or role that the template refuses.
        TypeError: a message that is not a mapping, or content that is not text.
    """
    conversation = check_messages(messages)
    extra = dict(chat_template_kwargs or {})
    if taken := sorted(_RESERVED & extra.keys()):
        msg = f"chat_template_kwargs must not contain {taken[0]!r}; it is not a template variable"
        raise ValueError(msg)
    if add_generation_prompt and continue_final_message:
        msg = (
            "continue_final_message=True needs add_generation_prompt=False: "
            "a message cannot be continued behind the start of another"
        )
        raise ValueError(msg)
    hf_tokenizer = tokenizer.hf_tokenizer
    if chat_template is not None:
        _check_template(chat_template, own=getattr(hf_tokenizer, "chat_template", None))
    if chat_template is None and not getattr(hf_tokenizer, "chat_template", None):
        msg = (
            "the model has no chat template, so it is not known how to write messages for it; "
            "pass chat_template=, or use generate() with a prompt written for this model"
        )
        raise ValueError(msg)

    from jinja2 import TemplateError

    try:
        text = hf_tokenizer.apply_chat_template(
            conversation,
            tools=list(tools) if tools else None,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tokenize=False,
            **extra,
        )
    except TemplateError as error:
        roles = ", ".join(str(message["role"]) for message in conversation)
        msg = f"the chat template refuses these messages (roles: {roles}): {error}"
        raise ValueError(msg) from error
    return str(text)


def _check_template(chat_template: str, *, own: object) -> None:
    """Checks that what was passed is a template or the name of one: other text would take the messages' place.

    Raises:
        ValueError: it is neither.
    """
    names = sorted(own) if isinstance(own, Mapping) else []
    if chat_template not in names and "{{" not in chat_template and "{%" not in chat_template:
        known = f" or one of the model's templates ({', '.join(names)})" if names else ""
        msg = f"chat_template must be a Jinja template{known}, got {chat_template!r}"
        raise ValueError(msg)


def encode_chat(tokenizer: Tokenizer, messages: Sequence[ChatMessage], **options: Any) -> list[int]:
    """Returns the token ids of a rendered conversation.

    The template writes the special tokens itself, so none are added.

    Args:
        tokenizer: the model's tokenizer.
        messages: the conversation.
        **options: as for ``render_chat``.
    """
    return tokenizer.encode(render_chat(tokenizer, messages, **options), add_special_tokens=False)


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Returns the messages as transformers takes them, text parts joined into strings.

    Raises:
        ValueError: no messages, a missing or misspelt role, content that is absent or not text.
        TypeError: ``messages`` is not a sequence of mappings.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        msg = (
            f"messages must be a list of dicts with 'role' and 'content', "
            f"got {type(messages).__name__}"
        )
        raise TypeError(msg)
    if not messages:
        msg = "messages must hold at least one message, got an empty list"
        raise ValueError(msg)
    return [_check_message(index, message) for index, message in enumerate(messages)]


def _check_message(index: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        msg = (
            f"messages[{index}] must be a dict with 'role' and 'content', "
            f"got {type(message).__name__}"
        )
        raise TypeError(msg)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        msg = f"messages[{index}] needs a 'role' such as {KNOWN_ROLES[2]!r}, got {role!r}"
        raise ValueError(msg)
    nearest = difflib.get_close_matches(role.strip().lower(), KNOWN_ROLES, n=1, cutoff=0.8)
    if role not in KNOWN_ROLES and nearest:
        msg = f"messages[{index}] has the unknown role {role!r}; did you mean {nearest[0]!r}?"
        raise ValueError(msg)
    checked = dict(message)
    if message.get("content") is None:
        if not message.get("tool_calls"):
            msg = f"messages[{index}] ({role}) needs a 'content' string, got None"
            raise ValueError(msg)
    else:
        checked["content"] = _read_content(index, message["content"])
    return checked


def _read_content(index: int, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        msg = (
            f"messages[{index}]['content'] must be a string or a list of text parts, "
            f"got {type(content).__name__}"
        )
        raise TypeError(msg)
    texts = []
    for place, part in enumerate(content):
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
            continue
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        msg = f"messages[{index}]['content'][{place}] must be a text part, got {kind!r}"
        raise ValueError(msg)
    return "".join(texts)
