"""An engine on the real model that is asked the same questions in many ways, and its answers when nothing else ran."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from harness.engine import Choice, Recorder
from harness.model import model_path

from inferflux.broker.subjects import ServiceClass
from inferflux.broker.wire.requests import Message
from inferflux.config.settings import RuntimeSettings
from inferflux.workers.backends.backend import SamplingParams
from inferflux.workers.backends.opening import BackendKind, open_backend
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job
from inferflux.workers.render import Renderer

COUNT = 16


class Asked:
    """`alone` has what each question was answered with nothing cached. Every answer has COUNT tokens."""

    def __init__(
        self,
        kind: BackendKind,
        settings: RuntimeSettings,
        questions: Sequence[str],
        sampling: SamplingParams = SamplingParams(temperature=0.0),  # noqa: B008 - it is frozen
    ) -> None:
        self.settings = settings
        self.questions = questions
        self.sampling = sampling
        self.num_jobs = 0
        backend = open_backend(kind, model_path(), settings)
        self.recorder = Recorder()
        self.engine = Engine(backend, settings.scheduler, settings.paged_kv, self.recorder)
        self.engine.start()
        self.renderer = Renderer(backend.tokenizer)
        self.alone = [self.ask(number, f"alone{number}") for number in range(len(questions))]

    def job(
        self,
        number: int,
        salt: str,
        service_class: ServiceClass = ServiceClass.DEFAULT,
        resumed: tuple[int, ...] = (),
        sampling: SamplingParams | None = None,
    ) -> Job:
        self.num_jobs += 1
        message = Message(role="user", content=self.questions[number])
        return Job(
            request=f"r{self.num_jobs}",
            choice=0,
            prompt=tuple(self.renderer.chat([message])),
            max_tokens=COUNT,
            sampling=sampling or self.sampling,
            ignore_eos=True,
            salt=salt,
            service_class=service_class,
            resumed=resumed,
        )

    def ask(self, number: int, salt: str) -> Choice:
        job = self.job(number, salt)
        self.engine.submit([job])
        return self.recorder.wait(job.request)


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """What the module's `open_asked` makes of a folder."""
    asked: Asked = request.module.open_asked(tmp_path_factory.mktemp("asked"))
    yield asked
    asked.engine.close()


@pytest.fixture
def integrity(asked: Asked) -> Iterator[None]:
    """After the test, the engine's books are right, and its bounds what they were."""
    yield
    asked.engine.configure(asked.settings.scheduler)
    asked.engine.check_integrity()
