"""What the service counts, in the text that Prometheus reads (its exposition format, version 0.0.4)."""

import bisect
import os
import threading
from collections import defaultdict

from reid import machine

TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Name: kind, what it is, and the upper edges of a histogram.
FAMILIES = {
    'reid_requests_total': ('counter', 'Requests that were answered.', None),
    'reid_request_seconds': ('histogram', 'From the head of a request to that of its answer.', TIMES),
    'reid_batch_size': ('histogram', 'What was done together: describe, add, search.', SIZES),
    'reid_requests_inside': ('gauge', 'Requests that were let in and are not answered yet.', None),
    'reid_queue_length': ('gauge', 'Pictures, entries and queries that wait to be worked on.', None),
    'reid_entries': ('gauge', 'Entries of the index.', None),
    'process_resident_memory_bytes': ('gauge', 'Memory that the process holds.', None),
    'process_cpu_seconds_total': ('counter', 'Time of processors that it took.', None),
}


class Metrics:
    def __init__(self):
        self.lock = threading.Lock()
        self.values = defaultdict(float)  # (name, labels): what was counted
        self.now = {}  # the same: gauges that others set
        self.histograms = {}  # (name, labels): [how many in each bin, the last one without an edge], and their sum

    def count(self, name, **labels):
        with self.lock:
            self.values[name, tuple(labels.items())] += 1

    def observe(self, name, value, **labels):
        edges = FAMILIES[name][2]
        with self.lock:
            counts, total = self.histograms.get((name, tuple(labels.items())), ([0] * (len(edges) + 1), 0))
            counts[bisect.bisect_left(edges, value)] += 1
            self.histograms[name, tuple(labels.items())] = counts, total + value

    def text(self, gauges):
        """gauges: {(name, labels): value}, of this moment. -> all of it."""
        with self.lock:
            values = {**self.values, **self.now, **gauges, **process()}
            histograms = {key: ([*counts], total) for key, (counts, total) in self.histograms.items()}
        lines = []
        for name, (kind, about, edges) in FAMILIES.items():
            lines += [f'# HELP {name} {about}', f'# TYPE {name} {kind}']
            lines += [line(*key, value) for key, value in sorted(values.items()) if key[0] == name]
            for (_, labels), (counts, total) in sorted(item for item in histograms.items() if item[0][0] == name):
                for i, edge in enumerate([*edges, '+Inf'], 1):
                    lines.append(line(f'{name}_bucket', (*labels, ('le', edge)), sum(counts[:i])))
                lines += [line(f'{name}_sum', labels, total), line(f'{name}_count', labels, sum(counts))]
        return '\n'.join(lines) + '\n'


def line(name, labels, value):
    inside = ','.join(f'{key}="{escaped(text)}"' for key, text in labels)
    return f'{name}{{{inside}}} {value:.12g}' if labels else f'{name} {value:.12g}'


def escaped(text):
    return str(text).replace('\\', r'\\').replace('"', r'\"').replace('\n', r'\n')


def process():
    """Of this process."""
    values = {('process_cpu_seconds_total', ()): sum(os.times()[:2])}
    if (held := machine.held()) is not None:
        values['process_resident_memory_bytes', ()] = held
    return values
