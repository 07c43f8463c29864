"""Runs kcat (librdkafka 2.0 on Debian 12)."""

import json
import subprocess


class Kcat:
    def __init__(self, bootstrap):
        self.bootstrap = bootstrap

    def command(self, *arguments):
        return ["kcat", "-b", self.bootstrap, *map(str, arguments)]

    def run(self, *arguments, stdin=b"", check=True, timeout_s=60):
        result = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, timeout=timeout_s, check=False
        )
        assert not check or result.returncode == 0, f"{result.args}: {result.stderr.decode(errors='replace')}"
        return result

    def produce(self, topic, data, *arguments, **options):
        return self.run("-P", "-t", topic, *arguments, stdin=data, **options)

    def consume(self, topic, *arguments, **options):
        """What -C prints up to the end of every partition."""
        return self.run("-C", "-q", "-e", "-t", topic, *arguments, **options).stdout

    def metadata(self, *arguments):
        return json.loads(self.run("-L", "-J", *arguments).stdout)

    def query(self, topic, partition, timestamp):
        """The offset that -Q finds for a time in ms, or -1 earliest… as kcat has it."""
        line = self.run("-Q", "-t", f"{topic}:{partition}:{timestamp}").stdout.decode()
        return int(line.rsplit("offset", 1)[1])

    def start(self, *arguments):
        """kcat in the background; the caller ends it."""
        return subprocess.Popen(
            self.command(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
