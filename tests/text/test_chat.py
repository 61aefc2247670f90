"""Chat messages become the prompt that the model's template writes."""

import copy

import pytest

from pagedkv.chat import check_messages, encode_chat, render_chat
from pagedkv.tokenizer import Tokenizer
from text.zoo import tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system comes first') }}{% endif %}"
    "[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{{ mood or '' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "hello"}]


def with_template(template):
    hf_tokenizer = copy.copy(tokenizer("byte_level").hf_tokenizer)
    hf_tokenizer.chat_template = template
    return Tokenizer(hf_tokenizer)


def test_a_chat_is_rendered_with_the_models_template():
    """Roles, special tokens and the start of the answer."""
    messages = [{"role": "system", "content": "be kind"}, *HELLO]
    wrapper = with_template(TEMPLATE)
    assert render_chat(wrapper, messages) == "<s>[system]be kind</s>[user]hello</s>[assistant]"
    closed = render_chat(wrapper, messages, add_generation_prompt=False)
    assert closed == "<s>[system]be kind</s>[user]hello</s>"


def test_the_ids_hold_the_beginning_token_once():
    """The template writes special tokens, so encoding adds none."""
    wrapper = with_template(TEMPLATE)
    ids = encode_chat(wrapper, HELLO)
    assert ids == wrapper.encode(render_chat(wrapper, HELLO), add_special_tokens=False)
    assert ids.count(wrapper.hf_tokenizer.bos_token_id) == 1
    assert wrapper.decode(ids, skip_special_tokens=False) == render_chat(wrapper, HELLO)


def test_text_parts_are_joined():
    """The list form of content, as clients send it."""
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    wrapper = with_template(TEMPLATE)
    assert render_chat(wrapper, [{"role": "user", "content": parts}]) == render_chat(wrapper, HELLO)


def test_a_final_message_can_be_continued():
    """The last turn stays open, without its end token."""
    messages = [*HELLO, {"role": "assistant", "content": "Well,"}]
    wrapper = with_template(TEMPLATE)
    text = render_chat(wrapper, messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "<s>[user]hello</s>[assistant]Well,"
    with pytest.raises(ValueError, match="needs add_generation_prompt=False"):
        render_chat(wrapper, messages, continue_final_message=True)


def test_variables_reach_the_template_and_arguments_do_not_hide_among_them():
    """Names that steer transformers instead of the template are refused."""
    wrapper = with_template(TEMPLATE)
    text = render_chat(wrapper, HELLO, chat_template_kwargs={"mood": "gladly"})
    assert text.endswith("[assistant]gladly")
    with pytest.raises(ValueError, match="must not contain 'tokenize'"):
        render_chat(wrapper, HELLO, chat_template_kwargs={"tokenize": True})


def test_no_template_says_what_to_do():
    """A base model has none."""
    with pytest.raises(ValueError, match=r"no chat template.*chat_template=.*generate\(\)"):
        render_chat(with_template(None), HELLO)
    assert (
        render_chat(with_template(None), HELLO, chat_template="{{ messages[0].content }}")
        == "hello"
    )


def test_named_templates_are_found():
    """Some models carry several."""
    wrapper = with_template({"default": "D", "short": "S"})
    assert render_chat(wrapper, HELLO) == "D"
    assert render_chat(wrapper, HELLO, chat_template="short") == "S"
    with pytest.raises(ValueError, match="multiple chat templates"):
        render_chat(with_template({"short": "S"}), HELLO)


def test_what_the_template_refuses_is_a_value_error_with_the_roles():
    """A template's own complaint reaches the user."""
    messages = [*HELLO, {"role": "system", "content": "late"}]
    with pytest.raises(ValueError, match=r"roles: user, system\): system comes first"):
        render_chat(with_template(TEMPLATE), messages)
    with pytest.raises(ValueError, match="the chat template refuses"):
        render_chat(with_template("{% if %}"), HELLO)


def test_a_template_cannot_leave_the_sandbox():
    """Templates come with downloaded models."""
    attack = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(ValueError, match="the chat template refuses"):
        render_chat(with_template(attack), HELLO)


@pytest.mark.parametrize(
    ("messages", "error", "message"),
    [
        ([], ValueError, "at least one message"),
        ("hello", TypeError, "list of dicts with 'role' and 'content', got str"),
        ({"role": "user", "content": "a"}, TypeError, "got dict"),
        (["hello"], TypeError, r"messages\[0\] must be a dict.*got str"),
        ([{"content": "a"}], ValueError, r"messages\[0\] needs a 'role' such as 'user', got None"),
        ([{"role": 3, "content": "a"}], ValueError, "needs a 'role'"),
        ([{"role": "User", "content": "a"}], ValueError, "did you mean 'user'"),
        ([*HELLO, {"role": "asistant", "content": "a"}], ValueError, r"\[1\].*'assistant'"),
        ([{"role": "user"}], ValueError, "needs a 'content' string, got None"),
        ([{"role": "user", "content": 3}], TypeError, "must be a string or a list"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], ValueError, "got 'image_url'"),
    ],
)
def test_bad_messages_are_named(messages, error, message):
    """Which message, what is wrong, what was meant."""
    with pytest.raises(error, match=message):
        check_messages(messages)


def test_roles_of_a_models_own_and_tool_calls_pass():
    """Some templates know more roles; an assistant's tool call has no content."""
    messages = [
        {"role": "ipython", "content": "1"},
        {"role": "assistant", "content": None, "tool_calls": [{}]},
    ]
    assert check_messages(messages) == messages
