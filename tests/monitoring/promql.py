"""Just enough of PromQL to say which metrics an expression names and how it uses them."""

import re

KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right",
            "offset", "bool", "inf", "nan", "start", "end", "atan2"}
GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
IDENTIFIER = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")

# What Grafana fills in. The value stands where the variable stood, so that the expression parses.
VARIABLES = {"$__rate_interval": "1m", "$__interval": "1m", "$__range": "1h"}


def substitute(expression, variables=None):
    """The expression with its dashboard variables filled in; unknown ones match everything."""
    for name, value in {**VARIABLES, **(variables or {})}.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$\{?[a-z_]+\}?", ".+", expression)


def strip_strings(expression):
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', expression)


def metrics_of(expression):
    """Names of the series selectors in an expression, in order, without duplicates."""
    text = re.sub(r"#.*", "", strip_strings(expression))
    text = re.sub(r"\{[^{}]*\}", "{}", text)
    text = re.sub(r"\[[^\[\]]*\]", "", text)
    text = GROUPING.sub(" ", text)
    names = []
    for match in IDENTIFIER.finditer(text):
        name, rest = match.group(0), text[match.end():].lstrip()
        before = text[:match.start()]
        if before and (before[-1].isdigit() or before[-1] == "."):
            continue   # the unit of a duration, the e of a number
        if rest.startswith("(") or name.lower() in KEYWORDS:
            continue
        if name not in names:
            names.append(name)
    return names


def bare_counters(expression, counters):
    """Counters of `counters` used otherwise than inside a function over a range."""
    text = strip_strings(expression)
    bad = []
    for match in IDENTIFIER.finditer(text):
        if match.group(0) in counters:
            after = re.match(r"\s*(\{[^{}]*\})?\s*\[", text[match.end():])
            if not after:
                bad.append(match.group(0))
    return bad


def job_and_instance(expression, names):
    """True when every use of the metrics `names` asks for the job and instance variables."""
    text = GROUPING.sub(" ", expression)
    for name in names:
        uses = re.findall(rf"(?<![a-zA-Z0-9_:]){re.escape(name)}(?![a-zA-Z0-9_:])\s*(\{{[^{{}}]*\}})?", text)
        if not all("$job" in braces and "$instance" in braces for braces in uses):
            return False
    return True
