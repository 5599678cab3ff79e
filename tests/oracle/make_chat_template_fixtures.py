#!/usr/bin/env python3
"""What Jinja makes of chat templates, as cases for Nibble's own bounded interpreter.

Writes engine/testdata/chat_templates.jsonl: one line per (template, conversation) with the rendered text,
or with an error where the template refuses the conversation. The templates are ours; between them they
use every construct of the language subset. The environment is set up as transformers sets up its own.
`--template FILE` renders another template instead and prints the cases to stdout.

Needs: pip install jinja2.
"""

import argparse
import datetime
import json
import pathlib
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROOT = pathlib.Path(__file__).resolve().parents[2]

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

ALTERNATING = """{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set preface = \
messages[0]['content'] %}{% else %}{% set rest = messages %}{% set preface = false %}{% endif %}\
{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must \
alternate') }}{% endif %}{% if loop.index0 == 0 and preface != false %}{% set text = '[S]' + preface + '[/S] ' \
+ m['content'] %}{% else %}{% set text = m['content'] %}{% endif %}{% if m['role'] == 'user' %}{{ bos_token + \
'[Q] ' + text.strip() + ' [/Q]' }}{% elif m['role'] == 'assistant' %}{{ ' ' + text | trim + ' ' + eos_token }}\
{% endif %}{% endfor %}"""

NAMESPACED = """{#- The last question decides what reasoning is shown. -#}
{%- set ns = namespace(open=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" %}
        {%- set ns.open = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and '</r>' in content %}
        {%- set reason = content.split('</r>')[0].split('<r>')[-1].strip('\\n') %}
        {%- set content = content.split('</r>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > ns.last and (loop.last or reason) %}
            {{- '(' ~ reason ~ ')' }}
        {%- endif %}
    {%- endif %}
    {{- message.role | capitalize + ': ' + content + '\\n' }}
{%- else %}
nothing
{%- endfor %}
"""

