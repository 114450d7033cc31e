"""`tristage serve`: check the address, load the models, serve until a signal."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from apps.answers.loading import load
from apps.serve.app import application
from apps.serve.service import Service
from apps.trained_run import TrainedRun
from apps.web.server import Server, is_loopback, listening_socket, url_of
from configs.errors import UserError
from configs.safe_text import keep_secret
from pipeline.processes.logs import log_to_terminal
from pipeline.processes.streams import say


def checked_key(host: str, key: str | None) -> str | None:
    """The API key, or None on loopback.

    Raises:
        UserError: other machines reach the address and there is no key, or it cannot be sent in a header.
    """
    if key is None:
        if not is_loopback(host):
            raise UserError(
                f"--host {host:.100}: other machines reach this address. Set TRISTAGE_API_KEY, the key that "
                "they must give, or serve on 127.0.0.1."
            )
        return None
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(
            "TRISTAGE_API_KEY: this is no key: it is empty, or has blanks or other characters that a header "
            "cannot hold. Set it again."
        )
    keep_secret(key)
    return key


def open_service(run: TrainedRun, policies: Sequence[str] | None) -> tuple[Service, PreTrainedTokenizerBase]:
    """The service of a run and its tokenizer. The reward model is served if the run has one.

    Raises:
        UserError: a policy is not there, is damaged, or does not fit.
    """
    loaded = load(run, policies or run.policies, score=True)
    return Service(run, loaded), loaded.tokenizer


def serve(run: TrainedRun, policies: Sequence[str] | None, host: str, port: int, key: str | None) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit status.

    Raises:
        UserError: see `checked_key`, `listening_socket` and `open_service`.
    """
    key = checked_key(host, key)
    log_to_terminal()
    with listening_socket(host, port) as listener:
        service, tokenizer = open_service(run, policies)
        server, url = Server(application(service, tokenizer, key), service.close), url_of(listener)
        served = ", ".join(service.about()["policies"])
        line = f"serving {served} at {url} (page) and {url}/v1; Ctrl-C ends"
        server.run_at(listener, lambda: say(line))
    say("stopped")
    return 0
