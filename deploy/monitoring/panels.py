"""The pieces dashboards are made of.

Every query goes through `metric`, so that it carries the job and instance variables; a Panel cannot be
made without a title, a description and a unit.
"""

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
GREEN, YELLOW, RED, BLUE = "green", "#EAB839", "red", "blue"


def metric(name, *labels):
    """A selector, e.g. metric("nibble_jobs", 'state="QUEUED"')."""
    return name + "{" + ", ".join(('job=~"$job"', 'instance=~"$instance"') + labels) + "}"


def rate(name, *labels):
    return f"rate({metric(name, *labels)}[$__rate_interval])"


def quantile(q, name, by, *labels):
    by = ", ".join(("le",) + by)
    return f"histogram_quantile({q}, sum by ({by}) ({rate(name + '_bucket', *labels)}))"


class Panel:
    """One panel; `queries` are (expression, legend) pairs."""

    def __init__(self, kind, title, description, unit, queries, width=8, height=8, **options):
        self.kind, self.title, self.description, self.unit = kind, title, description, unit
        self.queries, self.width, self.height, self.options = queries, width, height, options

    def json(self, number, x, y):
        options = self.options
        custom, defaults = {}, {"unit": self.unit}
        if self.kind == "timeseries":
            custom = {"lineWidth": 2, "fillOpacity": 10, "showPoints": "never",
                      "stacking": {"mode": "normal" if options.get("stack") else "none"}}
            if options.get("log"):
                custom["scaleDistribution"] = {"type": "log", "base": 10}
        if custom:
            defaults["custom"] = custom
        for key in ("min", "max", "decimals"):
            if key in options:
                defaults[key] = options[key]
        if "steps" in options:
            defaults["thresholds"] = {"mode": "absolute", "steps": [
                {"color": color, "value": value} for value, color in options["steps"]]}
        panel = {
            "id": number, "type": self.kind, "title": self.title, "description": self.description,
            "datasource": DATASOURCE, "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": defaults, "overrides": options.get("overrides", [])},
            "options": self.view_options(),
            "targets": [self.target(i, *query) for i, query in enumerate(self.queries)],
        }
        if "transformations" in options:
            panel["transformations"] = options["transformations"]
        return panel

    def view_options(self):
        if self.kind == "timeseries":
            return {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                    "tooltip": {"mode": "multi", "sort": "desc"}}
        if self.kind == "stat":
            return {"colorMode": "value", "graphMode": "area", "textMode": "auto",
                    "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        if self.kind == "gauge":
            return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
        if self.kind == "heatmap":
            return {"calculate": False, "yAxis": {"unit": self.unit}, "color": {"scheme": "Blues"}}
        return {"showHeader": True}

    def target(self, number, expression, legend):
        shape = {"table": "table", "heatmap": "heatmap"}.get(self.kind, "time_series")
        return {"refId": chr(ord("A") + number), "datasource": DATASOURCE, "expr": expression,
                "legendFormat": legend, "format": shape, "instant": self.kind == "table",
                "range": self.kind != "table"}


def query_variable(name, label, query, multi=True):
    return {"name": name, "label": label, "type": "query", "datasource": DATASOURCE, "query": query,
            "definition": query, "refresh": 2, "sort": 1, "multi": multi, "includeAll": multi,
            "allValue": ".+" if multi else None,
            "current": {"text": "All", "value": "$__all"} if multi else {}}


def dashboard(uid, title, description, items, variables=(), annotations=()):
    panels, x, y, height, number = [], 0, 0, 0, 0
    for item in items:
        number += 1
        if isinstance(item, str):
            y, x, height = y + height, 0, 0
            panels.append({"id": number, "type": "row", "title": item, "collapsed": False, "panels": [],
                           "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
            y += 1
            continue
        if x + item.width > WIDTH:
            y, x, height = y + height, 0, 0
        panels.append(item.json(number, x, y))
        x, height = x + item.width, max(height, item.height)
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
              "current": {"text": "Prometheus", "value": "nibble-prometheus"}}
    listed = [source,
              query_variable("job", "Scrape job", "label_values(nibble_build_info, job)"),
              query_variable("instance", "Instance",
                             'label_values(nibble_build_info{job=~"$job"}, instance)')]
    links = [] if uid == "nibble-overview" else [
        {"type": "link", "title": "Overview", "url": "/d/nibble-overview", "icon": "dashboard",
         "keepTime": True, "includeVars": True, "targetBlank": False, "asDropdown": False, "tags": [],
         "tooltip": ""}]
    return {
        "uid": uid, "title": title, "description": description, "tags": ["nibble"], "editable": False,
        "schemaVersion": 39, "version": 1, "timezone": "browser", "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"}, "graphTooltip": 1, "links": links,
        "templating": {"list": listed + list(variables)},
        "annotations": {"list": list(annotations)}, "panels": panels,
    }


def annotation(name, color, expression, text):
    return {"name": name, "enable": True, "iconColor": color, "datasource": DATASOURCE,
            "expr": expression, "step": "15s", "titleFormat": name, "textFormat": text, "tagKeys": ""}
