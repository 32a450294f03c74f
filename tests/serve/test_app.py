"""The API over a real connection: the same answers as in Python, a sentence for every mistake, and it goes on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from tests.serve.serving import CLASSES, Said, Served, running, serving, toy
from vitrail import __version__
from vitrail.errors import UserError
from vitrail.runtime.predictor import Predictor
from vitrail.serve import app
from vitrail.tasks.classifier import Classifier
from vitrail.tasks.prediction import Prediction


def labels(said: Said) -> dict[str, float]:
    assert said.status == 200, said.document
    return {entry["label"]: entry["probability"] for entry in said.document["labels"]}


def close_to(prediction: Prediction) -> dict[str, float]:
    """In bf16, and in other company, numbers are a little different."""
    return pytest.approx(dict(prediction.labels), abs=0.03)  # type: ignore[no-any-return]


def held(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The model says that it was given pictures, and goes on when it is told to."""
    busy, go = threading.Event(), threading.Event()
    logits = type(classifier.predictor).logits

    def slow(self: Predictor, images: Tensor) -> tuple[Tensor, Tensor]:
        busy.set()
        assert go.wait(20)
        return logits(self, images)

    monkeypatch.setattr(Predictor, "logits", slow)
    return busy, go


def test_classes_are_those_of_predict(served: Served, classifier: Classifier, photos: list[Path]) -> None:
    for path, expected in zip(photos, classifier.predict(photos, top=3), strict=True):
        found = labels(served.ask("POST", "/predict", path.read_bytes()))
        assert found == close_to(expected)
        assert list(found.values()) == sorted(found.values(), reverse=True)


def test_as_many_classes_as_asked_for(served: Served, photos: list[Path]) -> None:
    body = photos[0].read_bytes()
    (best,) = labels(served.ask("POST", "/predict?top=1", body))
    everything = labels(served.ask("POST", "/predict?top=99", body))
    assert set(everything) == set(CLASSES)
    assert next(iter(everything)) == best
    assert sum(everything.values()) == pytest.approx(1, abs=1e-4)


def test_features_are_those_of_embed(served: Served, classifier: Classifier, photos: list[Path]) -> None:
    _, expected = classifier.embed(photos[0])
    said = served.ask("POST", "/embed", photos[0].read_bytes())
    assert np.array(said.document["features"]) == pytest.approx(expected[0], abs=0.05)


def test_many_at_a_time_each_get_their_own(served: Served, classifier: Classifier, photos: list[Path]) -> None:
    expected = classifier.predict(photos, top=3)
    asked = [number % len(photos) for number in range(48)]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda one: labels(served.ask("POST", "/predict", photos[one].read_bytes())), asked))
    for number, one in zip(asked, found, strict=True):
        assert one == close_to(expected[number])


def test_what_answers(served: Served, classifier: Classifier) -> None:
    assert served.ask("GET", "/health").document == {"status": "ok"}
    assert [served.ask("HEAD", path).status for path in ("/", "/health")] == [200, 200]
    about = served.ask("GET", "/model").document
    assert about["name"] == "toy & co"
    assert about["classes"] == list(CLASSES)
    assert about["image_size"] == [32, 32]
    assert about["parameters"] == sum(tensor.numel() for tensor in classifier.model.parameters())
    assert about["features"] == 192
    assert about["runtime"] in ("eager:fp32", "eager:bf16")
    assert about["vitrail"] == __version__


def test_it_describes_itself(served: Served) -> None:
    paths = served.ask("GET", "/openapi.json").document["paths"]
    assert set(paths) == {"/predict", "/embed", "/model", "/health"}
    for path in ("/predict", "/embed"):
        assert "image/*" in paths[path]["post"]["requestBody"]["content"]
        assert {"200", "403", "408", "413", "415", "421", "422", "503"} <= set(paths[path]["post"]["responses"])


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/predict", b"", 422, "zero bytes"),
        ("/predict", b"hello", 422, "not an image"),
        ("/embed", b"\xff\xd8\xff\xe0 and no more", 422, "truncated file"),
        ("/predict?top=0", b"x", 422, "top: Input should be greater than or equal to 1."),
        ("/predict?top=all", b"x", 422, "top: "),
        ("/predicted", b"x", 404, "Not Found"),
    ],
)
def test_a_mistake_gets_a_sentence(served: Served, path: str, body: bytes, status: int, words: str) -> None:
    said = served.ask("POST", path, body)
    assert said.status == status
    assert words in said.document["detail"]


