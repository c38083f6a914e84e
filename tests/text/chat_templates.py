"""Chat templates in the styles of the common model families, and chats to render with them."""

from __future__ import annotations

from typing import Any

TEMPLATES = {
    "chatml": """\
{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "llama3": """\
{{- bos_token }}
{%- set date_string = date_string if date_string is defined else "26 Jul 2024" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    "qwen": """\
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages %}
    {%- if message.role == "user" %}{%- set ns.last = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "tool" %}{%- continue %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content is defined and loop.index0 < ns.last %}
        {{- '<think>' + message.reasoning_content + '</think>' }}
    {%- endif %}
    {%- generation %}{{- message.content + '<|im_end|>\\n' }}{%- endgeneration %}
    {%- if message.tool_calls %}{{- message.tool_calls | tojson(indent=2) }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "helpers": """\
{{ strftime_now('%Y') }} {{ messages | tojson(sort_keys=True, separators=(',', ':')) }}
{{ dict(a=1, b=messages|length) }} {{ '<&>' | tojson(ensure_ascii=True) }}
  {% for m in messages %}
  {{ loop.index }}{% if loop.index > 1 %}{% break %}{% endif %}

  {% endfor %}
{{ documents is none }} {{ tools is none }} {{ pad_token is defined }} {{ unk_token }}
""",
}

Chat = list[dict[str, Any]]

CHATS: dict[str, Chat] = {
    "one": [{"role": "user", "content": "Grüße, 東京 <b>&'\" 🦊"}],
    "several": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2", "reasoning": "count"},
        {"role": "user", "content": "thanks\n"},
    ],
    "tool_call": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "w", "arguments": {"é": 1}}]},
        {"role": "tool", "content": "rain"},
        {"role": "user", "content": "so?"},
    ],
    "wrong_order": [{"role": "assistant", "content": "I begin"}],
}

TOOLS: Chat = [
    {
        "type": "function",
        "function": {
            "name": "wetter",
            "description": "<für> Köln",
            "parameters": {"type": "object"},
        },
    }
]
