"""What `jattn data` tells: every real data set, where it was found, and how it is got where it was not."""

import sysconfig

from jattn.data.source import Source, find_folder, read_files
from jattn.data.sources import SOURCES


def list_sets() -> list[dict[str, str]]:
    """A row for each data set: what it is, its size, its licence, and where its files are; those are checked."""
    rows = [
        (
            "python_library",
            "reference of the Python language and its standard library, of this interpreter",
            "about 10 MB",
            "PSF",
            sysconfig.get_path("stdlib"),
        ),
        ("digits", "1,797 handwritten digits, 8 x 8", "0.1 MB", "CC BY 4.0", "with scikit-learn"),
        ("diabetes", "442 patients, ten measurements and one outcome", "0.04 MB", "none stated", "with scikit-learn"),
    ]
    for source in SOURCES.values():
        size = f"{source.size / 1e6:.1f} MB"
        rows.append((source.name, source.summary, size, source.licence, _where(source)))
    return [dict(zip(("set", "what", "size", "licence", "where"), row, strict=True)) for row in rows]


def _where(source: Source) -> str:
    folder = find_folder(source)
    if folder is None:
        return f"not here; {source.command}"
    try:
        read_files(source)
    except ValueError:
        return f"damaged in {folder}; {source.command}"
    return str(folder)