def test_half_a_picture_is_refused(served: Served, photos: list[Path]) -> None:
    body = photos[0].read_bytes()
    said = served.ask("POST", "/predict", body[: len(body) // 2])
    assert (said.status, said.document["detail"]) == (422, "The picture cannot be read: truncated file.")


def test_a_form_is_told_what_to_send(served: Served) -> None:
    said = served.ask("POST", "/predict", b"--x\r\n", Content_Type="Multipart/form-data; boundary=x")
    assert said.status == 415
    assert "curl --data-binary" in said.document["detail"]


def test_too_large_a_file_is_refused_announced_or_not(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MOST_BYTES", 2**20)

    def parts() -> Iterator[bytes]:
        yield b"x" * 2**20
        yield b"x"

    for body in (b"x" * (2**20 + 1), parts()):  # the second comes in chunks, with no length told before
        said = served.ask("POST", "/predict", body)
        assert (said.status, said.document["detail"]) == (413, "A picture's file may have 1 MiB at most.")


def test_too_large_a_file_is_refused_before_it_comes(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_too_many_pixels_are_not_decoded(served: Served, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    desk = served.app.state.desk
    monkeypatch.setattr(desk, "_read", partial(desk._read, max_pixels=1999))
    said = served.ask("POST", "/predict", photos[0].read_bytes())  # 50 x 40
    assert said.status == 422
    assert "VITRAIL_MAX_PIXELS" in said.document["detail"]


def test_a_limit_that_is_no_number_is_told_at_once(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_MAX_PIXELS", "many")
    with pytest.raises(UserError, match="VITRAIL_MAX_PIXELS"):
        app.application(classifier, "toy")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_may_not_ask(served: Served, photos: list[Path], site: str) -> None:
    assert served.ask("POST", "/predict", photos[0].read_bytes(), Sec_Fetch_Site=site).status == 403
    assert served.ask("POST", "/predict", photos[0].read_bytes(), Sec_Fetch_Site="same-origin").status == 200
    assert served.ask("GET", "/", Sec_Fetch_Site=site).status == 200  # a link


def test_a_name_that_others_gave_this_machine_is_refused(photos: list[Path]) -> None:
    with serving(toy(), hosts=("127.0.0.1", "::1", "model.example")) as served:
        for host in ("127.0.0.1", "127.0.0.1:80", "[::1]:8000", "MODEL.example:443"):
            assert served.ask("GET", "/model", Host=host).status == 200, host
        for host in ("evil.example", "127.0.0.1.evil.example", "[::1", ""):
            said = served.ask("GET", "/model", Host=host)
            assert said.status in (400, 421), host
        assert served.ask("POST", "/predict", photos[0].read_bytes(), Host="evil.example").status == 421


def test_names_may_be_said_as_they_stand_in_an_address() -> None:
    hosts = ("Photos.Example", "HTTPS://model.example:8443/", " model.example:80", "::1", "[::1]:80", "0:0:0:0:0:0:0:1")
    assert app.host_names(hosts) == ("photos.example", "model.example", "::1")
    with serving(toy(), hosts=hosts) as served:
        for host in ("photos.example", "Photos.Example:8000", "model.example", "[::1]:8000"):
            assert served.ask("GET", "/model", Host=host).status == 200, host
        said = served.ask("GET", "/model", Host="evil.example")
        assert said.status == 421
        assert "photos.example or model.example or ::1 " in said.document["detail"]


@pytest.mark.parametrize("host", ["", " ", ":8000", "https://", "https://:8000", "[::1"])
def test_a_name_that_is_none_is_refused(host: str, classifier: Classifier) -> None:
    with pytest.raises(UserError, match=r"is no name that a server can be asked by: say one such as photos\.example\."):
        app.application(classifier, "toy", hosts=(host,))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_batches_of_nothing_are_refused(batch_size: int, classifier: Classifier) -> None:
    with pytest.raises(UserError, match=f"cannot be given {batch_size} pictures at once: say 1 or more"):
        app.application(classifier, "toy", batch_size)


def test_what_was_taken_in_is_answered_before_it_ends(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = toy()
    busy, go = held(classifier, monkeypatch)
    with serving(classifier) as served, ThreadPoolExecutor(1) as pool:
        taken = pool.submit(served.ask, "POST", "/predict", photos[0].read_bytes())
        assert busy.wait(20)
        served.server.should_exit = True
        go.set()
        assert labels(taken.result())


def test_an_application_may_be_served_again(photos: list[Path]) -> None:
    made = app.application(toy(), "toy")
    for _ in range(2):
        with running(made) as served:
            assert labels(served.ask("POST", "/predict", photos[0].read_bytes()))


def test_a_picture_that_does_not_arrive_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "SECONDS", 0.05)
    with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_whoever_hangs_up_leaves_the_others_alone(served: Served, photos: list[Path]) -> None:
    for _ in range(app.MOST_WAITING + 1):  # if a place were lost each time, there would be none
        with socket.create_connection(("127.0.0.1", served.port), timeout=60) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
    while (said := served.ask("POST", "/predict", photos[0].read_bytes())).status == 503:
        pass  # it has yet to notice the last of them
    assert labels(said)


def test_too_many_are_asked_to_come_again(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MOST_WAITING", 1)
    classifier = toy()
    busy, go = held(classifier, monkeypatch)
    body = photos[0].read_bytes()
    with serving(classifier) as served, ThreadPoolExecutor(1) as pool:
        try:
            taken = pool.submit(served.ask, "POST", "/predict", body)
            assert busy.wait(20)
            said = served.ask("POST", "/predict", body)
            assert (said.status, said.headers["retry-after"]) == (503, "1")
            assert "come again" in said.document["detail"]
            assert served.ask("GET", "/health").status == 200
        finally:
            go.set()
        assert labels(taken.result())
        assert labels(served.ask("POST", "/predict", body))


def test_a_model_that_fails_once_goes_on(photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = toy()
    logits, calls = type(classifier.predictor).logits, iter(range(9))

    def once(self: object, images: Tensor) -> tuple[Tensor, Tensor]:
        if next(calls) == 0:
            raise RuntimeError("out of luck")
        return logits(classifier.predictor, images)

    monkeypatch.setattr(type(classifier.predictor), "logits", once)
    with serving(classifier) as served:
        body = photos[0].read_bytes()
        said = served.ask("POST", "/predict", body)
        assert said.status == 500
        assert "log" in said.document["detail"]
        assert labels(served.ask("POST", "/predict", body))


def test_without_a_classifier_there_are_features(photos: list[Path]) -> None:
    with serving(toy(classes=())) as served:
        body = photos[0].read_bytes()
        said = served.ask("POST", "/predict", body)
        assert said.status == 404
        assert "no classifier" in said.document["detail"]
        assert len(served.ask("POST", "/embed", body).document["features"]) == 192
        assert "no classifier" in served.ask("GET", "/").document
