"""A real S3-speaking server for tests: moto's, in a process of its own, on a free port, gone with the test session."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

KEY, SECRET = "AKIABAGGERTEST000000", "s3cr3t/that+nobody/may+ever+see000000000"
_SERVE = """
import logging, sys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()  # until the tests are over, or dead
"""


@dataclass(frozen=True)
class Server:
    """endpoint: http://127.0.0.1:port. environment: what a process needs to use it; the bucket `team` is there."""

    endpoint: str
    environment: dict[str, str] = field(repr=False)

    def client(self):
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="eu-west-1",
        )


@contextlib.contextmanager
def server() -> Iterator[Server]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # Its log would fill a pipe that nobody reads.
    child = subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=clean,
    )
    try:
        port = child.stdout.readline().decode().strip()
        assert port, "moto's server did not start; is moto[server] installed?"
        endpoint = f"http://127.0.0.1:{port}"
        started = Server(
            endpoint,
            {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ACCESS_KEY_ID": KEY,
                "AWS_SECRET_ACCESS_KEY": SECRET,
                "AWS_DEFAULT_REGION": "eu-west-1",
                "AWS_CONFIG_FILE": "/no/aws/config",
                "AWS_SHARED_CREDENTIALS_FILE": "/no/aws/credentials",
            },
        )
        started.client().create_bucket(Bucket="team", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield started
    finally:
        child.stdin.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
