"""One JVM for all of Kafka's command-line tools: KafkaTools.java runs their
main methods one after the other, which saves a JVM's start for each call.
"""

import base64
import pathlib
import subprocess
import threading

from daemon import java, kafka_jars

TOOLS = {
    "api-versions": "org.apache.kafka.tools.BrokerApiVersionsCommand",
    "configs": "kafka.admin.ConfigCommand",
    "console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "consumer-perf-test": "org.apache.kafka.tools.ConsumerPerformance",
    "features": "org.apache.kafka.tools.FeatureCommand",
    "delete-records": "org.apache.kafka.tools.DeleteRecordsCommand",
    "dump-log": "kafka.tools.DumpLogSegments",
    "get-offsets": "org.apache.kafka.tools.GetOffsetShell",
    "log-dirs": "org.apache.kafka.tools.LogDirsCommand",
    "producer-perf-test": "org.apache.kafka.tools.ProducerPerformance",
    "topics": "org.apache.kafka.tools.TopicCommand",
    "transactions": "org.apache.kafka.tools.TransactionsCommand",
    "client": "JavaClient",
}


class ToolFailed(AssertionError):
    pass


class Jvm:
    def __init__(self, directory):
        self.directory = pathlib.Path(directory)
        here = pathlib.Path(__file__).parent
        classes = self.directory / "classes"
        subprocess.run(
            ["javac", "-nowarn", "-d", classes, "-cp", f"{kafka_jars()}/*", here / "KafkaTools.java", here / "JavaClient.java"],
            check=True,
        )
        self.log = open(self.directory / "jvm.stderr", "wb")
        self.command = java("-Xmx512m", "KafkaTools", classpath=[classes])
        self.lock = threading.Lock()
        self._start()

    def _start(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log)

    def run(self, tool, *arguments, stdin=b"", check=True, timeout_s=60):
        """Runs one tool and returns (exit code, stdout, stderr)."""
        encode = lambda data: base64.b64encode(data).decode() or "-"  # noqa: E731
        fields = [TOOLS[tool], encode(stdin), *(encode(str(a).encode()) for a in arguments)]
        with self.lock:
            if self.process.poll() is not None:
                # A tool was given up: the next is to fail or pass by itself.
                self._start()
            watchdog = threading.Timer(timeout_s, self.process.kill)
            watchdog.start()
            try:
                self.process.stdin.write((" ".join(fields) + "\n").encode())
                self.process.stdin.flush()
                answer = self.process.stdout.readline().decode().split()
            finally:
                watchdog.cancel()
            if not answer:
                self.process.wait()
        if not answer:
            raise ToolFailed(f"{tool} {arguments}: no answer within {timeout_s} s, the JVM was ended")
        code, stdout, stderr = int(answer[0]), *(
            base64.b64decode("" if field == "-" else field).decode(errors="replace") for field in answer[1:]
        )
        if check and code != 0:
            raise ToolFailed(f"{tool} {arguments}: exit code {code}\n{stdout}\n{stderr}")
        return code, stdout, stderr

    def out(self, tool, *arguments, **options):
        return self.run(tool, *arguments, **options)[1]

    def close(self):
        self.process.stdin.close()
        try:
            # It waits for a command, unless the run was interrupted in the middle of one.
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
