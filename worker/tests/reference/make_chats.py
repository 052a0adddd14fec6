"""Writes what transformers makes of dialogues with chat templates in the manner of published models.

    python worker/tests/reference/make_chats.py [worker/tests/fixtures/pretrained]

`chats.json` has the templates with the special tokens that they name, dialogues, and for each pair of them the text or
the words with which the template refuses; and dialogues with the tokens that `base-decoder`, which must be there, reads
and generates for them. The templates are written for this test.
"""

import datetime
import json
import sys
from pathlib import Path

import jinja2
import torch
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

NOW = datetime.datetime(2026, 11, 29, 7, 5, 9)
NEW = 12

LLAMA_2 = """{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set opening = '<<SYS>>\\n' + \
messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}{% else %}{% set turns = messages %}{% set opening = '' %}{% endif %}\
{% for turn in turns %}{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if turn['role'] == 'user' %}{{ bos_token + '[INST] ' + ((opening if loop.first else '') + turn['content']).strip() + \
' [/INST]' }}{% else %}{{ ' ' + turn['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""

LLAMA_3 = """{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set today = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set today = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- What the system says stands in front, whatever it is. #}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + today + "\\n\\n" }}
{{- system }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("This model takes one tool call at a time.") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.tool_calls is defined and message.tool_calls is not none) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] " + tools | tojson + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, not " ~ message["role"]) }}
    {%- endif %}
{%- endfor %}
"""

QWEN_2 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role }}
        {%- if loop.index0 > ns.last %}
            {{- '\\n<think>\\n\\n</think>' }}
        {%- endif %}
        {{- '\\n' + content.strip('\\n') + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

# What is rarely used, and all in one.
RARE = """{% macro heading(name, mark='#') %}{{ mark }} {{ name | upper }}
{% endmacro %}
{%- set kinds = {'system': 'S', 'user': 'U', 'assistant': 'A'} %}
{% for message in messages %}
  {% if message['role'] == 'system' %}
    {% continue %}
  {% endif %}
  {% if loop.index > 5 %}
cut at {{ loop.index }} of {{ loop.length }}
    {% break %}
  {% endif %}
{{ heading(message.role) }}{{ message | tojson }}
{{ [message.content, none, true, 1.5] | tojson(indent=2) }}
{{ {'b': message.content, 'a': []} | tojson(ensure_ascii=True, sort_keys=True, separators=(',', ':')) }}
  {%- generation %}
  |{{ message.content.strip() }}|{{ message.content | trim }}|{{ message.content.split() | join('/') }}|
  {% endgeneration %}
{{ kinds.get(message.role, '?') }} {{ kinds.items() | list | length }} {{ message.content.startswith(' ') }} \
{{ loop.previtem.role if loop.previtem else none }} {{ unk_token }}{{ missing }} \
{{ message.content.replace('\\n', '\\\\n') if message.content | length < 40 }} {{ "%s-%d" | format('a', loop.index) }}
{% endfor %}
{{ strftime_now('%Y-%m-%d %H:%M:%S %A %B %j') }} {{ messages | map(attribute='role') | join(',') }} {{ tools }} {{ messages[-1:] | length }} {{ [1, none, 'a'] }}"""

ANGLE = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEMPLATES = {
    "llama-2": (LLAMA_2, ANGLE),
    "llama-3": (LLAMA_3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "mistral": (MISTRAL, ANGLE),
    "qwen2": (QWEN_2, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "rare": (RARE, ANGLE),
}

SAID = [
    "What color is the fox?",
    "  Red, mostly.  \n",
    "\tEn español: ¿qué dice el zorro? 🦊\u200d",
    "日本語で答えてください。\u3000",
    "\u001c شكرا \u00a0<|eot_id|></s>[/INST]<|im_end|>",
    "<think>\nIt's \"red\" & 'white' \\ {{ bos_token }} {% raw %}\n</think>\n\nThe fox.\n",
    "",
]
SYSTEM = "  You are kind,\nand brief. 你好  "


def dialogue(count, system, first=0):
    roles = ["user", "assistant"]
    turns = [{"role": roles[at % 2], "content": SAID[(first + at) % len(SAID)]} for at in range(count)]
    return [{"role": "system", "content": SYSTEM}, *turns] if system else turns


def dialogues():
    found = [dialogue(count, False, count) for count in range(1, 8)]
    found += [dialogue(count, True, count + 1) for count in range(1, 7)]
    found += [dialogue(1, False, first) for first in range(len(SAID))]
    user, answer, system = dialogue(1, False)[0], dialogue(2, False)[1], dialogue(1, True)[0]
    # What some templates do not take.
    return found + [[answer], [user, user], [user, answer, answer], [system], [user, system], [system, system, user]]


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def applied(tokenizer, messages):
    try:
        return {"text": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)}
    except jinja2.exceptions.UndefinedError:
        return {"broken": True}
    except jinja2.exceptions.TemplateError as error:
        return {"refused": str(error)}


SERVED = """{{ bos_token }}{% for message in messages %}
{% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('nobody is called ' + message.role) }}{% endif %}
{% if loop.index0 > 0 and messages[loop.index0 - 1].role == message.role %}{{ raise_exception('two turns in a row') }}{% endif %}
{{ message.role }}: {{ message.content | trim }}{{ eos_token if message.role == 'assistant' }}
{% endfor %}
{{- 'assistant:' if add_generation_prompt }}"""


def served(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = SERVED
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    fox = {"role": "user", "content": " What color is the fox?"}
    system = {"role": "system", "content": "a picture of\nthe whale"}
    answer = {"role": "assistant", "content": "red 🦊"}
    found = []
    for messages in [[fox], [system, fox], [fox, answer, {"role": "user", "content": "the <|end|> café"}]]:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        asked = torch.tensor([ids])
        said = model.generate(
            asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=NEW, pad_token_id=0
        )
        found.append({"messages": messages, "ids": ids, "greedy": said[0, len(ids) :].tolist()})
    return {"template": SERVED, "dialogues": found}


def main(out):
    chat_template_utils.datetime = Clock
    said = dialogues()
    found = {}
    for name, (template, tokens) in TEMPLATES.items():
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=template, **tokens)
        texts = [applied(tokenizer, messages) for messages in said]
        found[name] = {"template": template, "tokens": tokens, "found": texts}
    whole = {"now": NOW.isoformat(), "dialogues": said, "templates": found, "served": served(out / "base-decoder")}
    (out / "chats.json").write_text(json.dumps(whole, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    here = Path(__file__).parent
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else here.parent / "fixtures" / "pretrained")
