"""moh serve over real sockets: what a client of OpenAI's API sends and gets, and what the users of other servers filed bugs
about. The model is random, made here; what a reply must be comes from the same server asked otherwise, from `moh generate`, or
from the protocol."""

import concurrent.futures
import html
import http.client
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

from tool import MOH, run

FOLDER = tempfile.TemporaryDirectory()
MODEL = pathlib.Path(FOLDER.name, "model")
KEY = "secret-key"
CONTEXT = 256


def make_model():
    """A tiny MoH model over bytes whose greedy texts do not stand still."""
    text = pathlib.Path(FOLDER.name, "text.txt")
    text.write_text("".join(f"the {a} sees a {b}. " for a in ("cat", "dog", "owl") for b in ("tree", "bird", "fish")) * 40)
    run("train", "--preset", "moh-llm-tiny", "--data", text, "--out", MODEL, "--steps", "2", "--batch", "2", "--sequence", "32",
        "--model.max_position_embeddings", CONTEXT, "--model.hidden_size", "64", "--model.intermediate_size", "128",
        "--model.num_hidden_layers", "2", "--model.num_attention_heads", "8", "--model.num_key_value_heads", "4",
        "--model.head_dim", "8", "--model.initializer_range", "0.2", "--threads", "1")


class Server:
    def __init__(self, *options):
        self.process = subprocess.Popen([MOH, "serve", str(MODEL), "--port", "0", "--json", "--threads", "1", *options],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        self.port = int(json.loads(line)["listening"].rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=30) == 0, self.process.stderr.read()

    def ask(self, method, path, body=None, key=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = body if isinstance(body, (bytes, str, type(None))) else json.dumps(body)
        headers = dict(headers or {})
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def post(self, path, status=200, **body):
        got, text = self.ask("POST", path, body)
        assert got == status, (got, text)
        return json.loads(text)

    def complete(self, **body):
        return self.post("/v1/completions", **body)

    def stream(self, path="/v1/completions", **body):
        """The chunks of a stream, checked: every event is JSON, the last is [DONE]."""
        _, text = self.ask("POST", path, {**body, "stream": True})
        events = [event for event in text.split("\n\n") if event]
        assert all(event.startswith("data: ") for event in events) and events[-1] == "data: [DONE]", text
        return [json.loads(event[6:]) for event in events[:-1]]

    def metrics(self):
        return {name: int(value) for name, value in re.findall(r"^moh_(\w+) (\d+)$", self.ask("GET", "/metrics")[1], re.M)}

    def settle(self):
        """Waits until nothing runs; the pages must all be free then."""
        for _ in range(200):
            state = self.metrics()
            if state["requests_running"] + state["requests_waiting"] == 0:
                break
            time.sleep(0.05)
        assert state["requests_running"] == state["requests_waiting"] == state["cache_pages_used"] == 0, state
        return state


def error_of(text):
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"], text
    assert "terminate" not in error["message"] and ".cpp" not in error["message"] and "[" not in error["message"][:1], text
    return error["message"]


def test_completions(server):
    reply = server.complete(prompt="the cat", max_tokens=20, temperature=0)
    assert reply["object"] == "text_completion" and reply["model"] == "model", reply
    assert reply["usage"] == {"prompt_tokens": len(reply_ids(server, "the cat")), "completion_tokens": 20,
                              "total_tokens": 20 + len(reply_ids(server, "the cat"))}, reply
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "length" and choice["index"] == 0 and choice["logprobs"] is None
    ids = reply_ids(server, "the cat")
    same = [server.complete(prompt=prompt, max_tokens=20, temperature=0)["choices"] for prompt in ("the cat", ids, [ids, "the cat"])]
    assert all(c["text"] == choice["text"] for choices in same for c in choices), same
    assert [c["index"] for c in same[2]] == [0, 1]
    # Seeds: the same text for the same seed, other texts for other samples.
    sampled = [server.complete(prompt="the cat", max_tokens=20, temperature=1, seed=5, n=3)["choices"] for _ in range(2)]
    assert sampled[0] == sampled[1] and len({c["text"] for c in sampled[0]}) == 3, sampled


def reply_ids(server, text):
    return server.post("/tokenize", prompt=text)["tokens"]


def test_echo_and_logprobs(server):
    """Echo log-probs do not depend on the prefix cache or on what came before; echo, stream and logprobs go together."""
    prompt = "the owl sees a fish. the dog sees a tree. the cat sees a bird. the owl sees a tree."
    body = dict(prompt=prompt, max_tokens=5, temperature=0, echo=True, logprobs=2)
    first = server.complete(**body)["choices"][0]
    server.complete(prompt=prompt + " the", max_tokens=3, temperature=0)
    assert server.complete(**body)["choices"][0] == first
    logprobs, ids = first["logprobs"], reply_ids(server, prompt)
    assert len(logprobs["tokens"]) == len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(ids) + 5
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    for value, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:]):
        assert value <= max(top.values()) and 2 <= len(top) <= 3 and value in top.values()
    assert first["text"].startswith(prompt) and logprobs["text_offset"][-1] <= len(first["text"])
    chunks = server.stream(**body)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == first["text"]
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    for key in logprobs:
        assert sum((part[key] for part in parts), []) == logprobs[key], key
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[-1] == "length" and not any(reasons[:-1])
    # Of nothing but the prompt: what an evaluation asks.
    none = server.complete(prompt=prompt, max_tokens=0, echo=True, logprobs=1)["choices"][0]
    assert none["logprobs"]["token_logprobs"] == logprobs["token_logprobs"][:len(ids)]