TRIMMED = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>
' + message['content'] + eos_token }}
    {% elif message['role'] == 'system' %}
{{ '<|system|>
' + message['content'] + eos_token }}
  {% else %}
{{ '<|assistant|>
'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}
"""

EVERYTHING = """{#- comment -#}
  {% macro show(x, y=2, z='q') %}[{{ x }}|{{ y }}|{{ z }}]{% endmacro %}
{{ show(1) }}{{ show('a', z=3) }}{{ show() }}
    {% for m in messages if m.role != 'system' -%}
  {{ loop.index }}/{{ loop.length }} {{ loop.first }} {{ m.content | upper | trim }} {{ loop.revindex0 }}
    {%- if loop.index == 2 %}{% break %}{% endif %}
    {% else %}none{% endfor %}
{% for i in range(4) %}{% if i is even %}{% continue %}{% endif %}{{ i }}{% endfor %}
{% set block %}
 x {{ 1 + 2 * 3 }} {{ 7 // 2 }} {{ 7 % 3 }} {{ -7 // 2 }} {{ 7 / 2 }} {{ 2 * 1.5 }} {{ 10 - 2 - 3 }}
{% endset %}
{{ block | trim }}  {{ [1, 'a', none, true] }} {{ {'k': 'v', 'n': [1, {}]} | tojson }}
{{ {'k': 'v', 'n': [1, {}]} | tojson(indent=2) }}
{{ 'abcdef'[1:4] }} {{ 'abcdef'[::-1] }} {{ 'abcdef'[-2:] }} {{ [1, 2, 3][::2] }} {{ 'x' in 'xyz' }}
{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k ~ '=' ~ v }};{% endfor %}
{% for k, v in {'a': 1, 'b': 2} | items %}{{ k }}{{ v }}{% endfor %}
{{ messages | map(attribute='role') | join(', ') }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ messages | rejectattr('role', '==', 'user') | map(attribute='content') | list }}
{{ ['a', 'b', 'a'] | unique | join('/') }} {{ ['a', 'b'] | reject('equalto', 'a') | first }}
{{ 'a' if messages else 'b' }} {{ missing is defined }} {{ missing | default('dflt') }} {{ none is none }}
{{ 'Hello World'.split(' ')[1].lower() }} {{ "tab\\there" }} {{ 'don\\'t' }} {{ '\\u00e9' }}
{{ messages[-1].content[:3] }} {{ (1, 2) | last }} {{ 3 == 3.0 }} {{ 'b' > 'a' }} {{ not false and true }}
{{ messages | length > 1 }} {{ missing }} {{ '' or 'x' }} {{ 'y' and 'z' }} {{ 1 is number }} {{ 'a' is string }}
{% generation %}said {{ messages[0]['content'] | tojson }}{% endgeneration %}
 {%+ if true %}keep{% endif +%}

end {{ 'x\\u00e9y'[1] }} {{ 'a,b,c'.split(',', 1) }} {{ '  x '.rstrip() ~ '|' }} {{ 'Title case'.title() }}
{{ "x" "y" }} {{ 5 is odd }} {{ 'a-b'.replace('-', '+') }} {{ 'abc'.startswith('ab') }} {{ range(3) | list }}
{{ {'a': 1}.get('b', 'none') }} {{ {'a': 1}['a'] }} {{ [3, 4] | length }} {{ 'a' not in ['b'] }} {{ 'x y' | replace('x', 'z') }}
{%- set a, b = [1, 2] %}{{ a }}{{ b }}{{ 'line\\nline' | indent(2) }}{{ dict(x=1).x }}{{ '%' ~ 5 }}
"""

# What Gemma's templates do: contents are text or a list of parts, the system's words stand in the first
# user turn, roles alternate or the conversation is refused, the answering role has another name.
PARTS = """{{ bos_token }}
{%- set opening = "" -%}
{%- set turns = messages -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set turns = messages[1:] -%}
    {%- if messages[0]['content'] is string -%}
        {%- set opening = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set opening = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
{%- endif -%}
{%- for turn in turns -%}
    {%- if (loop.index0 % 2 == 0) != (turn['role'] == 'user') -%}
        {{ raise_exception("user and assistant must take turns") }}
    {%- endif -%}
    {%- set speaker = turn['role'] -%}
    {%- if (turn['role'] == 'assistant') -%}
        {%- set speaker = "model" -%}
    {%- endif -%}
    {{ '<turn>' + speaker + '
' + (opening if loop.first else "") }}
    {%- if turn['content'] is string -%}
        {{ turn['content'] | trim }}
    {%- elif turn['content'] is iterable -%}
        {%- for part in turn['content'] -%}
            {%- if part['type'] == 'image' -%}
                {{ '<picture>' }}
            {%- elif part['type'] == 'text' -%}
                {{ part['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("content of an unknown kind") }}
    {%- endif -%}
    {{ '<end>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<turn>model
'}}
{%- endif -%}
"""

# One line, and no system: what Gemma 2 does.
NO_SYSTEM = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn here') \
}}{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception(\
'roles must alternate') }}{% endif %}{% if (m['role'] == 'assistant') %}{% set who = 'model' %}{% else %}\
{% set who = m['role'] %}{% endif %}{{ '<turn>' + who + '
' + m['content'] | trim + '<end>
' }}{% endfor %}{% if add_generation_prompt %}{{'<turn>model
'}}{% endif %}"""

# The day (of which Nibble has one), filters over what is not there, and filtered blocks: what templates with tools do.
DAYS = """{{ strftime_now('%Y-%m-%d') }}{% set today = strftime_now("%d %B %Y") %}
{{ 'Today is ' ~ today ~ strftime_now(', a %A (%a): %-d. %b %y, %H:%M:%S%Z, day %j, week %U %W %u %w, %I %p %% %m') }}
{%- for m in messages %}{{ m.role }}{{ tools | selectattr('type', 'equalto', 'x') | list | length }}\
{{ tools | reject('none') | list }}{{ '' | select | list }}{% endfor %}
{%- set rules -%}
{%- filter trim | replace("b", 'x', count=1) -%}

  Be brief. {% for m in messages %}
    b{{ m.content }}
  {% endfor %}

{%- endfilter -%}
{%- endset %}[{{ rules }}]{{ ', '.join(['x', 'y']) }}{{ 'aaa'.replace('a', 'b', 2) }}"""

# Numbers at the ends of what 64 bits hold, counts and widths that are not a count, texts that are not ASCII.
EDGES = """{{ ['42.9' | int, '-7.5' | int, ' 7 ' | int, 'x' | int, 'x' | int(5), none | int, 'inf' | int, 1.5 | int] }}
{{ ['1e400' | int, 'nan' | int(default=3), true | int, '1.5' | float, 'x' | float(2.5), 1 | float] }}
{{ [-true, true + 1, -1.5, 7 % -3, -7 // 2, 7.5 % -2, 0.1 + 0.2, 1000000000000000.0, 10000000000000000.0, 0.0 * -1] }}
{{ [9007199254740993 == 9007199254740992, 9007199254740993 > 9007199254740992] }}
{{ [(-9223372036854775807 - 1) % 3, (-9223372036854775807 - 1) // 3, (-9223372036854775807 - 1) % -1] }}
{{ [(-9223372036854775807 - 1) is divisibleby(-1), 3 is divisibleby(-2)] }}
{{ range(1, 9223372036854775807, 9223372036854775806) | list }}
{{ range(5, -9223372036854775807, -9223372036854775807) | list }}
{{ range(-9223372036854775807 - 1, -9223372036854775805) | list }}
{{ ['a b c'.split(' ', 9223372036854775807), 'a b c'.split(' ', -9223372036854775807), 'a b c'.split(none, 1)] }}
{{ ['a b,c'.split(sep=','), 'a b c'.split(' ', maxsplit=1)] }}
{{ ['aaa'.replace('a', 'b', 9223372036854775807), 'aaa'.replace('a', 'b', -1), 'aaa'.replace('a', 'b', true)] }}
{{ ['abc'[9223372036854775807:], 'abc'[:-9223372036854775807], 'abc'[::9223372036854775807]] }}
{{ ['a\\nb' | indent(-9), 'a\\nb' | indent('> '), 'a\\n\\nb\\n' | indent(2, true), 'a\\n\\nb' | indent(2, blank=true)] }}
{{ ['\\nb' | indent(2, first=true), '' | indent(2, true), 'a\\r\\nb' | indent(2), 'a\\r\\nb\\u2028d\\n\\n'.splitlines()] }}
{{ [1, [2, {'a': none}], [], {}] | tojson(indent=-1) }}{{ [1, [2, {'a': none}]] | tojson(indent=true) }}
{{ [[1.5, 'é']] | tojson(indent=20, ensure_ascii=false) }}{{ [10000000000000000.0] | tojson(indent=none) }}
{{ ['é-x'.find('-'), 'é-x'[:'é-x'.find('-')], 'aéa'.count(''), 'éab'[::-1], 'éa'[0], 'éa'[-1], 'éab' | length] }}
{{ ['abc' | reverse, ['a', 'A', 'b'] | unique | list, "don't stop (now)" | title, "don't".title(), 'éß'.upper()] }}
{{ ['été' | upper, 'éTÉ' | capitalize, 'éa b' | title, {"a'b": 1}] }}
{{ [{'a': {'b': 1}}, {'a': {'b': 2}}] | map(attribute='a.b') | list }}
{{ [{'a': {'b': 1}}, {'a': {'b': 2}}] | selectattr('a.b', 'eq', 2) | list }}
{{ [{'a': 1}, {}] | map(attribute='a', default=9) | list }}
{{ [{'a': 1}, {'a': 2}] | join('-', attribute='a') }}{{ [['a', 'b'], ['c']] | map('join', '+') | list }}
"""

# Keys that are no text: a table by thresholds (as Seed-OSS's has one), what equals what as a key, how they print.
KEYS = """{%- set steps = {16: 8, 0: 0, 4: 2} %}{%- set ns = namespace(found=none) %}
{%- for limit, step in steps | dictsort %}
    {%- if ns.found is none and messages | length <= limit %}{% set ns.found = step %}{% endif %}
    {{- limit ~ ':' ~ step ~ ' ' }}
{%- endfor %}
{{ ns.found }} {{ [steps[16], steps[4.0], steps[false], steps.get(0), steps.get(5), steps.get('0', 'no')] }}
{{ [steps[5] is defined, steps['16'] is defined, 16 in steps, 16.0 in steps, '16' in steps, none in steps] }}
{{ steps }} {{ steps | tojson }} {{ steps | list }} {{ steps.keys() | list }} {{ (steps.items() | list | last)[0] + 1 }}
{% set mixed = {none: 'n', true: 't', 1.5: 'f', 'a': 'x', -2: 'm', 2.0: 'd', 'a': 'y', 1: 'o'} %}
{{ mixed }} {{ mixed | tojson }} {{ mixed | length }} {{ mixed[1] }} {{ mixed[2] }} {{ mixed[none] }} {{ mixed.a }}
{{ [{1: 'a'} == {1.0: 'a'}, {1: 'a'} == {'1': 'a'}, {1: {2: 3}}[1][2], {'B': 1, 'a': 2} | dictsort | map('join', '=') | list] }}
{% for d in [{true: 1, 0: 2}, {none: 1}, {}, {3: 1, -3: 2}] %}{{ d | dictsort | map('join', '=') | list }}{% endfor %}
"""

# A prompt that is written whether it is asked for or not, behind an answer between tokens: Command-R7B's.
ALWAYS_PROMPTS = """{{ bos_token }}{% if messages[0]['role']|lower == 'system' %}{% set preamble = \
messages[0]['content'] %}{% elif false == true %}{% set preamble = 'never' %}{% else %}{% set preamble = false %}\
{% endif %}{% if preamble != false %}<turn>S:{{ preamble }}<end>{% endif %}
{%- for message in messages %}
    {%- if message.role|lower == 'system' and not (loop.first and preamble) %}
<turn>S:{{ message.content }}<end>
    {%- elif message.role|lower == 'user' %}
<turn>U:{{ message.content }}<end>
    {%- elif message.role|lower == 'assistant' or message.role|lower == 'chatbot' %}
<turn>A:<say>{{ message.content }}</say><end>
    {%- elif message.role == 'tool' %}
    {%- for other in messages[loop.index0 + 1:] %}{%- if other.role != 'tool' %}{% break %}{% endif %}{% endfor %}
    {%- endif %}
{%- endfor %}<turn>A:{%- if not thinking -%}<think></think>{%- endif %}"""

TEMPLATES = [CHATML, ALTERNATING, NAMESPACED, TRIMMED, EVERYTHING, PARTS, NO_SYSTEM, DAYS, EDGES, KEYS, ALWAYS_PROMPTS]


def turn(role, content):
    return {"role": role, "content": content}


CONVERSATIONS = [
    [turn("user", "hi")],
    [turn("user", " hi \n"), turn("assistant", "  yo  ")],
    [turn("system", "Be \u00e9."), turn("user", "a"), turn("assistant", "b"), turn("user", "c\n\n"),
     turn("assistant", "<r>\nhm\n</r>\n\nd")],
    [turn("user", "a"), turn("user", "b")],
    [turn("assistant", "x")],
    [turn("user", "tool \"q\" <b>&'\\"), turn("assistant", "<r>z</r>1"), turn("user", "2")],
]

# Contents in parts, and spaces of all kinds around them; for the templates that look at that.
PART_CONVERSATIONS = [
    [turn("system", " Be brief.\n"), turn("user", "\u00a0\u3000hi\u2003\n"), turn("assistant", "\t yo \x1f")],
    [turn("system", [{"type": "text", "text": "Be brief."}]),
     turn("user", [{"type": "image"}, {"type": "text", "text": " what is it? "}, {"type": "sound"}]),
     turn("assistant", [{"type": "text", "text": "a heron"}]), turn("user", "")],
    [turn("system", "a"), turn("system", "b")],
    [turn("system", "alone")],
    [turn("user", 7)],
    [turn("user", "a"), turn("tool", "b")],
]


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, loopcontrols])
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = datetime.datetime(2024, 7, 26).strftime
    return env


def cases(templates):
    env = environment()
    for template in templates:
        parts = PART_CONVERSATIONS if "is iterable" in template else []
        for messages in CONVERSATIONS + parts if "messages" in template else CONVERSATIONS[:1]:
            for prompt in (False, True):
                values = {"messages": messages, "add_generation_prompt": prompt, "bos_token": "<s>",
                          "eos_token": "</s>", "tools": None}
                case = {"template": template, "values": values}
                try:
                    case["text"] = env.from_string(template).render(**values)
                except jinja2.exceptions.TemplateError as error:
                    case["error"] = str(error)
                yield json.dumps(case)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", type=pathlib.Path)
    args = parser.parse_args()
    if args.template:
        for line in cases([args.template.read_text(encoding="utf-8")]):
            print(line)
        return 0
    out = ROOT / "engine" / "testdata" / "chat_templates.jsonl"
    out.write_text("".join(line + "\n" for line in cases(TEMPLATES)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
