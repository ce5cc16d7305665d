"""Chat templates: rendering as Hugging Face does it, sources, and the limits of a template."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from llmaccel import chat
from llmaccel.errors import ConfigError, LoadError, RequestError

USER = [{"role": "user", "content": "Hi"}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def render(template, messages=USER, **variables):
    return chat.render_chat(template, messages, variables)


def fixed_clock(form):
    return datetime(2025, 1, 15, 12, 0, 0).strftime(form)


def test_shared_templates(shared_data: Path):
    folder = shared_data / "conformance"
    contexts = json.loads((folder / "chat_contexts.json").read_text(encoding="utf-8"))
    wrong, cases = [], 0
    for line in (folder / "chat_templates.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name, expected in row["expected"].items():
            variables = dict(contexts[name])
            messages = variables.pop("messages")
            prompt = variables.pop("add_generation_prompt")
            variables["strftime_now"] = fixed_clock
            cases += 1
            try:
                got = {
                    "text": chat.render_chat(
                        row["template"], messages, variables, add_generation_prompt=prompt
                    )
                }
            except RequestError as error:
                got = {"error": str(error).removeprefix("chat_template: ")}
            if got != expected:
                wrong.append((row["name"], name))
    assert cases > 200
    assert wrong == []


def test_chatml_by_hand():
    messages = [*USER, {"role": "assistant", "content": "é <b>"}]
    text = chat.render_chat(CHATML, messages, {}, add_generation_prompt=True)
    assert text == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\né <b><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_environment():
    assert render("{% if true %}\n  x\n  {% endif %}\ny") == "  x\ny"  # trim_blocks, lstrip_blocks
    assert (
        render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}")
        == "01"
    )
    assert (
        render("{{ v | tojson }}", v={"é": "<a>", "b": [1, None]}) == '{"é": "<a>", "b": [1, null]}'
    )
    assert render("{{ v | tojson(indent=1) }}", v=[1]) == "[\n 1\n]"
    assert render("{{ v | tojson(ensure_ascii=true, sort_keys=true) }}", v={"b": "é", "a": 1}) == (
        '{"a": 1, "b": "\\u00e9"}'
    )
    assert render("{{ v | tojson(separators=(',', ':')) }}", v={"a": 1}) == '{"a":1}'
    assert render("a{% generation %}{{ messages[0].content }}{% endgeneration %}b") == "aHib"
    assert render("{{ strftime_now('%Y') }}") == str(datetime.now().year)
    assert render("{{ strftime_now('%d %b %Y') }}", strftime_now=fixed_clock) == "15 Jan 2025"
    assert (
        render("{{ bos_token }}|{{ missing }}|{{ tools is none }}", bos_token="<s>") == "<s>||True"
    )
    assert render(
        "{% set ns = namespace(a=1) %}{% set ns.a = ns.a + 1 %}{{ ns.a ~ '!' ~ none }}"
    ) == ("2!None")
    assert render("{% for m in messages %}{{ loop.last }}{{ loop.length }}{% endfor %}") == "True1"
    assert render(
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{% for x in 'ab' %}{{ f(x) }}{% endfor %}"
    ) == ("<a><b>")


def test_none_values_are_dropped():
    messages = [{"role": "assistant", "content": None, "tool_calls": [{"a": None}]}]
    template = "{{ messages[0].content is defined }}{{ messages[0].tool_calls | tojson }}"
    assert render(template, messages) == 'False[{"a": null}]'


def test_raise_exception_and_errors_name_the_template():
    with pytest.raises(RequestError, match="chat_template: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="chat_template, line 2"):
        render("x\n{% if %}")
    for template in ("{{ 1 // 0 }}", "{{ messages[0].content.foo.bar }}", "{{ messages + 1 }}"):
        with pytest.raises(RequestError, match="chat_template"):
            render(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ strftime_now.__globals__.json }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    ],
)
def test_sandbox(template):
    with pytest.raises(RequestError, match="chat_template"):
        render(template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(10000000000) %}{% endfor %}",
        "{% for i in range(3000) %}{% for j in range(3000) %}{% endfor %}{% endfor %}",
        "{% set s = 'a' * 3000 %}{% for a in s %}{% for b in s %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10000000000 }}",
        "{{ [0] * 10000000000 }}",
        "{{ 10 ** 100000 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 'a' | center(10000000000) }}",
        "{{ 'a'.ljust(10000000000) }}",
        "{{ 'a' | indent(10000000000, true) }}",
        "{% set n = namespace(s='ab') %}"
        "{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='ab') %}"
        "{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{{ s.replace('a', s) }}",
        "{% set s = 'a' * 1000000 %}{{ s | replace('a', s) }}",
        "{% set s = 'a' * 1000000 %}{{ s.join(range(1000000)) }}",
        "{% set s = 'a' * 10000000 %}{% for i in range(9) %}{{ s }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "x" * (chat.MAX_TEMPLATE_CHARS + 1),
    ],
)
def test_bounded(template):
    with pytest.raises(RequestError, match="chat_template"):
        render(template)
    assert render(CHATML).startswith("<|im_start|>user")  # the next render starts afresh


def test_messages_are_checked():
    for messages, what in [
        ([], "empty"),
        ("Hi", "list of dicts"),
        ([1], r"messages\[0\] must be a dict"),
        ([{"content": "x"}], r"messages\[0\] has no role"),
        ([{"role": "user", "content": object()}], r"messages\[0\] holds a object"),
    ]:
        with pytest.raises(RequestError, match=what):
            render(CHATML, messages)
    with pytest.raises(RequestError, match="tools"):
        render(CHATML, tools=[print])
    with pytest.raises(RequestError, match="documents"):
        render(CHATML, documents={"a": 1})


def test_continue_final_message():
    messages = [*USER, {"role": "assistant", "content": "The answer "}]
    text = chat.render_chat(CHATML, messages, {}, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nThe answer ")
    trimming = CHATML.replace("m.content", "m.content | trim")
    text = chat.render_chat(trimming, messages, {}, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nThe answer")
    blocks = [{"role": "user", "content": [{"type": "text", "text": "one"}]}]
    template = "{% for m in messages %}{{ m.content[0].text }}<end>{% endfor %}"
    assert chat.render_chat(template, blocks, {}, continue_final_message=True) == "one"
    assert blocks[0]["content"][0]["text"] == "one"
    with pytest.raises(RequestError, match="exclude each other"):
        chat.render_chat(CHATML, USER, {}, continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(RequestError, match="drops the end"):
        chat.render_chat("nothing", USER, {}, continue_final_message=True)
    with pytest.raises(RequestError, match="no text"):
        chat.render_chat(CHATML, [{"role": "user"}], {}, continue_final_message=True)


def test_sources(tmp_path: Path):
    named = [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]
    found = chat.load_chat_template(tmp_path, {"chat_template": named})
    assert found == {"default": "D", "tool_use": "T"}
    assert chat.load_chat_template(tmp_path, {}) == {}
    (tmp_path / "chat_templates").mkdir()
    (tmp_path / "chat_templates" / "rag.jinja").write_text("R")
    (tmp_path / "chat_template.jinja").write_text("J")
    found = chat.load_chat_template(tmp_path, {"chat_template": named})
    assert found == {"default": "J", "tool_use": "T", "rag": "R"}
    assert chat.select_chat_template(found, None, False) == "J"
    assert chat.select_chat_template(found, None, True) == "T"
    assert chat.select_chat_template(found, "rag", True) == "R"
    assert chat.select_chat_template(found, "{{ x }}", False) == "{{ x }}"
    file = tmp_path / "chat_template.jinja"
    assert chat.select_chat_template({}, str(file), False) == "J"
    with pytest.raises(RequestError, match="no chat_template"):
        chat.select_chat_template({}, None, False)
    with pytest.raises(RequestError, match="rag, tool_use"):
        chat.select_chat_template({"rag": "R", "tool_use": "T"}, None, False)
    with pytest.raises(ConfigError, match="neither a template nor a file"):
        chat.resolve_chat_template("no/such/file.jinja")
    for bad in (5, [1], [{"name": "x"}]):
        with pytest.raises(LoadError, match="chat_template"):
            chat.load_chat_template(tmp_path, {"chat_template": bad})
    as_json = tmp_path / "chat_template.json"
    for content in (b"{", b"[1]", b'"text"', b"\xff", b'{"chat_template": 5}', b"[" * 100_000):
        as_json.write_bytes(content)
        with pytest.raises(LoadError, match=r"chat_template\.json: "):
            chat.load_chat_template(tmp_path, {})
    file.write_bytes(b"\xff")
    with pytest.raises(LoadError, match=r"chat_template\.jinja: not UTF-8"):
        chat.resolve_chat_template(file)
    file.write_bytes(b"x" * (4 * chat.MAX_TEMPLATE_CHARS + 1))
    with pytest.raises(LoadError, match=r"chat_template\.jinja: .* larger"):
        chat.resolve_chat_template(file)


def test_content_parts():
    """OpenAI's lists: lines of one string, or as they are where the template loops over them."""
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]
    message = {"role": "user", "content": parts, "name": "n"}
    assert chat.join_text_parts([message], False) == [{**message, "content": "a\nb\nc"}]
    listed = [{"type": "text", "text": text} for text in "abc"]
    assert chat.join_text_parts([message], True) == [{**message, "content": listed}]
    assert message["content"] is parts
    assert chat.join_text_parts([{"role": "user", "content": "a"}], False)[0]["content"] == "a"
    for bad, what in (
        (
            {"type": "image_url", "image_url": {"url": "x"}},
            r"messages\[0\].content\[1\].*image_url",
        ),
        ({"type": "input_audio", "input_audio": {}}, "input_audio"),
        ({"type": "text", "text": 3}, "text must be a string"),
        ({"type": "text"}, "text must be a string"),
        (7, "expected text or a dict"),
    ):
        with pytest.raises(RequestError, match=what):
            chat.join_text_parts([{"role": "user", "content": [*parts[:1], bad]}], False)


