"""What `jattn weights` tells: every known model, where its files were found, and how they are got otherwise."""

from jattn.pretrained.files import find
from jattn.pretrained.known import MODELS, KnownModel


def list_models() -> list[dict[str, str]]:
    """A row for each known model: what it is, its size, its licence, and where its files are; those are checked."""
    return [
        {
            "model": model.name,
            "what": model.summary,
            "size": f"{sum(file.size for file in model.files) / 1e6:.0f} MB",
            "licence": model.licence,
            "where": _where(model),
        }
        for model in MODELS.values()
    ]


def _where(model: KnownModel) -> str:
    try:
        return str(find(model.name).weights.parent)
    except FileNotFoundError:
        return f"not here; {model.command}"
    except ValueError as error:
        return f"damaged: {error}"
