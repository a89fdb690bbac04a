import json
import logging

from tasks import logs


def test_an_event_is_one_line_of_json_without_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-key")
    record = logging.LogRecord("segment_archive", logging.INFO, "", 0, "unit %s with very-secret-key", ("a",), None)
    record.facts = {"run": "0123", "stage": "score", "where": "s3 very-secret-key"}
    text = logs.JsonLines().format(record)
    line = json.loads(text)
    assert (line["run"], line["stage"], line["event"]) == ("0123", "score", "unit a with ***")
    assert "\n" not in text and "very-secret-key" not in text


def test_other_handlers_get_it_without_credentials_too(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret-key")
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    listener = Listener()
    logs.logger.addHandler(listener)
    try:
        logs.event("failed with very-secret-key", run="r", stage="s")
    finally:
        logs.logger.removeHandler(listener)
    assert told == ["failed with ***"]
