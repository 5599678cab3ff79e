#!/usr/bin/env python3
"""Unit tests of promql.py."""

import unittest

import promql


class Promql(unittest.TestCase):
    def test_metrics_of(self):
        for expression, names in {
            'sum by (state) (nibble_jobs{job=~"a b"})': ["nibble_jobs"],
            'time() - a_seconds > 6e2': ["a_seconds"],
            'a / on (x) group_left (y) b offset 5m': ["a", "b"],
            'histogram_quantile(0.9, sum by (le) (rate(c_bucket{x="y"}[5m])))': ["c_bucket"],
            'a unless a offset 1m or "word"': ["a"],
            'up{job="nibble"} == 0 or absent(up{job="nibble"})': ["up"],
            'queue:x:rate5m > bool 1': ["queue:x:rate5m"],
        }.items():
            self.assertEqual(promql.metrics_of(expression), names, expression)

    def test_substitute(self):
        self.assertEqual(promql.substitute('rate(a{job=~"$job", i=~"${instance}"}[$__rate_interval])'),
                         'rate(a{job=~".+", i=~".+"}[1m])')

    def test_bare_counters(self):
        counters = {"a_total"}
        self.assertEqual(promql.bare_counters('rate(a_total{x="y"}[5m])', counters), [])
        self.assertEqual(promql.bare_counters('sum(a_total{x="y"})', counters), ["a_total"])

    def test_job_and_instance(self):
        good = 'a{job=~"$job", instance=~"$instance"}'
        self.assertTrue(promql.job_and_instance(good, ["a"]))
        self.assertFalse(promql.job_and_instance(good + " + b", ["a", "b"]))
        self.assertTrue(promql.job_and_instance(f"sum by (b) ({good})", ["a"]))


if __name__ == "__main__":
    unittest.main()
