#!/usr/bin/env python3
"""make_templates.py > templates.json

What Jinja2, set up as Hugging Face transformers sets it up for chat templates, makes of templates and chats: published templates,
and a line for each thing of the language. "text" is the result; null: Jinja2 or the template refuses. Needs the package jinja2."""
import json
from jinja2.sandbox import ImmutableSandboxedEnvironment

SMOLLM2 = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI "
           "assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
           "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA3 = ("{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + "
          "'<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
          "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
LLAMA31 = r"""{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}

{#- This block extracts the system message, so we can slot it into the right place. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}

{#- System message + builtin tools #}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\n" }}
{%- endif %}
{%- if builtin_tools is defined %}
    {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\n\n"}}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}

{#- Custom tools are passed in a user message with some extra guidance #}
{%- if tools_in_user_message and not tools is none %}
    {%- if messages | length != 0 %}
        {%- set first_user_message = messages[0]['content']|trim %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
{%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\n\n' -}}
{%- endif %}

{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {%- for arg_name, arg_val in tool_call.arguments | items %}
            {{- arg_name + '="' + arg_val + '"' }}
            {%- if not loop.last %}
                {{- ", " }}
            {%- endif %}
        {%- endfor %}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"""
QWEN2 = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful "
         "assistant.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
         "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
QWEN25 = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\nYou may call one or more functions.\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' + tool_call.arguments | tojson + '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
QWEN3 = r"""{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}
"""
ZEPHYR = r"""{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""
MISTRAL = ("{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
           "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + "
           "message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}"
           "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
GEMMA = ("{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in "
         "messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}"
         "{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}"
         "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}"
         "{{'<start_of_turn>model\n'}}{% endif %}")
CHATML = ("{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{% for message in messages %}"
          "{{'<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>' ~ '\n'}}{% endfor %}{{ '<|im_start|>assistant\n' if "
          "add_generation_prompt else '' }}")
PUBLISHED = {'smollm2': SMOLLM2, 'llama-3': LLAMA3, 'llama-3.1': LLAMA31, 'qwen2': QWEN2, 'qwen2.5': QWEN25, 'qwen3': QWEN3,
             'zephyr': ZEPHYR, 'mistral': MISTRAL, 'gemma': GEMMA, 'chatml': CHATML}

CHATS = [
    [('user', 'Hello')],
    [('system', 'Be brief.'), ('user', '  What is 2+2?\n'), ('assistant', '4'), ('user', 'Sure? "yes" \\ \t é 日本 😀')],
    [('user', 'a'), ('assistant', '<think>\nhm\n</think>\n\nb'), ('user', ''), ('assistant', '<think>x</think>y')],
    [('user', '{{ 7*7 }} {% if x %}'), ('user', 'again')],
    [],
]

LINES = r"""
{{ 1 + 2 }} {{ 7 - 3 - 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 3 * 4 }} {{ -3 }} {{ - 3 + 5 }} {{ 2 * 3 + 4 }} {{ 2 * (3 + 4) }}
{{ 'a' + 'b' ~ 1 ~ true ~ none }} {{ 'x' ~ undefined_thing ~ 'y' }} {{ 'a' 'b' "c" }} {{ 1 ~ 2 + '3' }}
{{ true }} {{ True }} {{ false }} {{ none }} {{ None }} {{ nothing }} {{ 0 }} {{ 'q"\'' }} {{ "a\tb\\n\x41\u00e9\U0001F600\q" }}
{{ 1 == 1 }} {{ 1 == true }} {{ 1 == '1' }} {{ 'a' != 'b' }} {{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 'a' < 'b' }} {{ 'é' > 'z' }} {{ 2 >= 2 }} {{ 2 <= 1 }}
{{ 'a' in 'cat' }} {{ 'x' not in 'cat' }} {{ 1 in [1, 2] }} {{ 'role' in messages[0] }} {{ 'nope' in messages[0] }} {{ 'a' in nothing }} {{ '' in 'a' }}
{{ not true }} {{ not nothing }} {{ true and 'x' }} {{ false or 'y' }} {{ '' or 0 or 'z' }} {{ 1 and 0 and 2 }} {{ not 1 == 2 }} {{ not (1 or 0) and 1 }}
{{ 'a' if true else 'b' }} {{ 'a' if false }} {{ 'a' if 0 else 'b' if 0 else 'c' }} {{ ('a' if 1 else 'b') ~ 'c' }}
{{ nothing is defined }} {{ messages is defined }} {{ nothing is not defined }} {{ none is none }} {{ 'a' is string }} {{ 1 is number }} {{ true is number }} {{ 3 is odd }} {{ 3 is even }}
{{ messages is iterable }} {{ 'a' is iterable }} {{ 1 is iterable }} {{ messages[0] is mapping }} {{ messages is mapping }} {{ messages is sequence }} {{ true is boolean }} {{ true is true }} {{ 1 is true }} {{ 1 is integer }} {{ true is integer }} {{ false is false }}
{{ nothing is iterable }} {{ nothing is string }} {{ nothing is undefined }} {{ not nothing is defined }} {{ 3 is in [1, 3] }} {{ 3 is eq 3 }} {{ 3 is equalto(4) }} {{ nothing is sequence }} {{ nothing is none }}
[{{ '  a b ' | trim }}] [{{ 'xxaxx' | trim('x') }}] [{{ ' \u3000\x1ca\u2003 '.strip() }}] [{{ 'xyaxy'.strip('xy') }}] [{{ ' a '.lstrip() }}] [{{ ' a '.rstrip() }}] [{{ 'éaé'.strip('é') }}] [{{ ''.strip() }}]
{{ 'abc' | length }} {{ 'é日😀' | length }} {{ [] | length }} {{ messages | count }} {{ nothing | length }} {{ {'a': 1} | length }}
{{ 'aé' | upper }} {{ 'AÉÑ' | lower }} {{ 'hELLO wORLD' | capitalize }} {{ 'a'.upper() }} {{ 'B'.lower() }} {{ 'éa'.capitalize() }} {{ true | upper }} {{ none | lower }} {{ 1 | trim }}
{{ nothing | default('d') }} {{ '' | default('d') }} {{ '' | default('d', true) }} {{ nothing | d }} {{ 0 | default(5, true) }} {{ 'v' | d('w') }} {{ nothing | default }}
{{ 'a"b\\\n\t\r\b\f\x01é😀/<>&' | tojson }} {{ 1 | tojson }} {{ true | tojson }} {{ none | tojson }} {{ [1, 'a', none, []] | tojson }} {{ messages | tojson }} {{ {'a': [true], 'b': {}} | tojson }}
{{ [1, 2, 3] | first }} {{ [1, 2, 3] | last }} {{ [] | first }} {{ 'abc' | first }} {{ 'abé' | last }} {{ [1, 'b', none] | join('-') }} {{ ['a', 'b'] | join }} {{ [] | join(',') }}
{{ 'a-b-c' | replace('-', '+') }} {{ 'aaa'.replace('aa', 'b') }} {{ 1 | string ~ '2' }} {{ 'abab' | replace('ab', '') }} {{ [1, 2] | list | length }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('bc') }} {{ 'abc'.startswith('b') }} {{ 'a'.endswith('aa') }} {{ ''.startswith('') }}
{{ 'a,b,,c'.split(',') | tojson }} {{ ' a  b '.split() | tojson }} {{ 'abc'.split('x')[0] }} {{ 'a</t>b'.split('</t>')[-1] }} {{ ''.split(',') | length }} {{ ''.split() | length }} {{ 'aXbX'.split('X') | length }}
{{ 'hello'[1] }} {{ 'hello'[-1] }} {{ 'hello'[1:3] }} {{ 'hé日😀o'[1:-1] }} {{ 'abc'[:2] }} {{ 'abc'[5:] }} {{ 'abc'[-2:] }} {{ 'abc'[9] }}| {{ 'abc'[2:1] }}|
{{ [1, 2, 3][1:] | tojson }} {{ [1, 2, 3][::-1] | tojson }} {{ [1, 2, 3, 4, 5][::2] | tojson }} {{ [1, 2, 3, 4, 5][4:1:-2] | tojson }} {{ [1, 2][-9:9] | tojson }} {{ [1, 2, 3][:-1] | tojson }} {{ [1][7:] | tojson }} {{ [1,2,3][1] }} {{ [1,2,3][-1] }} {{ [1][3] }}|
{{ [1, 2, 3][-1:-9:-1] | tojson }} {{ [1, 2, 3][9::-1] | tojson }} {{ [1, 2, 3][:0:-1] | tojson }} {{ ([1] + [2, 3]) | tojson }} {{ (1, 2) | length }} {{ (1,) | length }} {{ () | length }} {{ [1, 2,] | length }}
{{ messages[0].role }} {{ messages[0]['role'] }} {{ messages[0].nope }}| {{ messages.0.role }} {{ messages[-1]['content'] }} {{ messages[0].get('role') }} {{ messages[0].get('x') }} {{ messages[0].get('x', 'y') }}
{{ {'a': 1, 'b': {'c': 2}}['b']['c'] }} {{ {'a': {'b': 3}}.a.b }} {{ {}.x }}| {{ {'a': 1}.items() | length }} {% for k, v in {'x': 1, 'y': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for k in {'p': 1} %}{{ k }}{% endfor %}
{% for m in messages %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.revindex0 }}/{{ loop.first }}/{{ loop.last }}/{{ loop.length }}/{{ loop.nothing }};{% endfor %}
{% for m in messages %}{{ loop.previtem.role if loop.previtem is defined else '-' }}>{{ loop.nextitem.role if loop.nextitem is defined else '-' }} {% endfor %}
{% for x in [] %}a{% else %}empty{% endfor %}{% for x in [1] %}a{% else %}empty{% endfor %}{% for x in nothing %}a{% else %}none{% endfor %}
{% for x in [1, 2, 3, 4] if x % 2 == 0 %}{{ x }}@{{ loop.index }}of{{ loop.length }} {% else %}no{% endfor %}{% for x in [1] if x > 3 %}{{ x }}{% else %}no{% endfor %}
{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for a in [1, 2] %}{% for b in [3, 4] %}{{ a }}{{ b }}{{ loop.index }} {% if b == 3 %}{% continue %}{% endif %}{% break %}{% endfor %}{{ loop.index }};{% endfor %}
{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = 5 %}{{ x }}{% endfor %}{{ x }}
{% for i in [1, 2] %}{{ y }}{% set y = i %}{{ y }}{% endfor %}{{ y }}|
{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}{% for i in [1] %}{% if true %}{% set x = 3 %}{% endif %}{{ x }}{% endfor %}{{ x }}
{% set ns = namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ m.role[0] %}{% endfor %}{{ ns.n }}{{ ns.s }}{{ ns.x }}|{% set ns.new = 'v' %}{{ ns.new }}
{% set ns = namespace() %}{{ ns.a is defined }}{% set ns.a = [1] %}{% set ns.a = ns.a + [2] %}{{ ns.a | tojson }}
{% if 0 %}a{% elif '' %}b{% elif nothing %}c{% else %}d{% endif %}{% if 1 %}e{% endif %}{% if not 1 %}f{% else %}g{% endif %}
{% for i in range(3) %}{{ i }}{% endfor %} {% for i in range(2, 5) %}{{ i }}{% endfor %} {% for i in range(0) %}x{% endfor %}{% for i in range(-3) %}x{% endfor %}
{{ [1, [2]] == [1, [2]] }} {{ [1] == [1, 2] }} {{ [] == [] }} {{ 'a' == nothing }} {{ nothing == nothing2 }} {{ none == nothing }} {{ none == none }} {{ none != 1 }}
a {# comment #} b {#- strip -#} c
{{ 1 ~ 2 + 3 }}
{%- if true -%}   x   {%- endif -%}   y   {{- ' z ' -}}   w
{% if true %}   x   {% endif %}   y
a{%+ if true %} b{%+ endif +%} c
{{ '}}' }} {{ "{%" }} {{ {'a': {'b': 1}}['a']['b'] }} { % {{ '{{' }} {} { {{ 1 }} }
{{ nothing.x }}
{{ nothing + 'a' }}
{{ 'a' + 1 }}
{{ none + 'a' }}
{{ raise_exception('no') }}
{{ 1 < 'a' }}
{{ nothing['a'] }}
{{ 'a' | nofilter }}
{{ 'a' is notest }}
{{ 'a'.nomethod() }}
{{ nofunction() }}
{{ 1 in 'a' }}
{{ messages.x.y }}
{{ 1 // 0 }} {{ 1 % 0 }}
{{ 'a'
{% if %}{% endif %}
{% if 1 %}
{% endif %}
{% for x in %}{% endfor %}
{% for 1 in [1] %}{% endfor %}
{% set = 3 %}
{% nosuch %}
{{ }}
{{ 1 2 }}
{{ (1 }}
{{ [1 }}
{{ 'a
{# never ends
{{ a. }}
{{ a | }}
{{ 1 is }}
{% set x.y = 1 %}
{% for a, b in [[1]] %}{% endfor %}
{% set true = 1 %}
{{ 'a' ! 'b' }}
{{ ''.split('') }}
""".strip('\n')

BLOCKS = [  # several lines each: whitespace control
    "a {# multi\nline #} b {#- {{ x }} {% y #}\n c",
    "  {% if true %}\n    a\n  {% endif %}\nb\n",
    "a\n\n  {% if true %}  \nb\n {%- endif %}\n\nc\n\n",
    "x  {% if true %}\ny\n{% endif %}z\n\n",
    "\n{% for i in [1, 2] %}\n  - {{ i }}\n{% endfor %}\nend",
    "\t {# note #}\na {# note #}\nb\n  {#- note -#}\n  c",
    "a\r\n{% if true %}\r\nb\rc{% endif %}\r\n",
    "{% if true +%}\n  a\n{%+ endif %}\n  {%+ if true %}b{% endif %}\n",
    "{{ 'a' }}\n{{ 'b' }}\n\n{{- 'c' }}\n  {{ 'd' -}}\n\n  e\n",
    "{{ 'a' -}}\n  {% if true %}b{% endif %}\n",
    "  {% if true %}{% if true %}\n  x\n  {% endif %}{% endif %}\n",
    "{% if true -%}\n  {% if true %}\n   x{% endif %}{% endif %}",
    "{#- a #}\n\n{#- b -#}\n\n{% if true %}\n\n\nz{% endif %}\n\n\n",
    "{{ 'two\nlines' }}{{ 'cr\r\nlf' }}\n",
    "{%- set x = [\n  1,\n  2\n] -%}\n{{ x\n | tojson }}",
    "", "\n", "\n\n", "plain", " ", "{", "{ {", "%}", "}}", "{{ '' }}\n", "é\n{% if true %}é{% endif %}\n",
]


def refuse(message):
    raise ValueError(message)


def main():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols'])
    env.filters['tojson'] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
    env.globals['raise_exception'] = refuse
    chats = [[{'role': r, 'content': c} for r, c in chat] for chat in CHATS]
    cases = [(name, t, c, prompt) for name, t in PUBLISHED.items() for c in range(len(CHATS)) for prompt in (True, False)]
    cases += [('line', t, 1, True) for t in LINES.split('\n')] + [('block', t, 1, True) for t in BLOCKS]
    out = []
    for name, template, chat, prompt in cases:
        try:
            text = env.from_string(template).render(messages=chats[chat], add_generation_prompt=prompt, bos_token='<bos>', eos_token='<eos>')
        except Exception:
            text = None
        out.append({'name': name, 'template': template, 'chat': chat, 'prompt': prompt, 'text': text})
    print('{"note": "made by make_templates.py with bos_token <bos> and eos_token <eos>",\n"chats": %s,\n"cases": [' % json.dumps(chats))
    print(',\n'.join(json.dumps(c) for c in out))
    print(']}')


main()