def test_stop_strings(server):
    free = server.complete(prompt="the", max_tokens=40, temperature=0)["choices"][0]["text"]
    stop = free[10:14]
    expected = free[:free.index(stop)]
    body = dict(prompt="the", max_tokens=40, temperature=0, stop=[stop, "never to be seen"])
    whole = server.complete(**body)["choices"][0]
    assert whole["text"] == expected and whole["finish_reason"] == "stop", (whole, free)
    shown = ""
    for chunk in server.stream(**body):
        shown += chunk["choices"][0]["text"]
        assert expected.startswith(shown), (shown, expected)
    assert shown == expected


def test_characters_are_whole(server):
    """Tokens are bytes, so that most cut a character: none leaves the server cut, and no reply fails for it."""
    for seed in range(6):
        body = dict(prompt="ä€😀", max_tokens=60, temperature=3, seed=seed)
        whole = server.complete(**body)["choices"][0]["text"]
        chunks = server.stream(**body)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole


def test_too_long(server):
    prompt = "x" * 1000
    status, text = server.ask("POST", "/v1/completions", {"prompt": prompt})
    count = len(reply_ids(server, prompt))
    assert status == 400 and str(count) in error_of(text) and str(CONTEXT) in error_of(text), text
    reply = server.complete(prompt="x" * 200, max_tokens=5000, temperature=0, ignore_eos=True)
    assert reply["usage"]["total_tokens"] == CONTEXT and reply["choices"][0]["finish_reason"] == "length", reply


