"""The judge, against a real HTTP server on this machine; and ratings in replies."""

from __future__ import annotations

import importlib.util
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gfn_runner.errors import UserError
from gfn_runner.metrics.judge import FIELDS, Judge, JudgeSettings, rating_in, read_prompt

needs_openai = pytest.mark.skipif(
    importlib.util.find_spec("openai") is None, reason="an optional package"
)
KEY = "evaluation.judge"
STORY = dict.fromkeys(FIELDS, "") | {
    "beginning": "It rained.",
    "middle": "Tom {took} an umbrella.",
    "ending": "He was dry.",
}


class Endpoint:
    """Answers with what is in ``script``, in turn, the last one again and again.

    A string is a reply, a number a status; bytes are sent as they are, and ``None`` is not answered.
    """

    def __init__(self):
        self.script: list = ["Rating: 3"]
        self.requests: list[tuple[str, str | None, dict]] = []
        self.over = threading.Event()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append((self.path, self.headers["Authorization"], body))
                now = endpoint.script.pop(0) if len(endpoint.script) > 1 else endpoint.script[0]
                if now is None:
                    endpoint.over.wait(10)
                    return
                status = now if isinstance(now, int) else 200
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(now if isinstance(now, bytes) else as_completion(now))

            def log_message(self, *args):
                """Each request would be a line on stderr."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.over.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def as_completion(reply: str | int) -> bytes:
    if isinstance(reply, int):
        return json.dumps({"error": {"message": "no: secret-key"}}).encode()
    message = {"role": "assistant", "content": reply}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    values = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    return json.dumps(values | {"choices": [choice]}).encode()


@pytest.fixture
def endpoint(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = Endpoint()
    yield server
    server.close()


def judge(endpoint, **options):
    values = {"prompt_file": "story_middle.txt", "retries": 0, "timeout": 5.0} | options
    return Judge(JudgeSettings(base_url=endpoint.url, model="big-judge", **values))


@needs_openai
def test_what_the_endpoint_is_asked(endpoint, monkeypatch):
    monkeypatch.setenv("MY_JUDGE", "secret-key")
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-house")
    verdict = judge(endpoint, api_key_env="MY_JUDGE").rate([STORY])
    assert verdict.metrics() == {"judge_rating": 3, "judge_rated": 1, "judge_failures": 0}
    judge(endpoint, temperature=None).rate([STORY])
    (path, authorization, body), (_, of_unnamed, without_temperature) = endpoint.requests
    assert (path, authorization) == ("/v1/chat/completions", "Bearer secret-key")
    assert (body["model"], body["temperature"]) == ("big-judge", 0)
    (message,) = body["messages"]
    assert message["role"] == "user"
    assert all(text in message["content"] for text in STORY.values())
    assert "{" not in message["content"].replace("{took}", "")
    # No other key is sent than the one that is named.
    assert "of-another-house" not in of_unnamed and "temperature" not in without_temperature


@needs_openai
def test_failures_are_counted_and_never_rated(endpoint):
    endpoint.script = ["Good.\nRating: 5", "It is nice.", 400, b"{}", b"not json", "", "Rating: 2"]
    verdict = judge(endpoint, give_up_after=9).rate([STORY] * 7)
    assert verdict.ratings == (5, None, None, None, None, None, 2)
    assert verdict.metrics() == {"judge_rating": 3.5, "judge_rated": 2, "judge_failures": 5}
    assert sum(verdict.failures.values()) == 5
    assert verdict.failures["no clear rating from 1 to 5 in the reply"] == 2
    assert verdict.failures["the endpoint answered with status 400"] == 1
    assert not any("secret-key" in reason for reason in verdict.failures)


@needs_openai
def test_what_may_pass_is_tried_again(endpoint):
    for retries, rating in ((1, 4), (0, None)):
        endpoint.script = [503, "Rating: 4"]
        assert judge(endpoint, retries=retries).rate([STORY]).ratings == (rating,)


@needs_openai
def test_an_endpoint_that_does_not_answer_is_given_up(endpoint):
    endpoint.script = [None]
    verdict = judge(endpoint, timeout=0.2, give_up_after=2).rate([STORY] * 6)
    assert len(endpoint.requests) == 2
    assert verdict.ratings == (None,) * 6
    assert verdict.failures == {
        "the request failed: APITimeoutError": 2,
        "not asked after 2 failed requests": 4,
    }


@needs_openai
def test_giving_up_needs_failures_in_a_row(endpoint):
    endpoint.script = [400, "Rating: 1", 400, "Hm.", 400, "Rating: 3"]
    verdict = judge(endpoint, give_up_after=2).rate([STORY] * 6)
    assert verdict.ratings == (None, 1, None, None, None, 3)


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Rating: 4", 4),
        ("It follows well. Rating: 4.", 4),
        ("Two of 3 parts fit.\n\n**Rating:** **4**", 4),
        ("rating: 4.5/5", 4.5),
        ("Rating:\n2", 2),
        ("Rating: 2\nOn reflection:\nRating: 5", 5),
        ("4", 4),
        ("**4/5**", 4),
    ],
)
def test_the_rating_in_a_reply(reply, rating):
    assert rating_in(reply) == rating


UNCLEAR = [
    "", "Rating: 0", "Rating: 6", "Rating: 8/10", "Rating: 3-4", "Rating: 3 or 4", "Rating: 4,5",
    "Rating: four", "Rating: 1e0", "Rating: 5 (GPT-4 wrote better)", "Narrating 3 events.",
    "On a scale from 1 to 5, my rating is 3.", "1. It follows. 2. It is fluent.",
    "I am GPT-4 and give no ratings.",
]  # fmt: skip


@pytest.mark.parametrize("reply", UNCLEAR)
def test_replies_without_a_clear_rating(reply):
    assert rating_in(reply) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Rate it.", "no placeholder"),
        ("Rate {sample", "expected '}'"),
        ("Rate {story}", "placeholder {story}"),
        ("Rate {}", "placeholder {}"),
        ("Rate {sample.__class__}", "placeholder"),
    ],
)
def test_prompts_that_cannot_be_filled(written, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_prompt(written("prompt.txt", text))
    (problem,) = caught.value.problems
    assert problem.where == f"{KEY}.prompt_file" and "{sample}" in problem.allowed


@needs_openai
def test_impossible_settings_are_said_all_at_once(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    options = JudgeSettings(
        base_url="localhost:8000", model="m", api_key_env="NO_SUCH_KEY", prompt_file="nowhere.txt"
    )
    problems = list(options.problems())
    keys = ("base_url", "api_key_env", "prompt_file")
    assert [problem.where for problem in problems] == [f"{KEY}.{key}" for key in keys]
    assert "continuation.txt, story_middle.txt" in problems[-1].allowed


def test_a_key_in_place_of_its_name_is_refused_and_not_shown():
    options = JudgeSettings(base_url="http://x/v1", model="m", api_key_env="sk-verysecret")
    (problem,) = [p for p in options.problems() if p.where == f"{KEY}.api_key_env"]
    assert "verysecret" not in str(problem)


def test_without_the_package_there_is_no_judge(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = JudgeSettings(base_url="http://x/v1", model="m").problems()
    assert problem.fix == "pip install 'gfn-runner[judge]'"