def test_tool_calls_need_no_content():
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    for given in ({"content": None}, {}):
        message = {"role": "assistant", **given, "tool_calls": calls}
        joined = chat.join_text_parts([message], False)
        assert joined == [{"role": "assistant", "content": "", "tool_calls": calls}]
        assert render(CHATML, joined) == "<|im_start|>assistant\n<|im_end|>\n"
    for plain in ({"role": "user", "content": None}, {"role": "user", "tool_calls": []}):
        assert chat.join_text_parts([plain], False) == [plain]


@pytest.mark.parametrize(
    ("template", "takes"),
    [
        ("{% if tools %}{{ tools | tojson }}{% endif %}", True),
        ("{% for tool in tools %}{% endfor %}", True),
        ("{% set listed = tools or [] %}{{ listed }}", True),
        (CHATML, False),
        ("{{ messages[0].tools }}{{ 'tools' }}", False),
        ("{% set tools = 1 %}", False),
        ("{% if", True),
    ],
)
def test_which_templates_take_tools(template, takes):
    assert chat.takes_tools(template) is takes


@pytest.mark.parametrize(
    ("template", "takes"),
    [
        ("{% for m in messages %}{{ m.tool_calls }}{% endfor %}", True),
        ("{% for m in messages %}{% if 'tool_calls' in m %}{% endif %}{% endfor %}", True),
        ("{% for m in messages %}{{ m.get('tool_calls') }}{% endfor %}", True),
        ("{% for m in messages[1:] %}{{ m | tojson }}{% endfor %}", True),
        ("{{ messages | tojson }}", True),
        ("{{ messages }}", True),
        (CHATML, False),
        ("tool_calls {{ tools | tojson }}", False),
        ("{% for t in tools %}{{ t }}{% endfor %}", False),
        ("{% if", True),
    ],
)
def test_which_templates_take_tool_calls(template, takes):
    assert chat.takes_tool_calls(template) is takes


EACH = "{% for m in messages %}"
PARTS = "{% for p in CONTENT %}{{ p.text }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "takes"),
    [
        (EACH + "{{ m.content }}{% endfor %}", False),
        (EACH + "{{ m['content'] | trim }}{% endfor %}", False),
        (EACH + PARTS.replace("CONTENT", "m.content") + "{% endfor %}", True),
        (
            EACH + "{% set c = m['content'] %}" + PARTS.replace("CONTENT", "c") + "{% endfor %}",
            True,
        ),
        ("{% macro r(c) %}" + PARTS.replace("CONTENT", "c") + "{% endmacro %}", True),
        (EACH, False),
    ],
)
def test_which_templates_take_parts(template, takes):
    assert chat.takes_parts(template) is takes