def test_refusals(server):
    cases = [({}, "prompt"), ({"prompt": []}, "prompt"), ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
             ({"prompt": "a", "temperature": "hot"}, "temperature"), ({"prompt": "a", "temperature": 1e9}, "temperature"),
             ({"prompt": "a", "top_p": 0}, "top_p"), ({"prompt": "a", "n": 10**30}, "n"), ({"prompt": "a", "n": 1.5}, "n"),
             ({"prompt": "a", "stop": [""]}, "stop"), ({"prompt": "a", "logprobs": 1000}, "logprobs"),
             ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"), ({"prompt": "a", "activated": 0}, "activated"),
             ({"prompt": [1, "a"]}, "prompt"), ({"prompt": [10**9]}, "prompt"), ({"prompt": "a", "suffix": "b"}, "suffix"),
             ({"prompt": "a", "max_token": 3}, "max_tokens"), ({"prompt": "a", "stream": 1}, "stream"),
             ({"prompt": "a", "max\ntoken": 3}, "`max\\ntoken`, did you mean `max_tokens`")]
    for body, word in cases:
        status, text = server.ask("POST", "/v1/completions", body)
        assert status == 400 and word in error_of(text), (body, status, text)
    for body in (b"", b"{", b"[]", b"\xff\xfe", b"[" * 5000, b'{"prompt": "a", "prompt": "b"}'):
        status, text = server.ask("POST", "/v1/completions", body)
        assert status == 400 and error_of(text), (body[:20], status, text)
    assert server.ask("GET", "/v1/completions")[0] == 405 and server.ask("GET", "/nothing")[0] == 404
    # A model without a template says so.
    status, text = server.ask("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]})
    assert status == 400 and "chat template" in error_of(text), text


def test_limits_of_http(server):
    def raw(data, wait=5):
        with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as connection:
            connection.sendall(data)
            got = b""
            while True:
                try:
                    part = connection.recv(65536)
                except socket.timeout:
                    return got
                if not part:
                    return got
                got += part
    assert b" 431 " in raw(b"GET / HTTP/1.1\r\nX: " + b"a" * 40000 + b"\r\n\r\n").split(b"\r\n")[0]
    assert b" 413 " in raw(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n").split(b"\r\n")[0]
    assert b" 400 " in raw(b"nonsense\r\n\r\n").split(b"\r\n")[0]
    assert server.ask("GET", "/health")[0] == 200


def test_clients_that_hang_up(server):
    server.settle()
    for stream in (True, False):
        connection = socket.create_connection(("127.0.0.1", server.port))
        body = json.dumps({"prompt": "the", "max_tokens": 200, "stream": stream, "ignore_eos": True, "n": 8}).encode()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        if stream:
            connection.recv(1000)
        connection.close()
    server.settle()


def test_many_at_once(server):
    """Every reply equals that of the request alone, whatever else is served; some clients leave."""
    random.seed(3)
    beginning = "the cat sees a tree. " * 5
    wanted = []
    for i in range(48):
        body = dict(prompt=(beginning if i % 3 == 0 else "") + "the dog"[: random.randint(1, 7)], max_tokens=random.randint(1, 30),
                    temperature=random.choice([0, 0.9]), seed=i, logprobs=1)
        if i % 4 == 0:
            body["activated"] = 0.5
        wanted.append(body)
    alone = [server.complete(**body)["choices"] for body in wanted]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        leaving = threading.Thread(target=test_clients_that_hang_up_quickly, args=(server,))
        leaving.start()
        together = list(pool.map(lambda body: server.complete(**body)["choices"], wanted))
        leaving.join()
    assert together == alone
    server.settle()


def test_clients_that_hang_up_quickly(server):
    for _ in range(8):
        connection = socket.create_connection(("127.0.0.1", server.port))
        body = json.dumps({"prompt": "the", "max_tokens": 100, "stream": True}).encode()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        time.sleep(0.01)
        connection.close()


def test_the_rest(server):
    listed = json.loads(server.ask("GET", "/v1/models")[1])
    assert listed["object"] == "list" and listed["data"][0]["id"] == "model" and listed["data"][0]["max_model_len"] == CONTEXT
    text = "the cat"
    ids = server.post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    assert server.post("/detokenize", tokens=ids)["prompt"] == text
    assert server.ask("GET", "/tokenizer_info")[0] == 200
    usage = server.stream(prompt="a", max_tokens=3, stream_options={"include_usage": True})[-1]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3, usage


def test_head_usage(server):
    ask = dict(prompt="the cat", max_tokens=6, temperature=0, ignore_eos=True, head_usage=True)
    choice = server.complete(**ask)["choices"][0]
    usage = choice["head_usage"]
    # 8 heads, a share of 75 %: six for every token in each of two layers, whichever these are.
    assert [[line.count("1") for line in token] for token in usage] == [[6, 6]] * 6 and {len(l) for t in usage for l in t} == {8}, usage
    assert len({line for token in usage for line in token}) > 1, "every token used the same heads"
    chunks = [chunk["choices"][0] for chunk in server.stream(**ask)]
    assert [u for chunk in chunks for u in chunk.get("head_usage", [])] == usage
    assert "".join(chunk["text"] for chunk in chunks) == choice["text"]
    half = server.complete(**ask, activated=0.5)["choices"][0]["head_usage"]
    assert all(line.count("1") == 4 for token in half for line in token), half
    assert "head_usage" not in server.complete(prompt="the cat", max_tokens=2)["choices"][0]
    moh = json.loads(server.ask("GET", "/v1/models")[1])["data"][0]["moh"]
    assert moh == {"layers": 2, "heads": 8, "activated": 0.75, "chat": False}, moh


def test_page(server):
    """The page in a headless browser: it asks, shows the reply token by token, and lights the heads of the last token."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    status, page = server.ask("GET", "/")
    assert status == 200 and page.startswith("<!doctype html>") and "http://" not in page and "https://" not in page
    if browser is None:
        return print("serve: the page was not opened: no Chromium here")
    expected = server.complete(prompt="the cat", max_tokens=12, temperature=0, head_usage=True)["choices"][0]
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--virtual-time-budget=20000",
                               "--dump-dom", f"http://127.0.0.1:{server.port}/?q=the+cat&tokens=12"], capture_output=True, text=True, timeout=120)
    dom = done.stdout
    assert 'data-replies="1"' in dom, dom[-2000:] + done.stderr[-500:]
    shown = html.unescape("".join(re.findall(r'<span class="token">(.*?)</span>', dom, re.S)))
    assert shown == expected["text"].replace("\r", "\n"), (shown, expected["text"])  # as HTML has it
    grid = re.search(r'<div id="grid".*?</div>', dom, re.S)[0]
    lit = ["1" if name == "on" else "0" for name in re.findall(r'<i class="(on|)"></i>', grid)]
    assert "".join(lit) == "".join(expected["head_usage"][-1]), (lit, expected["head_usage"][-1])
    assert "tokens/s" in dom and "75 % of the heads" in dom


def main():
    make_model()
    with Server("--cache-gib", "0.001") as server:
        for name, test in list(globals().items()):
            if name.startswith("test_") and name != "test_clients_that_hang_up_quickly":
                test(server)
        server.settle()
    with Server("--api-key", KEY, "--max-sequences", "1", "--max-waiting", "2") as server:
        assert server.ask("GET", "/health")[0] == 200
        for key in (None, "wrong", KEY + "x"):
            assert server.ask("GET", "/v1/models", key=key)[0] == 401
        assert server.ask("GET", "/v1/models", key=KEY)[0] == 200
        # Ten times as much as there is room for: some are told 429, the others are answered, and it recovers.
        def ask(_):
            return server.ask("POST", "/v1/completions", {"prompt": "the", "max_tokens": 40, "ignore_eos": True}, key=KEY)[0]
        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            statuses = list(pool.map(ask, range(30)))
        assert set(statuses) == {200, 429}, statuses
        assert ask(0) == 200
        # SIGTERM: what is being answered is answered.
        result = []
        asking = threading.Thread(target=lambda: result.append(ask(0)))
        asking.start()
        time.sleep(0.1)
    asking.join()
    assert result == [200], result
    print("serve: all passed")


if __name__ == "__main__":
    main()
